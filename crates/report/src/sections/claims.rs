//! What the paper says, and whether it held here: one line per claim, with the difference that decides it.

use super::{Context, Section};
use crate::ReportError;
use crate::escape::html;
use crate::number;
use crate::row::{ResultRow, Setting};
use crate::table::{self, Cell};

pub(super) fn section(_: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(
        "Each line is a claim of the paper, turned into a difference or a ratio that was measured here. It <b>holds</b> if the whole 95 % interval is on \
         the side of the claim, is <b>contradicted</b> if the whole interval is on the other side, and is <b>undecided</b> otherwise. Features \
         and prompts are the sample; other models, texts and trainings are not covered by an interval. The intervals are not corrected for the \
         number of claims.",
    );
    let lines: Vec<Vec<Cell>> = rows.iter().filter_map(|row| line(row)).collect();
    let heads = ["claim", "hook point", "measured", "95 % interval", "here"];
    let heads: Vec<(String, bool)> = heads.iter().enumerate().map(|(i, head)| ((*head).to_owned(), i == 2)).collect();
    section.html.push_str(&table::render("Claims of the paper on this model and text.", &heads, &lines));
    Ok(section)
}

fn line(row: &ResultRow) -> Option<Vec<Cell>> {
    let (words, kind) = claim(row)?;
    let interval = match (row.ci_low, row.ci_high) {
        (Some(low), Some(high)) => format!("[{}, {}]", number::value(low), number::value(high)),
        _ => String::new(),
    };
    let verdict = kind.verdict(row);
    Some(vec![
        Cell { html: html(&words), key: None },
        Cell::text(&row.hook),
        Cell::number(&number::value(row.value), row.value),
        Cell::text(&interval),
        Cell { html: format!("<b>{verdict}</b>"), key: None },
    ])
}

/// On which side of which value the measurement has to be.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Above(f64),
    Below(f64),
    NotAbove(f64),
}

impl Kind {
    fn verdict(self, row: &ResultRow) -> &'static str {
        let (Some(low), Some(high)) = (row.ci_low, row.ci_high) else { return "undecided" };
        let (holds, contradicted) = match self {
            Self::Above(at) => (low > at, high < at),
            Self::Below(at) => (high < at, low > at),
            // That there is no gain is contradicted by a gain; nothing proves it.
            Self::NotAbove(at) => (low <= at, low > at),
        };
        if holds {
            "holds"
        } else if contradicted {
            "contradicted"
        } else {
            "undecided"
        }
    }
}

/// The claim in words, and what decides it. `None` for a measurement that belongs to no claim.
fn claim(row: &ResultRow) -> Option<(String, Kind)> {
    let setting = Setting::parse(&row.setting);
    let ours = name(&row.method, &setting);
    if let Some(other) = setting.get("above") {
        if row.method == "identity-relu" {
            return Some((
                "the residual basis scores no better than random directions (difference)".into(),
                Kind::NotAbove(0.0),
            ));
        }
        let other = match other {
            "random-weights" => "the same on a model with random weights",
            other => other,
        };
        return Some((format!("features of {ours} score higher than {other} (difference)"), Kind::Above(0.0)));
    }
    let other = &match setting.get("names") {
        Some(names) => format!("{}, with {names} names", setting.get("against")?),
        None => setting.get("against")?.to_owned(),
    };
    // Of two penalties the paper compares what is left with every feature patched, and no more.
    let two_penalties = setting.get("against")?.starts_with("sae-");
    if two_penalties && row.metric != "kl_floor_difference" {
        return None;
    }
    let (words, kind) = match row.metric.as_str() {
        "features_for_half_kl_ratio" => {
            (format!("{ours} undoes half of the KL with fewer features than {other} (ratio)"), Kind::Below(1.0))
        }
        "edit_for_half_kl_ratio" => {
            (format!("{ours} undoes half of the KL with a smaller edit than {other} (ratio)"), Kind::Below(1.0))
        }
        "kl_auc_difference" => (
            format!("{ours} leaves less KL than {other} over all numbers of features (difference of areas)"),
            Kind::Below(0.0),
        ),
        "kl_floor_difference" => {
            let alpha = |text: &str| text.parse::<f64>().ok();
            let (mine, theirs) = (alpha(setting.get("alpha")?)?, alpha(setting.get("against")?.rsplit_once("-a")?.1)?);
            let kind = if mine < theirs { Kind::Below(0.0) } else { Kind::Above(0.0) };
            let which = if mine < theirs { "lower" } else { "higher" };
            (format!("{ours} has a {which} KL with every feature patched than {other} (difference)"), kind)
        }
        _ => return None,
    };
    Some((words, kind))
}

fn name(method: &str, setting: &Setting) -> String {
    super::label_of(method, &setting.without(&["above", "against", "names"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: &str, setting: &str, metric: &str, value: f64, low: f64, high: f64) -> ResultRow {
        ResultRow {
            experiment: "claims".into(),
            method: method.into(),
            setting: setting.into(),
            metric: metric.into(),
            value,
            ci_low: Some(low),
            ci_high: Some(high),
            hook: "blocks.3.hook_resid_post".into(),
            n: 100,
            unit: "1".into(),
        }
    }

    #[test]
    fn verdicts_follow_the_interval() {
        let verdict = |row: &ResultRow| claim(row).map(|(_, kind)| kind.verdict(row));
        let above =
            |low, high| row("sae-tied", "ratio=2,alpha=0.001,above=pca", "interp_score_difference", 0.1, low, high);
        assert_eq!(verdict(&above(0.05, 0.15)), Some("holds"));
        assert_eq!(verdict(&above(-0.05, 0.15)), Some("undecided"));
        assert_eq!(verdict(&above(-0.15, -0.05)), Some("contradicted"));
        let ratio = |low, high| {
            row("sae-tied", "ratio=2,alpha=0.001,against=pca", "features_for_half_kl_ratio", 0.5, low, high)
        };
        assert_eq!(verdict(&ratio(0.3, 0.8)), Some("holds"));
        assert_eq!(verdict(&ratio(1.3, 4.0)), Some("contradicted"));
        let floor =
            row("sae-tied", "ratio=2,alpha=0.0003,against=sae-r2-a0.001", "kl_floor_difference", -0.2, -0.3, -0.1);
        assert_eq!(verdict(&floor), Some("holds"));
        let basis = row("identity-relu", "above=random-relu", "interp_score_difference", 0.2, 0.1, 0.3);
        assert_eq!(verdict(&basis), Some("contradicted"));
        assert_eq!(verdict(&row("sae-tied", "against=pca", "kl_floor_difference", 0.0, 0.0, 0.0)), None);
    }
}
