//! The paper, figure by figure: what it reports, what this run has instead, and why the two differ.

use super::{Context, Section, label_of, method_order};
use crate::escape::html;
use crate::number;
use crate::row::{ResultRow, Setting, natural_order};
use crate::table::{self, Cell};

/// More measurements than this are counted instead of shown.
const SHOWN: usize = 6;

/// A place of the paper that reports something.
struct Item {
    place: &'static str,
    /// What is reported there.
    theirs: &'static str,
    /// Which rows of a run say the same.
    here: fn(&ResultRow, &Setting) -> bool,
    /// Why the two differ, and what would take the difference away.
    differs: &'static str,
}

/// Items in the order of the paper. Its figures 2, 3, 6 to 10 and 16 to 18 are images without numbers: what is told of them is their shape.
const ITEMS: [Item; 17] = [
    Item {
        place: "§2, toy data (its code)",
        theirs: "MMCS, silent latents, FVU and L0 of seven runs",
        here: |row, setting| row.experiment == "anchor" && setting.get("seed").is_none() && row.method != "paper-code",
        differs: "the same data and autoencoders; other random draws, see the section on these figures",
    },
    Item {
        place: "Table 1",
        theirs: "scores of the first five features, Pythia-70M layer 1: 0.33, \u{2212}0.11, 0.55, 0.57, 0.19 (mean 0.31)",
        here: |row, setting| is_headline(row, setting) && row.method == "sae-tied" && row.metric == "interp_score",
        differs: "another model; explained by patterns instead of GPT-4, which are scored on other documents than they were made from",
    },
    Item {
        place: "Figure 2",
        theirs: "features of the autoencoder score far above PCA, ICA, the residual basis and random directions at early layers, about as ICA at layer 4 of 6",
        here: |row, setting| row.metric == "interp_score_difference" && setting.get("above").is_some(),
        differs: "another model and scorer; ICA and PCA turned to their heavier tail are methods of their own here",
    },
    Item {
        place: "Table 2",
        theirs: "the score goes with skew (correlation 0.19) and kurtosis (0.15; 0.24 in the text)",
        here: |row, _| {
            row.method == "sae-tied" && ["skew_correlation", "kurtosis_correlation"].contains(&row.metric.as_str())
        },
        differs: "another model and scorer",
    },
    Item {
        place: "Figure 3",
        theirs: "KL of indirect object identification: fewer patched features and smaller edits than PCA",
        here: |row, setting| {
            row.metric.ends_with("_for_half_kl_ratio") && setting.get("against").is_some() && of_names(setting)
        },
        differs: "Pythia-410M and layer 11 there; ratio below 1 is what the paper says",
    },
    Item {
        place: "Figure 3, penalties",
        theirs: "without a penalty no gain; a larger one leaves more KL with every feature patched",
        here: |row, setting| row.metric == "kl_floor_difference" && of_names(setting),
        differs: "another model; names, templates and selection as there",
    },
    Item {
        place: "Figure 5",
        theirs: "a circuit: the features of earlier layers behind a closing parenthesis feature, with the strength of each edge by ablation",
        here: |row, _| {
            row.experiment == "circuit" && ["largest_edge", "attribution_correlation"].contains(&row.metric.as_str())
        },
        differs: "another model; other features; where the profile says so only the features with the largest attribution are ablated; edges have intervals",
    },
    Item {
        place: "Figure 6",
        theirs: "FVU against L0: autoencoders below top-k PCA and every other baseline",
        here: |row, setting| {
            row.experiment == "dictionary"
                && row.metric == "fvu"
                && row.method == "sae-tied"
                && setting.get("to").is_none()
        },
        differs: "fewer vectors to train on; coefficients are for activations of unit mean square unless the profile says otherwise",
    },
    Item {
        place: "Figure 7",
        theirs: "FVU falls during training and levels off",
        here: |row, _| row.experiment.ends_with("training") && row.metric == "fvu" && is_of_the_paper(&row.method),
        differs: "fewer vectors; how far each curve had levelled off is in the section on training",
    },
    Item {
        place: "Figure 8",
        theirs: "scores of sizes R from 0.5 to 32 are alike",
        here: |row, setting| is_headline(row, setting) && row.method == "sae-tied" && row.metric == "interp_score_all",
        differs: "fewer sizes; features that cannot be scored count as 0 in this line",
    },
    Item {
        place: "Figure 9",
        theirs: "on random fragments alone the order of the methods stays",
        here: |row, setting| is_headline(row, setting) && row.metric == "interp_score_random",
        differs: "another model and scorer",
    },
    Item {
        place: "Figure 10",
        theirs: "in an MLP's hidden units (untied, R 1) features score above the neurons",
        here: |row, setting| {
            is_headline(row, setting) && row.hook.ends_with("mlp.hook_post") && row.metric == "interp_score"
        },
        differs: "SmolLM2's MLPs are gated: their hidden units may be negative",
    },
    Item {
        place: "Figure 11",
        theirs: "histograms of tokens: an apostrophe feature is active on apostrophes over its whole range, a residual dimension only at its top",
        here: |row, _| row.experiment == "case-study" && row.metric == "top_token_share",
        differs: "another model; other features; shares of each bin are drawn, and effects are log-probabilities instead of logits",
    },
    Item {
        place: "Figure 16",
        theirs: "alive latents grow with the size, fewer in an MLP",
        here: |row, setting| {
            row.metric == "alive_latents"
                && is_of_the_paper(&row.method)
                && setting.get("seed").is_none_or(|seed| seed == "0")
        },
        differs: "alive: active on more than 10 held-out vectors, as there; fewer such vectors",
    },
    Item {
        place: "Figure 17",
        theirs: "indirect objects at layers 3 to 23 of Pythia-410M",
        here: |row, setting| {
            ["ioi", "task"].contains(&row.experiment.as_str())
                && row.metric == "features_for_half_kl"
                && of_names(setting)
                && setting.get("prompts") != Some("choose")
        },
        differs: "another model; the layers that the profile names, joined in the figures by layer of the sections on indirect objects and other tasks",
    },
    Item {
        place: "§5, perplexity",
        theirs: "25 without, 40 with the reconstruction at layer 2 of Pythia-70M; with R 4: 59 at L0 72, 42 at 127, 26 at 390",
        here: |row, setting| {
            row.experiment == "splice"
                && row.metric == "perplexity"
                && (row.method == "sae-tied" || setting.get("ablation") == Some("none"))
        },
        differs: "another model and text: compare the ratio to the first line",
    },
    Item {
        place: "v1, erasure",
        theirs: "gender erased from \u{201C} My name is{name} and I am a\u{201D} with one feature, at a smaller edit than by LEACE or the class means",
        here: |row, _| {
            let compared = row.method.starts_with("sae") || ["leace", "class-mean"].contains(&row.method.as_str());
            row.experiment == "erasure" && compared && ["accuracy", "edit_norm"].contains(&row.metric.as_str())
        },
        differs: "another model; other names; the cost on ordinary text and the transfer to other prompts are measured as well",
    },
];

/// Whether a row of a causal task is of indirect objects, which may be named as one task among others.
fn of_names(setting: &Setting) -> bool {
    setting.get("task").is_none_or(|task| ["english", "toy", "toy-held-out"].contains(&task))
}

/// The paper's autoencoders: tied in the residual stream, untied in MLPs.
fn is_of_the_paper(method: &str) -> bool {
    ["sae-tied", "sae-relu"].contains(&method)
}

/// Whether a row of the interpretability scores is at the headline length, and no control.
fn is_headline(row: &ResultRow, setting: &Setting) -> bool {
    row.experiment == "interp" && setting.get("control").is_none() && setting.get("bits").is_none()
}

/// The account; none for a run without a language model.
pub(crate) fn section(context: &Context<'_>) -> Option<Section> {
    if context.provenance.model.is_empty() && context.of("anchor").is_empty() {
        return None;
    }
    let mut section = Section::new("");
    section.paragraph(
        "What the paper reports, and what this run has in its place. The paper's own models are run by <code>cargo xtask reproduce --profile pythia-70m</code> and \
         <code>pythia-410m</code>, which fetch them from the Hugging Face hub.",
    );
    let heads = ["place", "in the paper", "here", "why they differ"];
    let heads: Vec<(String, bool)> = heads.iter().map(|head| ((*head).to_owned(), false)).collect();
    let (lines, empty): (Vec<_>, Vec<_>) =
        ITEMS.iter().map(|item| (item, line(item, context))).partition(|(_, line)| !line[2].html.is_empty());
    let caption = format!("{} of {} places of the paper have a counterpart in this run.", lines.len(), ITEMS.len());
    let lines: Vec<Vec<Cell>> = lines.into_iter().map(|(_, line)| line).collect();
    section.html.push_str(&table::render(&caption, &heads, &lines));
    if !empty.is_empty() {
        let without: Vec<String> =
            empty.iter().map(|(item, _)| format!("{} ({})", html(item.place), html(item.theirs))).collect();
        section.paragraph(&format!("Not in this run: {}.", without.join("; ")));
    }
    Some(section)
}

fn line(item: &Item, context: &Context<'_>) -> Vec<Cell> {
    let mut found: Vec<(&ResultRow, Setting)> = context
        .rows
        .iter()
        .map(|row| (row, Setting::parse(&row.setting)))
        .filter(|(row, setting)| (item.here)(row, setting))
        .collect();
    // Of a curve its end.
    let last = found.iter().filter_map(|(_, setting)| setting.number("step")).fold(0.0, f64::max);
    found.retain(|(_, setting)| setting.number("step").is_none_or(|step| step == last));
    // Of lengths of explanations the one that is the headline: the only one with every metric.
    if let Some(headline) = headline(context.rows) {
        found.retain(|(_, setting)| setting.get("patterns").is_none_or(|patterns| patterns == headline));
    }
    found.sort_by(|a, b| natural_order(&a.0.hook, &b.0.hook).then_with(|| method_order(&a.0.method, &b.0.method)));
    let mut here = String::new();
    for (i, (row, setting)) in found.iter().take(SHOWN).enumerate() {
        let is_new = i == 0 || found[i - 1].0.hook != row.hook;
        if is_new && !row.hook.is_empty() {
            here += &format!("<code>{}</code><br>", html(&row.hook));
        }
        here += &shown(row, setting);
        here += "<br>";
    }
    if found.len() > SHOWN {
        here += &format!("and {} more", found.len() - SHOWN);
    }
    let is_theirs = context.provenance.model.contains("pythia");
    let differs = match item.differs {
        _ if here.is_empty() => String::new(),
        differs if is_theirs => differs.replace("another model; ", "").replace("another model and", "another"),
        differs => differs.to_owned(),
    };
    vec![
        Cell::text(item.place),
        Cell { html: html(item.theirs), key: None },
        Cell { html: here, key: None },
        Cell { html: html(&differs), key: None },
    ]
}

/// The number of patterns at which an explanation is scored in full.
fn headline(rows: &[ResultRow]) -> Option<String> {
    let row = rows.iter().find(|row| row.experiment == "interp" && row.metric == "interp_score_top")?;
    Setting::parse(&row.setting).get("patterns").map(str::to_owned)
}

/// `sae-tied, R 2, α 1e−3: FVU 0.12 [0.11, 0.13]`.
fn shown(row: &ResultRow, setting: &Setting) -> String {
    let what = label_of(&row.method, &setting.without(&["patterns", "step", "generator"]));
    let value = number::with_interval(row.value, row.ci_low, row.ci_high);
    format!("{}: {} {value}", html(&what), html(number::metric(&row.metric)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Extras, Provenance};

    fn row(experiment: &str, setting: &str, metric: &str, value: f64) -> ResultRow {
        ResultRow {
            experiment: experiment.into(),
            method: "sae-tied".into(),
            hook: "blocks.3.hook_resid_post".into(),
            setting: setting.into(),
            metric: metric.into(),
            value,
            ci_low: None,
            ci_high: None,
            n: 10,
            unit: "1".into(),
        }
    }

    fn here(rows: &[ResultRow], place: &str) -> String {
        let provenance = Provenance { model: "toy".into(), ..Provenance::default() };
        let context = Context { rows, extras: Extras::default(), provenance: &provenance };
        let item = ITEMS.iter().find(|item| item.place == place).unwrap();
        line(item, &context)[2].html.clone()
    }

    #[test]
    fn each_place_finds_its_rows_and_no_others() {
        let rows = [
            row("interp", "ratio=2,alpha=0.001,patterns=5", "interp_score", 0.5),
            row("interp", "ratio=2,alpha=0.001,patterns=5", "interp_score_top", 0.7),
            row("interp", "ratio=2,alpha=0.001,patterns=10", "interp_score", 0.9),
            row("interp", "ratio=2,alpha=0.001,control=shuffled,patterns=5", "interp_score", 0.1),
            row("interp", "ratio=2,alpha=0.001,patterns=5", "kurtosis_correlation", 0.15),
            row("training", "ratio=2,alpha=0.001,step=10", "fvu", 0.8),
            row("training", "ratio=2,alpha=0.001,step=20", "fvu", 0.3),
        ];
        let scores = here(&rows, "Table 1");
        assert!(scores.contains("0.5") && !scores.contains("0.9") && !scores.contains("0.1"), "{scores}");
        assert!(here(&rows, "Table 2").contains("0.15"));
        let curve = here(&rows, "Figure 7");
        assert!(curve.contains("0.3") && !curve.contains("0.8"), "{curve}");
        assert_eq!(here(&rows, "Figure 3"), "");
    }

    #[test]
    fn many_measurements_are_counted() {
        let rows: Vec<ResultRow> =
            (0..20).map(|i| row("dictionary", &format!("ratio=2,alpha={i}"), "fvu", 0.25)).collect();
        assert!(here(&rows, "Figure 6").ends_with("and 14 more"));
    }
}
