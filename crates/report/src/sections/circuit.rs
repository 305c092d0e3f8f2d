//! Circuits: which features of earlier hook points a feature's activation depends on.

use std::fmt::Write as _;

use super::{Context, Section, label_of};
use crate::ReportError;
use crate::chart::{Edge, Graph, Node, draw_graph};
use crate::circuit::{Circuit, CircuitEdge, CircuitNode, hook_order};
use crate::escape::html;
use crate::number;
use crate::row::{ResultRow, Setting};
use crate::table::{self, Cell};

/// More arrows than this hide each other: the strongest are drawn.
const MOST_EDGES: usize = 60;

const READING: &str = "Each feature of a circuit was taken out of the activation at its hook point, and the features after it were watched. An arrow of 30 % says that the \
     feature it points to falls by 30 % of its activation on average, over contexts where it is active. Few strong arrows from features whose \
     explanations belong together are good: then the circuit says how the target comes about.";

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(READING);
    if !rows.is_empty() {
        let caption = "Every circuit in numbers. The correlation is that of the ranks of attributed and measured edges, over all candidates and not only those drawn: near 1 the \
                       gradient finds the edges that ablation confirms. 95 % intervals in brackets.";
        section.html.push_str(&table::wide(caption, rows, true));
    }
    for circuit in context.circuits_of("circuit") {
        show(&mut section, circuit)?;
    }
    Ok(section)
}

fn show(section: &mut Section, circuit: &Circuit) -> Result<(), ReportError> {
    // Checked when it was read, or by `render`.
    let target = &circuit.nodes[circuit.target];
    let setting = Setting::parse(&circuit.setting);
    let label = label_of(&circuit.method, &setting.without(&["target"]));
    // Writing to a String cannot fail.
    let _ = writeln!(
        section.html,
        "<h3>Feature {} <small>of <code>{}</code>, {}</small></h3>",
        number::count(target.feature as u64),
        html(&target.hook),
        html(&label)
    );
    if !target.explanation.is_empty() {
        section.paragraph(&format!("<span class=\"explanation\">{}</span>", html(&target.explanation)));
    }
    let mut strongest: Vec<&CircuitEdge> = circuit.edges.iter().collect();
    strongest.sort_by(|a, b| b.ablation.abs().total_cmp(&a.ablation.abs()));
    let shown = &strongest[..strongest.len().min(MOST_EDGES)];
    let left_out = if shown.len() < strongest.len() {
        format!(" Of {} arrows the {} strongest are drawn; the table has all.", strongest.len(), shown.len())
    } else {
        String::new()
    };
    let caption = format!(
        "<b>What feature {} depends on</b>: hook points from left to right, the target last (bold frame). A wide arrow is a strong one; the percentage is \
         the mean fall of the feature it points to when the one it comes from is ablated. Orange, below 0: it rises. Rest the pointer on a box for the \
         whole explanation.{left_out}",
        number::count(target.feature as u64),
    );
    let alt = format!("Circuit of feature {} at {}, {label}", target.feature, target.hook);
    let name = format!("circuit-{}-{}-{}-{}", circuit.method, target.hook, target.feature, label_of("", &setting));
    section.figure(&name, &alt, &caption, draw_graph(&graph(circuit, shown)))?;
    let tables = nodes_table(circuit) + &edges_table(circuit, &strongest);
    section.folded("The features and the arrows of this circuit", &tables);
    Ok(())
}

/// A column for each hook point, and one of its own for the target.
fn graph(circuit: &Circuit, edges: &[&CircuitEdge]) -> Graph {
    let mut hooks: Vec<&str> = circuit.nodes.iter().map(|node| node.hook.as_str()).collect();
    hooks.sort_by(|a, b| hook_order(a, b));
    hooks.dedup();
    let target = &circuit.nodes[circuit.target];
    // Others at or behind its hook point cannot cause it and stay before its column.
    let mut columns: Vec<String> = hooks.iter().map(|hook| title(hook)).collect();
    let alone = hooks.last() == Some(&target.hook.as_str())
        && circuit.nodes.iter().filter(|node| node.hook == target.hook).count() == 1;
    if !alone {
        columns.push(title(&target.hook));
    }
    let last = columns.len() - 1;
    let column = |i: usize, node: &CircuitNode| {
        if i == circuit.target { last } else { hooks.iter().position(|hook| *hook == node.hook).unwrap_or(0) }
    };
    let nodes: Vec<Node> = circuit
        .nodes
        .iter()
        .enumerate()
        .map(|(i, node)| Node {
            column: column(i, node),
            name: node.feature.to_string(),
            text: node.explanation.clone(),
            hint: hint(node),
            marked: i == circuit.target,
        })
        .collect();
    // What the target causes behind it has no arrow to the left.
    let forward = |edge: &&&CircuitEdge| nodes[edge.from].column < nodes[edge.to].column;
    let edges = edges
        .iter()
        .filter(forward)
        .map(|edge| Edge { from: edge.from, to: edge.to, weight: edge.ablation, label: percent(edge.ablation) })
        .collect();
    Graph { columns, nodes, edges }
}

/// `blocks.3.hook_resid_post` as it fits above a column.
fn title(hook: &str) -> String {
    match hook.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        Some((layer, site)) => format!("{layer}.{}", site.replace("hook_", "")),
        None => hook.to_owned(),
    }
}

fn hint(node: &CircuitNode) -> String {
    let explanation = if node.explanation.is_empty() { "not explained" } else { &node.explanation };
    let activation = number::significant(node.mean_activation, 3);
    let contexts = number::count(node.n_contexts);
    format!(
        "Feature {} of {}: {explanation}. Mean activation {activation}, {contexts} contexts.",
        node.feature, node.hook
    )
}

fn percent(share: f64) -> String {
    let digits = if share.abs() < 0.0995 { 1 } else { 0 };
    if share.abs() < 1e4 {
        format!("{:.digits$} %", 100.0 * share).replace('-', "\u{2212}")
    } else {
        format!("{} %", number::significant(100.0 * share, 2))
    }
}

fn nodes_table(circuit: &Circuit) -> String {
    let heads =
        [("hook", false), ("feature", true), ("explanation", false), ("mean activation", true), ("contexts", true)];
    let heads = heads.map(|(head, numeric)| (head.to_owned(), numeric));
    let mut nodes: Vec<&CircuitNode> = circuit.nodes.iter().collect();
    nodes.sort_by(|a, b| hook_order(&a.hook, &b.hook).then_with(|| a.feature.cmp(&b.feature)));
    let lines: Vec<Vec<Cell>> = nodes
        .iter()
        .map(|node| {
            vec![
                Cell::text(&node.hook),
                Cell::number(&number::count(node.feature as u64), node.feature as f64),
                Cell::text(&node.explanation),
                Cell::number(&number::value(node.mean_activation), node.mean_activation),
                Cell::number(&number::count(node.n_contexts), node.n_contexts as f64),
            ]
        })
        .collect();
    table::render("The features of the circuit.", &heads, &lines)
}

fn edges_table(circuit: &Circuit, strongest: &[&CircuitEdge]) -> String {
    let heads = [("from", false), ("to", false), ("fall when ablated", true), ("attributed", true)];
    let heads = heads.map(|(head, numeric)| (head.to_owned(), numeric));
    let end = |i: usize| Cell::text(&format!("{} of {}", circuit.nodes[i].feature, title(&circuit.nodes[i].hook)));
    let lines: Vec<Vec<Cell>> = strongest
        .iter()
        .map(|edge| {
            let fall = number::with_interval(edge.ablation, edge.ablation_low, edge.ablation_high);
            let attributed = edge.attribution.map_or_else(Cell::none, |v| Cell::number(&number::value(v), v));
            vec![end(edge.from), end(edge.to), Cell::number(&fall, edge.ablation), attributed]
        })
        .collect();
    let caption = "The arrows, strongest first: the mean relative fall of the second feature when the first is ablated (0.3: by 30 %), with its 95 % interval, and \
                   the same as attributed by a gradient.";
    table::render(caption, &heads, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuit(hooks: &[&str], target: usize, edges: &[(usize, usize)]) -> Circuit {
        let node = |hook: &&str| CircuitNode { hook: (*hook).to_owned(), ..CircuitNode::default() };
        let edge = |&(from, to): &(usize, usize)| CircuitEdge { from, to, ablation: 0.3, ..CircuitEdge::default() };
        let (nodes, edges) = (hooks.iter().map(node).collect(), edges.iter().map(edge).collect());
        Circuit { target, nodes, edges, ..Circuit::default() }
    }

    #[test]
    fn hook_points_are_columns_and_the_target_is_last() {
        let hooks = ["blocks.10.hook_resid_post", "blocks.2.hook_resid_post", "blocks.2.hook_resid_pre"];
        let one = circuit(&hooks, 0, &[(1, 0), (2, 0), (2, 1)]);
        let drawn = graph(&one, &one.edges.iter().collect::<Vec<_>>());
        assert_eq!(drawn.columns, ["2.resid_pre", "2.resid_post", "10.resid_post"]);
        assert_eq!(drawn.nodes.iter().map(|n| n.column).collect::<Vec<_>>(), [2, 1, 0]);
        assert_eq!(drawn.edges.len(), 3);
        // Another feature beside the target, and one behind it.
        let one = circuit(&["blocks.1.x", "blocks.1.x", "blocks.2.x"], 0, &[(1, 2), (0, 2)]);
        let drawn = graph(&one, &one.edges.iter().collect::<Vec<_>>());
        assert_eq!(drawn.nodes.iter().map(|n| n.column).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(drawn.edges.len(), 1);
    }

    #[test]
    fn percentages_have_a_true_minus_and_few_digits() {
        let shares = [0.3, 0.034, -0.5, 12.0, -1e12];
        assert_eq!(shares.map(percent), ["30 %", "3.4 %", "\u{2212}50 %", "1200 %", "\u{2212}1e14 %"]);
    }
}
