//! What the paper says, and whether it held here: one line per claim, with the difference that decides it.

use std::collections::HashMap;

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
         the side of the claim and the corrected p-value is below 0.05, is <b>contradicted</b> if the interval is on the other side and the \
         corrected p-value as small, and is <b>undecided</b> otherwise. Intervals and p-values (two-sided, of no difference) are by bootstrap over what n \
         counts: features, prompts, or contexts; with prompts the orders in which features were visited are drawn too. Prompts and contexts were the same for both methods, and are drawn in pairs, as are the scores \
         of one feature by its own explanation and by another's; features of two dictionaries are drawn separately, and n counts both.",
    );
    section.paragraph(
        "The corrected p-values are Holm’s: a claim is tested against several methods, and the more there are, the sooner one of them seems to be \
         beaten by chance. Those of the same measure at the same hook point (for prompts, of the same task and with as many names) are a family, whose size is given. \
         Families are not corrected for each other. Features, prompts and contexts are the sample; other models, texts and trainings are not covered.",
    );
    let tests = Tests::of(rows);
    let claims: Vec<(&ResultRow, String, Kind)> =
        rows.iter().filter_map(|row| claim(row).map(|(words, kind)| (*row, words, kind))).collect();
    if claims.iter().any(|(row, ..)| tests.get(row).is_none()) {
        section.paragraph("A claim without a p-value is decided by its interval alone.");
    }
    let lines: Vec<Vec<Cell>> =
        claims.iter().map(|(row, words, kind)| line(row, words, *kind, tests.get(row))).collect();
    let heads = ["claim", "measured", "p", "p, corrected", "n", "here"];
    let is_number = |head: &str| matches!(head, "measured" | "p" | "p, corrected" | "n");
    let heads: Vec<(String, bool)> = heads.iter().map(|head| ((*head).to_owned(), is_number(head))).collect();
    section.html.push_str(&table::render(
        "Claims of the paper on this model and text; 95 % intervals in brackets.",
        &heads,
        &lines,
    ));
    Ok(section)
}

/// The p-value of a claim, as it is and corrected for the size of its family.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Test {
    p_value: f64,
    p_holm: f64,
    family: usize,
}

/// What a p-value is of: hook point, method, setting and metric of the row of the claim.
type Claimed<'r> = (&'r str, &'r str, &'r str, &'r str);

struct Tests<'r>(HashMap<Claimed<'r>, Test>);

impl<'r> Tests<'r> {
    fn of(rows: &[&'r ResultRow]) -> Tests<'r> {
        let of = |row: &'r ResultRow| -> Option<Claimed<'r>> {
            let (setting, metric) = row.setting.rsplit_once(",of=")?;
            Some((&row.hook, &row.method, setting, metric))
        };
        let named = |metric: &'static str| {
            rows.iter().filter(move |row| row.metric == metric).filter_map(move |row| Some((of(row)?, row.value)))
        };
        let p_values: HashMap<Claimed<'r>, f64> = named("p_value").collect();
        let family = |(hook, _, setting, metric): Claimed<'r>| {
            let setting = Setting::parse(setting);
            let of = |key: &str| setting.get(key).map(str::to_owned);
            (hook, metric, of("names"), of("task"))
        };
        let mut sizes: HashMap<_, usize> = HashMap::new();
        named("p_holm").for_each(|(claimed, _)| *sizes.entry(family(claimed)).or_default() += 1);
        let test = |(claimed, p_holm): (Claimed<'r>, f64)| {
            let p_value = *p_values.get(&claimed)?;
            Some((claimed, Test { p_value, p_holm, family: sizes.get(&family(claimed)).copied().unwrap_or_default() }))
        };
        Tests(named("p_holm").filter_map(test).collect())
    }

    fn get(&self, row: &ResultRow) -> Option<Test> {
        self.0.get(&(&row.hook[..], &row.method[..], &row.setting[..], &row.metric[..])).copied()
    }
}

fn line(row: &ResultRow, words: &str, kind: Kind, test: Option<Test>) -> Vec<Cell> {
    let interval = match (row.ci_low, row.ci_high) {
        (Some(low), Some(high)) => small(&format!("[{}, {}]", number::value(low), number::value(high))),
        _ => String::new(),
    };
    let hook = if row.hook.is_empty() { String::new() } else { small(&row.hook) };
    let verdict = kind.verdict(row, test.map(|test| test.p_holm));
    let p_value = |p: f64| number::significant(p, 2);
    let corrected = |test: Test| Cell {
        html: format!("{} <span class=\"ci\">of {}</span>", html(&p_value(test.p_holm)), test.family),
        key: Some(test.p_holm),
    };
    vec![
        Cell { html: format!("{}{hook}", html(words)), key: None },
        Cell { html: format!("{}{interval}", html(&number::value(row.value))), key: Some(row.value) },
        test.map_or_else(Cell::none, |test| Cell::number(&p_value(test.p_value), test.p_value)),
        test.map_or_else(Cell::none, corrected),
        Cell { html: format!("{} {}", number::count(row.n), sample(&row.metric)), key: Some(row.n as f64) },
        Cell { html: format!("<b>{verdict}</b>"), key: None },
    ]
}

/// A line of small print under what a cell says.
fn small(text: &str) -> String {
    format!("<br><span class=\"ci name\">{}</span>", html(text))
}

/// What n counts.
fn sample(metric: &str) -> &'static str {
    match metric {
        "interp_score_difference" => "features",
        "ce_loss_difference" => "contexts",
        _ => "prompts",
    }
}

/// Corrected p-values from here on do not decide.
const LEVEL: f64 = 0.05;

/// On which side of which value the measurement has to be.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Above(f64),
    Below(f64),
}

impl Kind {
    /// What the interval and the corrected p-value say together; where there is none of these, the interval.
    fn verdict(self, row: &ResultRow, p_holm: Option<f64>) -> &'static str {
        let (Some(low), Some(high)) = (row.ci_low, row.ci_high) else { return "undecided" };
        let (holds, contradicted) = match self {
            Self::Above(at) => (low > at, high < at),
            Self::Below(at) => (high < at, low > at),
        };
        if p_holm.is_some_and(|p| p >= LEVEL) {
            "undecided"
        } else if holds {
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
    if matches!(row.metric.as_str(), "p_value" | "p_holm") {
        return None;
    }
    if let Some(other) = setting.get("below") {
        let words = format!(
            "less is lost with {ours} in place of the activations than with {other} of k {}, as many as it has active (difference)",
            setting.get("k")?
        );
        return Some((words, Kind::Below(0.0)));
    }
    if let Some(other) = setting.get("above") {
        if row.method == "identity-relu" {
            // That it scores as well would not prove it, so a difference has to show.
            let words = "the residual basis scores no better than random directions (difference)";
            return Some((words.into(), Kind::Below(0.0)));
        }
        let other = match other {
            "random-weights" => "the same on a model with random weights",
            "shuffled" => "the same features by explanations of others",
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
    Some(match setting.get("task") {
        Some(task) => (format!("{task}: {words}"), kind),
        None => (words, kind),
    })
}

fn name(method: &str, setting: &Setting) -> String {
    super::label_of(method, &setting.without(&["above", "against", "below", "k", "names", "task"]))
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
    fn without_p_values_verdicts_follow_the_interval() {
        let verdict = |row: &ResultRow| claim(row).map(|(_, kind)| kind.verdict(row, None));
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
        let no_better =
            |low, high| row("identity-relu", "above=random-relu", "interp_score_difference", 0.0, low, high);
        assert_eq!(verdict(&no_better(-0.1, 0.1)), Some("undecided"));
        assert_eq!(verdict(&no_better(-0.2, -0.1)), Some("holds"));
        assert_eq!(verdict(&row("sae-tied", "against=pca", "kl_floor_difference", 0.0, 0.0, 0.0)), None);
        let loss = row("sae-tied", "ratio=2,alpha=0.001,below=pca-topk,k=20", "ce_loss_difference", -0.2, -0.3, -0.1);
        assert_eq!(verdict(&loss), Some("holds"));
        assert!(claim(&loss).unwrap().0.contains("than with pca-topk of k 20"), "{:?}", claim(&loss));
    }

    #[test]
    fn p_values_belong_to_the_claim_they_name_and_have_to_be_small() {
        let metric = "kl_auc_difference";
        let setting = |other: &str, names: &str| format!("ratio=2,alpha=0.001,against={other}{names}");
        let mut rows = Vec::new();
        for (other, names, p, p_holm) in [
            ("pca", "", 0.01, 0.03),
            ("ica", "", 0.03, 0.06),
            ("pca", ",names=4", 0.02, 0.02),
            ("pca", ",task=pronoun", 0.1, 0.1),
        ] {
            let setting = setting(other, names);
            rows.push(row("sae-tied", &setting, metric, -0.2, -0.3, -0.1));
            let of = format!("{setting},of={metric}");
            rows.push(ResultRow { ci_low: None, ci_high: None, ..row("sae-tied", &of, "p_value", p, 0.0, 0.0) });
            rows.push(ResultRow { ci_low: None, ci_high: None, ..row("sae-tied", &of, "p_holm", p_holm, 0.0, 0.0) });
        }
        rows.push(row("sae-tied", &setting("identity", ""), metric, -0.2, -0.3, -0.1));
        let rows: Vec<&ResultRow> = rows.iter().collect();
        let tests = Tests::of(&rows);
        let found: Vec<(Option<Test>, &str)> = rows
            .iter()
            .filter_map(|row| Some((*row, claim(row)?.1)))
            .map(|(row, kind)| (tests.get(row), kind.verdict(row, tests.get(row).map(|test| test.p_holm))))
            .collect();
        let test = |p_value, p_holm, family| Some(Test { p_value, p_holm, family });
        assert_eq!(
            found,
            [
                (test(0.01, 0.03, 2), "holds"),
                (test(0.03, 0.06, 2), "undecided"),
                (test(0.02, 0.02, 1), "holds"),
                (test(0.1, 0.1, 1), "undecided"),
                (None, "holds"),
            ]
        );
        // Another task is named, and no setting of the dictionary.
        let words = claim(rows[9]).unwrap().0;
        let of_ioi = claim(rows[0]).unwrap().0;
        assert_eq!(words, format!("pronoun: {of_ioi}"));
        let contradicted = row("sae-tied", "above=pca", "interp_score_difference", -0.2, -0.3, -0.1);
        assert_eq!(Kind::Above(0.0).verdict(&contradicted, Some(0.01)), "contradicted");
        assert_eq!(Kind::Above(0.0).verdict(&contradicted, Some(0.05)), "undecided");
        // A small p-value without an interval on one side decides nothing.
        let astride = row("sae-tied", "above=pca", "interp_score_difference", 0.2, -0.1, 0.3);
        assert_eq!(Kind::Above(0.0).verdict(&astride, Some(0.01)), "undecided");
    }
}
