//! Case studies: the tokens behind the activations of single features, beside those of single dimensions of the activation.

use super::{Context, Section, hooks_of, label_of, on_what};
use crate::case_study::CaseStudy;
use crate::chart::{Effect, Stack, draw_stacks};
use crate::circuit::hook_order;
use crate::escape::html;
use crate::row::{ResultRow, Setting};
use crate::table::{self, Cell};
use crate::{ReportError, number};

/// More effects than this of one study are left to the table.
const MOST_EFFECTS: usize = 12;

const READING: &str = "A feature that means one thing is active on one kind of token over all of its range, weak activations included. A dimension of the activation \
     itself may be largest on one kind of token too, while everything below its maximum is a mixture. The effects say what the feature does: removed \
     from the activation (a dimension is set to its mean), it changes the log-probability of these tokens to come next.";

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(READING);
    let studies = context.case_studies_of("case-study");
    let mut hooks: Vec<String> = studies.iter().map(|study| study.hook.clone()).chain(hooks_of(rows)).collect();
    hooks.sort_by(|a, b| hook_order(a, b));
    hooks.dedup();
    for hook in &hooks {
        section.hook_heading(hook);
        let here: Vec<&CaseStudy> = studies.iter().filter(|study| study.hook == *hook).collect();
        if !here.is_empty() {
            figure(context, &mut section, hook, &here)?;
        }
        let rows: Vec<&ResultRow> = rows.iter().copied().filter(|row| row.hook == *hook).collect();
        if !rows.is_empty() {
            let caption = "The studies in numbers. Share of the top token: of the positions in the upper half of the range, the share that has the most frequent \
                           token, which for either half of the documents is that of the other; near 1 is good. 95 % intervals in brackets.";
            section.html.push_str(&table::wide(caption, &rows, false));
        }
        if !here.is_empty() {
            let tables: String = here.iter().map(|study| counts(study) + &effects(study)).collect();
            section.folded("Counts and effects of each study", &tables);
        }
    }
    Ok(section)
}

fn figure(context: &Context<'_>, section: &mut Section, hook: &str, studies: &[&CaseStudy]) -> Result<(), ReportError> {
    let stacks: Vec<Stack> = side_by_side(studies).into_iter().map(stack).collect();
    let caption = format!(
        "<b>The tokens behind activations</b> at {} (figure 11 of the paper): for each bin of activation the share of its positions that has each token; above it \
         how many positions those are, for the rare large activations would not show otherwise. One colour from left to right is good. Below: what removing the \
         feature (or setting the dimension to its mean) does to the log-probability of the next token (orange: less likely without it), a mean over positions; two beside each other have one scale. ␣ is a space, ⏎ a line break.",
        on_what(context, hook),
    );
    let name = format!("case-study-{hook}");
    section.figure(
        &name,
        &format!("Tokens behind the activations of single features at {hook}"),
        &caption,
        draw_stacks(&stacks),
    )
}

fn is_basis(study: &CaseStudy) -> bool {
    study.method.starts_with("identity")
}

/// Pairs of a feature and a dimension of the activation, as long as there are both; then the rest, all in the order given.
fn side_by_side<'s>(studies: &[&'s CaseStudy]) -> Vec<&'s CaseStudy> {
    let (basis, features): (Vec<&CaseStudy>, Vec<&CaseStudy>) = studies.iter().partition(|study| is_basis(study));
    let pairs = basis.len().min(features.len());
    let mut placed = Vec::new();
    for (feature, dimension) in features.iter().zip(&basis) {
        placed.extend([*feature, *dimension]);
    }
    placed.extend(features[pairs..].iter().chain(&basis[pairs..]).copied());
    placed
}

/// `sae-tied, R 2, α 1e−3: feature 17`.
fn title(study: &CaseStudy) -> String {
    let what = if is_basis(study) { "dimension" } else { "feature" };
    let label = label_of(&study.method, &Setting::parse(&study.setting));
    format!("{label}: {what} {}", study.feature)
}

fn stack(study: &CaseStudy) -> Stack {
    let share = if study.n_tokens > 0 { 100.0 * study.n_active as f64 / study.n_tokens as f64 } else { 0.0 };
    let activity = format!("active on {} % of positions", number::significant(share, 2));
    let said = [study.name.as_str(), study.picked.as_str(), activity.as_str()];
    let said: Vec<&str> = said.into_iter().filter(|text| !text.is_empty()).collect();
    let mut strongest: Vec<&crate::LogitEffect> = study.logit_effects.iter().collect();
    strongest.sort_by(|a, b| b.change.abs().total_cmp(&a.change.abs()));
    strongest.truncate(MOST_EFFECTS);
    strongest.sort_by(|a, b| a.change.total_cmp(&b.change));
    Stack {
        title: title(study),
        subtitle: said.join(" · "),
        edges: study.bins.clone(),
        kinds: study.tokens.iter().map(|t| (visible(&t.token), t.counts.clone())).collect(),
        other: study.other.clone(),
        effects: strongest.iter().map(|e| Effect { label: visible(&e.token), value: e.change }).collect(),
    }
}

/// A token with its white space as signs.
fn visible(token: &str) -> String {
    if token.is_empty() {
        return "(empty)".to_owned();
    }
    token
        .replace("\r\n", "⏎")
        .replace(['\n', '\u{2028}', '\u{2029}'], "⏎")
        .replace('\r', "␍")
        .replace('\t', "⇥")
        .replace(' ', "␣")
}

fn counts(study: &CaseStudy) -> String {
    let edges = study.bins.windows(2).map(|ends| {
        let [low, high] = [ends[0], ends[1]].map(|edge| html(&number::significant(edge, 3)));
        (format!("{low} to {high}"), true)
    });
    let heads: Vec<(String, bool)> = [("token".to_owned(), false)].into_iter().chain(edges).collect();
    let line = |name: Cell, counts: &[u64]| -> Vec<Cell> {
        let cells = counts.iter().map(|n| Cell::number(&number::count(*n), *n as f64));
        [name].into_iter().chain(cells).collect()
    };
    let mut lines: Vec<Vec<Cell>> =
        study.tokens.iter().map(|t| line(Cell::text(&visible(&t.token)), &t.counts)).collect();
    lines.push(line(Cell::text("all other tokens"), &study.other));
    let caption = format!(
        "{}: positions with each token, by bins of activation. It is active on {} of {} positions.",
        html(&title(study)),
        number::count(study.n_active),
        number::count(study.n_tokens)
    );
    table::render(&caption, &heads, &lines)
}

fn effects(study: &CaseStudy) -> String {
    if study.logit_effects.is_empty() {
        return String::new();
    }
    let heads = [("token".to_owned(), false), ("change <span class=\"unit\">nats</span>".to_owned(), true)];
    let line =
        |e: &crate::LogitEffect| vec![Cell::text(&visible(&e.token)), Cell::number(&number::value(e.change), e.change)];
    let lines: Vec<Vec<Cell>> = study.logit_effects.iter().map(line).collect();
    let caption = format!(
        "{}: mean change of the log-probability of the next token when it is removed (a dimension: set to its mean), over {} positions.",
        html(&title(study)),
        number::count(study.n_contexts)
    );
    table::render(&caption, &heads, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_stand_beside_dimensions_and_the_rest_follows() {
        let study = |method: &str, feature| CaseStudy { method: method.into(), feature, ..CaseStudy::default() };
        let all = [
            study("sae-tied", 1),
            study("sae-tied", 2),
            study("identity", 3),
            study("sae-tied", 4),
            study("sae-tied", 5),
        ];
        let order = |studies: &[&CaseStudy]| -> Vec<usize> {
            side_by_side(studies).into_iter().map(|study| study.feature).collect()
        };
        assert_eq!(order(&all.iter().collect::<Vec<_>>()), [1, 3, 2, 4, 5]);
        assert_eq!(order(&[&all[2]]), [3]);
    }

    #[test]
    fn white_space_of_tokens_shows() {
        assert_eq!(visible(" a\n\t"), "␣a⏎⇥");
        assert_eq!(visible(""), "(empty)");
    }
}
