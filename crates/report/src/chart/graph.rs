//! Graphs in columns: boxes joined by arrows that run from left to right.

use super::canvas::{Anchor, Canvas, Drawn, Rect, fit, paint, text_width};
use super::{SMALL, TEXT, WIDTH};
use crate::palette::{self, AXIS, Colour, INK, MUTED, PAPER};

/// A box.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Node {
    /// Its column, from the left.
    pub(crate) column: usize,
    pub(crate) name: String,
    /// What it is; the box shows the beginning of it.
    pub(crate) text: String,
    /// All that is known of it, for a pointer that rests on the box.
    pub(crate) hint: String,
    /// Whether its frame is bold.
    pub(crate) marked: bool,
}

/// An arrow.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Edge {
    /// Indices into the boxes; the column of `from` is left of that of `to`.
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Decides the width, relative to the others; negative ones have a colour of their own.
    pub(crate) weight: f64,
    pub(crate) label: String,
}

/// Boxes in columns.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Graph {
    /// What the columns are called.
    pub(crate) columns: Vec<String>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) edges: Vec<Edge>,
}

const SIDE: f64 = 6.0;
const TOP: f64 = 34.0;
/// Between boxes of one column: arrows to later columns pass there.
const GAP: f64 = 16.0;
const LINE: f64 = 13.0;
/// Lines of text in a box below its name.
const LINES: usize = 2;
/// Between the ends of arrows at one box, which each have a label.
const PORT: f64 = 13.0;
const HEAD: f64 = 8.0;
/// Head and label of an arrow.
const LABEL: f64 = 44.0;
const WIDEST: f64 = 5.5;
const THINNEST: f64 = 1.0;

pub(crate) const POSITIVE: Colour = palette::SAE_BLUE;
pub(crate) const NEGATIVE: Colour = palette::PCA;

/// Draws the graph, as high as it needs to be.
pub(crate) fn draw_graph(graph: &Graph) -> Drawn<String> {
    let placed = Placed::new(graph);
    paint(WIDTH, placed.height, |canvas| placed.draw(canvas))
}

/// A graph whose boxes have their places.
struct Placed<'g> {
    graph: &'g Graph,
    boxes: Vec<Rect>,
    /// For each column its boxes from top to bottom.
    order: Vec<Vec<usize>>,
    /// For each edge where it leaves and where it arrives.
    ends: Vec<(f64, f64)>,
    pitch: f64,
    width: f64,
    height: f64,
}

impl<'g> Placed<'g> {
    fn new(graph: &'g Graph) -> Placed<'g> {
        let columns = graph.columns.len().max(1);
        let width = ((WIDTH - 2.0 * SIDE) / (columns as f64 + 0.85 * (columns as f64 - 1.0))).min(230.0);
        let pitch = if columns > 1 { (WIDTH - 2.0 * SIDE - width) / (columns as f64 - 1.0) } else { 0.0 };
        let arriving = |node: usize| graph.edges.iter().filter(|e| e.to == node).count();
        let least = TEXT + LINES as f64 * LINE + 10.0;
        let high = |node: usize| least.max(arriving(node) as f64 * PORT + 8.0);
        let mut order: Vec<Vec<usize>> = (0..columns).map(|c| graph.of_column(c)).collect();
        let mut boxes = vec![Rect { x0: 0.0, y0: 0.0, x1: 0.0, y1: 0.0 }; graph.nodes.len()];
        let total = |nodes: &[usize]| nodes.iter().map(|n| high(*n) + GAP).sum::<f64>() - GAP;
        let tallest = order.iter().map(|nodes| total(nodes)).fold(least, f64::max);
        // From the right: each box near the middle of those it points to.
        for column in (0..columns).rev() {
            let middle = |node: usize| {
                let targets = graph.edges.iter().filter(|e| e.from == node).map(|e| boxes[e.to]);
                let (sum, count) = targets.fold((0.0, 0.0), |(s, n), r| (s + (r.y0 + r.y1) / 2.0, n + 1.0));
                if count > 0.0 { sum / count } else { f64::MAX }
            };
            let middles: Vec<f64> = (0..graph.nodes.len()).map(middle).collect();
            order[column].sort_by(|a, b| middles[*a].total_cmp(&middles[*b]));
            let x0 = SIDE + column as f64 * pitch;
            let mut y0 = TOP + (tallest - total(&order[column])) / 2.0;
            for node in &order[column] {
                boxes[*node] = Rect { x0, y0, x1: x0 + width, y1: y0 + high(*node) };
                y0 = boxes[*node].y1 + GAP;
            }
        }
        let ends = graph.ends(&boxes);
        Placed { graph, boxes, order, ends, pitch, width, height: TOP + tallest + 10.0 }
    }

    fn draw(&self, canvas: &Canvas<'_>) -> Drawn {
        for (column, title) in self.graph.columns.iter().enumerate() {
            let x = SIDE + column as f64 * self.pitch;
            canvas.text(
                &fit(title, SMALL, self.pitch.max(self.width) - 4.0),
                (x, 14.0),
                SMALL,
                MUTED,
                Anchor::Start,
            )?;
        }
        let largest = self.graph.edges.iter().map(|e| e.weight.abs()).fold(f64::MIN_POSITIVE, f64::max);
        // The strongest on top.
        let mut by_weight: Vec<usize> = (0..self.graph.edges.len()).collect();
        by_weight.sort_by(|a, b| self.graph.edges[*a].weight.abs().total_cmp(&self.graph.edges[*b].weight.abs()));
        for edge in &by_weight {
            self.draw_arrow(canvas, *edge, largest)?;
        }
        for edge in &by_weight {
            self.draw_label(canvas, *edge)?;
        }
        self.graph.nodes.iter().zip(&self.boxes).try_for_each(|(node, r)| draw_node(canvas, node, *r))
    }

    fn draw_arrow(&self, canvas: &Canvas<'_>, edge: usize, largest: f64) -> Drawn {
        let weight = self.graph.edges[edge].weight;
        let colour = if weight < 0.0 { NEGATIVE } else { POSITIVE };
        let width = THINNEST + (WIDEST - THINNEST) * weight.abs() / largest;
        let path = self.path(edge);
        let (tip, y) = path[path.len() - 1];
        let shaft = [&path[..path.len() - 1], &[(tip - HEAD, y)]].concat();
        canvas.line(&shaft, colour, width)?;
        let half = 2.5 + width / 2.0;
        canvas.polygon(&[(tip - HEAD, y - half), (tip, y), (tip - HEAD, y + half)], colour)
    }

    /// Before the head, on the line.
    fn draw_label(&self, canvas: &Canvas<'_>, edge: usize) -> Drawn {
        let Edge { to, label, .. } = &self.graph.edges[edge];
        let at = (self.boxes[*to].x0 - HEAD - 4.0, self.ends[edge].1);
        let behind = Rect::of_text(label, at.0, at.1, SMALL - 1.0, Anchor::End);
        canvas.bar(Rect { y0: at.1 - 5.5, y1: at.1 + 5.5, ..behind }, PAPER)?;
        canvas.text(label, at, SMALL - 1.0, INK, Anchor::End)
    }

    /// From the right side of one box to the left side of another; columns between are crossed in a gap between their boxes.
    fn path(&self, edge: usize) -> Vec<(f64, f64)> {
        let Edge { from, to, .. } = self.graph.edges[edge];
        let (leaves, arrives) = self.ends[edge];
        let (x0, x1) = (self.boxes[from].x1, self.boxes[to].x0);
        let (first, last) = (self.graph.nodes[from].column, self.graph.nodes[to].column);
        let mut stations = vec![(x0, leaves)];
        for column in first + 1..last {
            let left = SIDE + column as f64 * self.pitch;
            let straight = leaves + (arrives - leaves) * (left + self.width / 2.0 - x0) / (x1 - x0);
            let y = self.gap(column, straight, edge);
            stations.extend([(left - 3.0, y), (left + self.width + 3.0, y)]);
        }
        stations.push((x1, arrives));
        let mut path = vec![stations[0]];
        for pair in stations.windows(2) {
            path.extend(curve(pair[0], pair[1]));
        }
        path
    }

    /// The gap of a column that is nearest to a height.
    fn gap(&self, column: usize, near: f64, edge: usize) -> f64 {
        let boxes: Vec<Rect> = self.order[column].iter().map(|node| self.boxes[*node]).collect();
        let Some((first, last)) = boxes.first().zip(boxes.last()) else { return near };
        let ends = [first.y0 - GAP / 2.0, last.y1 + GAP / 2.0];
        let between = boxes.windows(2).map(|pair| (pair[0].y1 + pair[1].y0) / 2.0);
        if near < ends[0] || near > ends[1] {
            return near;
        }
        let nearest = between.chain(ends).min_by(|a, b| (a - near).abs().total_cmp(&(b - near).abs()));
        // Arrows that share a gap beside each other.
        nearest.unwrap_or(near) + (edge % 5) as f64 * 2.5 - 5.0
    }
}

impl Graph {
    fn of_column(&self, column: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].column == column).collect()
    }

    /// Heights at which each edge leaves and arrives: along the side of a box in the order of the boxes at the other ends.
    fn ends(&self, boxes: &[Rect]) -> Vec<(f64, f64)> {
        let mut ends = vec![(0.0, 0.0); self.edges.len()];
        let middle = |node: usize| (boxes[node].y0 + boxes[node].y1) / 2.0;
        for (node, own) in boxes.iter().enumerate() {
            let mut leaving: Vec<usize> = (0..self.edges.len()).filter(|e| self.edges[*e].from == node).collect();
            leaving.sort_by(|a, b| middle(self.edges[*a].to).total_cmp(&middle(self.edges[*b].to)));
            // Not further apart than a port, so that few arrows leave from the middle.
            let step = ((own.y1 - own.y0 - 8.0) / leaving.len().max(1) as f64).min(PORT);
            spread(&leaving, middle(node), step, |edge, y| ends[edge].0 = y);
            let mut arriving: Vec<usize> = (0..self.edges.len()).filter(|e| self.edges[*e].to == node).collect();
            arriving.sort_by(|a, b| middle(self.edges[*a].from).total_cmp(&middle(self.edges[*b].from)));
            spread(&arriving, middle(node), PORT, |edge, y| ends[edge].1 = y);
        }
        ends
    }
}

/// Gives things places around a middle, a step apart.
fn spread(things: &[usize], middle: f64, step: f64, mut place: impl FnMut(usize, f64)) {
    let first = middle - step * (things.len() as f64 - 1.0) / 2.0;
    things.iter().enumerate().for_each(|(i, thing)| place(*thing, first + i as f64 * step));
}

/// A curve that begins and ends level, without its first point.
fn curve((x0, y0): (f64, f64), (x1, y1): (f64, f64)) -> impl Iterator<Item = (f64, f64)> {
    const STEPS: u32 = 20;
    // Level where the label of an arrow stands, as far as there is room.
    let end = x1 - LABEL.min((x1 - x0) / 2.0);
    let of = move |i: u32| {
        let t = f64::from(i) / f64::from(STEPS);
        (x0 + t * (end - x0), y0 + (3.0 - 2.0 * t) * t * t * (y1 - y0))
    };
    (1..=STEPS).map(of).chain([(x1, y1)])
}

fn draw_node(canvas: &Canvas<'_>, node: &Node, r: Rect) -> Drawn {
    canvas.bar(r, PAPER)?;
    canvas.frame(r, if node.marked { INK } else { AXIS }, if node.marked { 2.5 } else { 1.0 })?;
    let room = r.x1 - r.x0 - 12.0;
    let lines = wrap(&node.text, SMALL, room, LINES);
    let tall = TEXT + lines.len() as f64 * LINE;
    let mut y = (r.y0 + r.y1 - tall) / 2.0 + TEXT / 2.0;
    canvas.bold(&fit(&node.name, TEXT * 1.1, room), (r.x0 + 6.0, y), TEXT)?;
    for line in &lines {
        y += LINE;
        canvas.text(line, (r.x0 + 6.0, y), SMALL, MUTED, Anchor::Start)?;
    }
    canvas.hint(r, &node.hint);
    Ok(())
}

/// The beginning of a text on so many lines, broken between words.
fn wrap(text: &str, size: f64, width: f64, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let full = lines.len() == most;
        match lines.last_mut() {
            Some(line) if full || text_width(&format!("{line} {word}"), size) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| fit(line, size, width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(column: usize, name: &str) -> Node {
        Node { column, name: name.into(), text: "a text of several words".into(), hint: String::new(), marked: false }
    }

    fn edge(from: usize, to: usize) -> Edge {
        Edge { from, to, weight: 0.5, label: "50 %".into() }
    }

    /// Three columns of nine with all arrows between neighbours, and one from the first to a box in the last.
    fn full() -> Graph {
        let mut nodes: Vec<Node> = (0..27).map(|i| node(i / 9, &i.to_string())).collect();
        nodes.push(node(3, "target"));
        let mut edges: Vec<Edge> = (0..18).flat_map(|i| (0..9).map(move |j| edge(i, 9 * (i / 9 + 1) + j))).collect();
        edges.extend((18..27).map(|i| edge(i, 27)));
        edges.push(edge(0, 27));
        Graph { columns: ["a", "b", "c", "d"].map(str::to_owned).to_vec(), nodes, edges }
    }

    #[test]
    fn boxes_and_labels_keep_apart() {
        let graph = full();
        let placed = Placed::new(&graph);
        for (i, a) in placed.boxes.iter().enumerate() {
            assert!(a.x0 >= 0.0 && a.x1 <= WIDTH && a.y0 >= TOP && a.y1 <= placed.height, "{a:?}");
            assert!(placed.boxes[i + 1..].iter().all(|b| a.overlap(b) == 0.0), "box {i}");
        }
        let labels: Vec<(f64, f64)> =
            graph.edges.iter().zip(&placed.ends).map(|(e, ends)| (placed.boxes[e.to].x0, ends.1)).collect();
        for (i, a) in labels.iter().enumerate() {
            let clear = |b: &(f64, f64)| a.0 != b.0 || (a.1 - b.1).abs() > SMALL;
            assert!(labels[i + 1..].iter().all(clear), "label {i}");
        }
    }

    #[test]
    fn an_arrow_passes_a_column_between_its_boxes() {
        let graph = full();
        let placed = Placed::new(&graph);
        let far = graph.edges.len() - 1;
        for (x, y) in placed.path(far) {
            let inside = |r: &Rect| x > r.x0 + 1.0 && x < r.x1 - 1.0 && y > r.y0 && y < r.y1;
            assert!(!placed.boxes.iter().any(inside), "{x} {y}");
        }
    }

    #[test]
    fn texts_are_broken_between_words_and_cut_at_the_end() {
        let lines = wrap("closing brackets after a long list of names", 10.0, 90.0, 2);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].ends_with('…'), "{lines:?}");
        assert!(lines.iter().all(|line| text_width(line, 10.0) <= 90.0), "{lines:?}");
        assert_eq!(wrap("one two", 10.0, 90.0, 2), ["one two"]);
        assert_eq!(wrap("", 10.0, 90.0, 2), Vec::<String>::new());
    }
}
