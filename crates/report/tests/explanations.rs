//! The section of explanations by a language model: whole, and from parts of its rows.

mod common;

use common::{check_page, row};
use monosem_report::{Extras, Provenance, ResultRow, render};

/// Two scorers of one dictionary with controls, and how far they agree.
fn explanations(hook: &str) -> Vec<ResultRow> {
    let mut rows = Vec::new();
    let mut add = |method: &str, setting: &str, metric: &str, value: f64, n: u64, unit: &str| {
        rows.push(ResultRow { n, unit: unit.into(), ..row("autointerp", method, hook, setting, metric, value) });
    };
    for (scorer, unit, chance, corrected) in
        [("detection", "balanced accuracy", 0.5, 0.6), ("intruder", "accuracy", 0.25, 0.4)]
    {
        for (method, control, share) in [
            ("sae-tied", "", 1.0),
            ("sae-tied", ",control=shuffled", 0.1),
            ("random-relu", ",control=random-directions", 0.2),
        ] {
            let setting = format!("ratio=2,explainer=integers{control},scorer={scorer}");
            let corrected = share * corrected;
            add(method, &setting, "corrected_score", corrected, 33, "1");
            add(method, &setting, "score", chance + (1.0 - chance) * corrected, 33, unit);
        }
        let setting = format!("ratio=2,explainer=integers,scorer={scorer}");
        let unscored = if scorer == "detection" { 7.0 } else { 1.0 };
        add("sae-tied", &setting, "unscored_features", unscored, 40, "features");
        add("sae-tied", &setting, "unparsed_replies", 12.0, 400, "replies");
        add("sae-tied", &setting, "refused_replies", 0.0, 400, "replies");
    }
    for (metric, value) in [("agreement_rank", 0.62), ("agreement", 0.58)] {
        add("sae-tied", "ratio=2,explainer=integers,scorers=detection+intruder", metric, value, 32, "correlation");
    }
    rows
}

/// The section, alone on a page, and its figures.
fn shown(rows: &[ResultRow]) -> (String, Vec<String>) {
    let rendered = render(rows, Extras::default(), &Provenance::default()).unwrap();
    check_page(&rendered);
    let (start, end) = (rendered.html.find("<section").unwrap(), rendered.html.find("</section>").unwrap());
    let figures = rendered.figures.into_iter().map(|f| f.svg).collect();
    (rendered.html[start..end].to_owned(), figures)
}

fn keep(rows: &[ResultRow], keep: impl Fn(&ResultRow) -> bool) -> Vec<ResultRow> {
    rows.iter().filter(|r| keep(r)).cloned().collect()
}

#[test]
fn scores_stand_beside_controls_gaps_and_agreement() {
    let (html, figures) = shown(&explanations("blocks.3.hook_resid_post"));
    assert_eq!(figures.len(), 1);
    for part in [
        "<dt>detection</dt>",
        "<dt>intruder</dt>",
        "<code>integers</code>",
        "More than a tenth of the features could not be scored",
        "<li><b>detection</b>: sae-tied, R 2: 7 of 40 (18 %)</li>",
        "balanced accuracy",
        "chance 0.5",
        "chance 1 in 4",
        "12 of 400<br><span class=\"ci name\">3 %</span>",
        "<span class=\"heat a6\">0.62</span>",
        "Agreement between scorers, plain correlation",
        "n = 32 features",
    ] {
        assert!(html.contains(part), "missing: {part}\n{html}");
    }
    assert!(!html.contains("<li><b>intruder</b>"), "one in forty is no warning");
    assert!(!html.contains("<dt>fuzzing</dt>"), "a scorer that was not run needs no definition");
    assert!(figures[0].contains("control: random directions instead of features"));
    assert!(!figures[0].contains("random weights"), "a control that was not run is not in the legend");
    assert_eq!(figures[0].matches("\nsae-tied, R 2\n").count(), 2, "one row for each scorer, controls beside it");
}

#[test]
fn a_part_of_the_rows_is_fine() {
    let rows = explanations("blocks.3.hook_resid_post");
    // One scorer, no control, no agreement.
    let (html, figures) = shown(&keep(&rows, |r| r.setting.ends_with("integers,scorer=intruder")));
    assert!(figures.len() == 1 && !figures[0].contains("control"));
    assert!(!html.contains("Do scorers agree") && !html.contains("Controls:"));
    // Controls alone stand for themselves.
    let (_, figures) = shown(&keep(&rows, |r| r.setting.contains("control=")));
    assert!(figures.len() == 1 && figures[0].contains("\nsae-tied, R 2, shuffled\n"));
    // Nothing could be scored: no figure, but it is said.
    let (html, figures) = shown(&keep(&rows, |r| r.metric == "unscored_features"));
    assert!(figures.is_empty() && html.contains("7 of 40 (18 %)"));
    // Agreement alone, in the order of scorers whichever is named first.
    let mut agreement = keep(&rows, |r| r.metric == "agreement_rank");
    agreement[0].setting = "ratio=2,scorers=intruder+detection".into();
    let (html, figures) = shown(&agreement);
    assert!(figures.is_empty() && html.contains("<td><span class=\"name\">detection</span></td>"), "{html}");
    // A scorer and a control that nobody described.
    let mut unknown = keep(&rows, |r| r.setting.ends_with("detection"));
    unknown.iter_mut().for_each(|r| r.setting = r.setting.replace("detection", "<new>").replace("shuffled", "<odd>"));
    let (html, figures) = shown(&unknown);
    assert!(figures[0].contains("control: &lt;odd&gt;") && html.contains("&lt;new&gt;"));
}

#[test]
fn several_layers_sources_and_many_dictionaries_have_their_figures() {
    let mut rows = explanations("blocks.3.hook_resid_post");
    rows.extend(explanations("blocks.8.hook_resid_post"));
    let (html, figures) = shown(&rows);
    assert_eq!(figures.len(), 3);
    assert!(html.contains("id=\"fig-autointerp-layers-hook-resid-post\""));

    let mut two = explanations("blocks.3.hook_resid_post");
    let mut other = two.clone();
    other.iter_mut().for_each(|r| r.setting = r.setting.replace("integers", "windows"));
    two.extend(other);
    let (html, figures) = shown(&two);
    assert!(figures[0].contains("\nsae-tied, R 2, windows\n") && html.contains("explained by windows"));

    let many = |i: usize| {
        let mut rows = explanations("blocks.3.hook_resid_post");
        rows.retain(|r| r.method == "sae-tied");
        rows.iter_mut().for_each(|r| r.setting = r.setting.replace("ratio=2", &format!("ratio={i}")));
        rows
    };
    let (html, figures) = shown(&(1..40).flat_map(many).collect::<Vec<_>>());
    assert_eq!(figures.len(), 2, "a figure for each scorer");
    assert!(html.contains("<summary>Agreement between scorers, rank correlation</summary>"));
}
