//! The sections of the causal experiments over made-up rows, and their files.

mod common;

use common::{HOSTILE, check_page, row};
use monosem_report::{
    CaseStudy, Circuit, CircuitEdge, CircuitNode, Extras, LogitEffect, Provenance, Rendered, ReportError, ResultRow,
    TokenCounts, read_case_studies, read_circuits, render, write_case_studies, write_circuits,
};

const HOOK: &str = "blocks.5.hook_resid_post";

/// A page of these and nothing else.
fn page(rows: &[ResultRow], extras: Extras<'_>) -> Rendered {
    let rendered = render(rows, extras, &Provenance::default()).unwrap();
    check_page(&rendered);
    rendered
}

/// The one figure whose name begins so.
fn figure<'r>(rendered: &'r Rendered, name: &str) -> &'r str {
    let mut found = rendered.figures.iter().filter(|figure| figure.name.starts_with(name));
    let names: Vec<&str> = rendered.figures.iter().map(|figure| figure.name.as_str()).collect();
    let first = found.next().unwrap_or_else(|| panic!("no figure {name} among {names:?}"));
    assert!(found.next().is_none(), "two figures {name} among {names:?}");
    &first.svg
}

fn has_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "missing: {part}");
    }
}

/// Colours and shapes of the markers: how many circles, say.
fn count(svg: &str, what: &str) -> usize {
    svg.matches(what).count()
}

/// The rows of a behaviour at one hook; `task` is the last key or nothing.
fn behaviour(experiment: &str, hook: &str, task: &str) -> Vec<ResultRow> {
    let mut rows = Vec::new();
    for (method, setting, half) in [("sae-tied", "ratio=4,alpha=1e-3,", 11.0), ("pca", "", 40.0)] {
        for prompts in ["choose", "report"] {
            let of = |more: &str| format!("{setting}prompts={prompts}{more}{task}");
            for (threshold, patched, kl) in [("none", 0.0, 3.0), ("1e-2", half, 1.4), ("all", 700.0, 0.4)] {
                let setting = of(&format!(",seed=0,threshold={threshold}"));
                rows.push(row(experiment, method, hook, &setting, "patched_features", patched));
                rows.push(row(experiment, method, hook, &setting, "edit_norm", patched.sqrt()));
                let kl_row = row(experiment, method, hook, &setting, "kl", kl);
                rows.push(ResultRow { ci_low: Some(kl - 0.1), ci_high: Some(kl + 0.1), ..kl_row });
            }
            rows.push(row(experiment, method, hook, &of(""), "features_for_half_kl", half));
            let auc = row(experiment, method, hook, &of(""), "kl_auc", 0.5 + half / 100.0);
            rows.push(ResultRow { ci_low: Some(0.4), ci_high: Some(0.95), ..auc });
        }
    }
    let accuracy = if experiment == "ioi" { "ioi_accuracy" } else { "task_accuracy" };
    rows.push(row(experiment, "model", hook, &format!("prompts=report{task}"), accuracy, 0.98));
    rows
}

#[test]
fn areas_are_dots_and_lines_over_the_layers_where_there_are_several() {
    let one = page(&behaviour("ioi", HOOK, ""), Extras::default());
    assert!(!one.figures.iter().any(|f| f.name.contains("layers")));
    has_all(figure(&one, "ioi-auc-"), &["area under KL", "0.61", "0.9", "sae-tied, R 4"]);
    has_all(figure(&one, "ioi-half-"), &["features that halve the KL", "11", "40"]);
    has_all(figure(&one, "ioi-blocks"), &["patched features", "size of the edit", "opacity=\"0.1\""]);

    let mut rows = behaviour("ioi", HOOK, "");
    rows.extend(behaviour("ioi", "blocks.11.hook_resid_post", ""));
    let two = page(&rows, Extras::default());
    has_all(
        figure(&two, "ioi-layers-hook-resid-post"),
        &["area under KL", "features that halve", "\n5\n", "\n11\n", "\nlayer\n"],
    );
    has_all(&two.html, &["(figure 17 of the paper)"]);
}

#[test]
fn every_task_has_the_curves_of_indirect_objects_and_one_figure_has_all() {
    let mut rows = behaviour("task", HOOK, ",task=greater-than");
    rows.extend(behaviour("task", HOOK, ",task=closing-bracket"));
    let all = page(&rows, Extras::default());
    has_all(
        figure(&all, "task-summary-"),
        &["\ngreater-than\n", "\nclosing-bracket\n", "sae-tied, R 4", "area under KL"],
    );
    for task in ["greater-than", "closing-bracket"] {
        for name in ["blocks", "auc", "half"] {
            figure(&all, &format!("task-{task}-{name}"));
        }
        has_all(&all.html, &[&format!("<h3 id=\"task-{task}\">Task: {task}</h3>"), &format!("href=\"#task-{task}\"")]);
    }
    has_all(&all.html, &["task accuracy", "<h4><code>blocks.5.hook_resid_post</code>"]);
    // The dictionary is the same for both tasks: it has one entry in the legend.
    assert_eq!(count(figure(&all, "task-summary-"), "sae-tied"), 1);

    let alone = page(&behaviour("task", HOOK, ",task=greater-than"), Extras::default());
    assert!(!alone.figures.iter().any(|f| f.name.contains("summary")));
}

#[test]
fn attributed_effects_are_drawn_against_exact_ones() {
    let mut rows = Vec::new();
    for (method, setting) in [("sae-top-k", "ratio=4,k=32,"), ("pca", "")] {
        let mut add = |more: &str, metric: &str, value: f64| {
            let setting = format!("{setting}{more}");
            rows.push(row("attribution", method, HOOK, setting.trim_end_matches(','), metric, value));
        };
        add("", "rank_correlation", 0.93);
        add("", "pearson", 0.91);
        add("k=16", "top_overlap", 0.8125);
        add("ranking=exact", "kl_auc", 0.41);
        add("ranking=attribution", "kl_auc", 0.43);
        for feature in 0..7 {
            add(&format!("feature={feature}"), "exact_effect", f64::from(feature) * 0.1);
            add(&format!("feature={feature}"), "attributed_effect", f64::from(feature) * 0.09);
        }
        add("feature=99", "exact_effect", 5.0);
    }
    let rendered = page(&rows, Extras::default());
    let scatter = figure(&rendered, "attribution-blocks");
    has_all(scatter, &["sae-top-k, R 4, k 32", "pca", "exact effect (nats)", "attributed as exact"]);
    // Open squares of PCA: seven features, and not the one whose effect was not attributed.
    let squares = |svg: &str| count(svg, "<polygon") / 2;
    assert_eq!(squares(scatter), 7, "each mark is filled and outlined");
    has_all(figure(&rendered, "attribution-auc-"), &["0.410 · 0.430", "in the order of attributed effects"]);
    has_all(
        &rendered.html,
        &["overlap of the 16 largest", "area under KL, exact order", "area under KL, attributed order", "0.8125"],
    );
    assert!(rendered.html.find("exact order</th>") < rendered.html.find("attributed order</th>"));
}

fn node(hook: &str, feature: usize, explanation: &str) -> CircuitNode {
    CircuitNode { hook: hook.into(), feature, explanation: explanation.into(), mean_activation: 1.5, n_contexts: 64 }
}

fn circuit() -> Circuit {
    let edge = |from, to, ablation: f64| CircuitEdge {
        from,
        to,
        ablation,
        ablation_low: Some(ablation - 0.05),
        ablation_high: Some(ablation + 0.05),
        attribution: Some(0.5 * ablation),
    };
    Circuit {
        method: "sae-tied".into(),
        setting: "ratio=4,alpha=1e-3,target=812".into(),
        target: 0,
        nodes: vec![
            node("blocks.11.hook_resid_post", 812, "closing brackets"),
            node(
                "blocks.3.hook_resid_post",
                40,
                "an explanation that is much too long for the small box that it is drawn in",
            ),
            node("blocks.5.hook_resid_post", 41, ""),
        ],
        edges: vec![edge(1, 0, 0.3), edge(1, 2, -0.2), edge(2, 0, 0.041)],
    }
}

#[test]
fn a_circuit_is_boxes_and_arrows_with_percentages() {
    let rows = [
        row("circuit", "sae-tied", "blocks.11.hook_resid_post", "ratio=4,alpha=1e-3,target=812", "largest_edge", 0.3),
        row("circuit", "sae-tied", "blocks.11.hook_resid_post", "ratio=4,alpha=1e-3,target=812", "circuit_edges", 3.0),
    ];
    let circuits = [circuit()];
    let rendered = page(&rows, Extras { circuits: &circuits, ..Extras::default() });
    let svg = figure(&rendered, "circuit-sae-tied");
    has_all(svg, &["3.resid_post", "5.resid_post", "11.resid_post", "30 %", "\u{2212}20 %", "4.1 %", "\n812\n", "…"]);
    // In whole only where the pointer rests.
    has_all(
        svg,
        &[
            "<title>Feature 40 of blocks.3.hook_resid_post: an explanation that is much too long for the small box that it is drawn in.",
        ],
    );
    assert_eq!(count(svg, "drawn in"), 1);
    // From left to right: the names of the columns, in the order of the model.
    assert!(
        svg.find("3.resid_post") < svg.find("5.resid_post") && svg.find("5.resid_post") < svg.find("11.resid_post")
    );
    has_all(&rendered.html, &["0.300 [0.250, 0.350]", "largest edge", "the one circuit of <code>circuits.json</code>"]);

    // Rows without graphs, graphs without rows.
    has_all(&page(&rows, Extras::default()).html, &["largest edge"]);
    let alone = page(&[], Extras { circuits: &circuits, ..Extras::default() });
    has_all(&alone.html, &["the one circuit of <code>circuits.json</code>.</p>"]);
}

#[test]
fn a_circuit_of_many_arrows_shows_the_strongest() {
    let mut many = circuit();
    many.nodes.extend((0..100).map(|i| node("blocks.1.hook_resid_post", i, "")));
    many.edges.extend((3..103).map(|from| CircuitEdge { from, to: 0, ablation: 0.001, ..CircuitEdge::default() }));
    let rendered = page(&[], Extras { circuits: &[many], ..Extras::default() });
    has_all(&rendered.html, &["Of 103 arrows the 60 strongest are drawn; the table has all."]);
    let svg = figure(&rendered, "circuit-");
    has_all(svg, &["30 %", "\u{2212}20 %"]);
    assert_eq!(count(svg, "0.1 %"), 57);
}

fn study(method: &str, feature: usize) -> CaseStudy {
    let counts =
        |token: &str, of: u64| TokenCounts { token: token.into(), counts: (0..10).map(|bin| of + bin).collect() };
    CaseStudy {
        method: method.into(),
        hook: HOOK.into(),
        setting: if method == "identity" { String::new() } else { "ratio=4,alpha=1e-3".into() },
        feature,
        name: "apostrophes".into(),
        picked: "named".into(),
        n_tokens: 4000,
        n_active: 100,
        bins: (0..=10).map(|edge| 0.5 * f64::from(edge)).collect(),
        tokens: vec![counts("'", 12_000), counts(" the", 30), counts("\n", 0)],
        other: vec![0; 10],
        logit_effects: [("s", -1.25), (" and", 0.5)]
            .map(|(token, change)| LogitEffect { token: token.into(), change })
            .to_vec(),
        n_contexts: 321,
    }
}

#[test]
fn a_case_study_shows_shares_of_tokens_and_effects() {
    let setting = "ratio=4,alpha=1e-3,feature=556";
    let rows = [row("case-study", "sae-tied", HOOK, setting, "top_token_share", 0.875)];
    let case_studies = [study("sae-tied", 556), study("identity", 21)];
    let rendered = page(&rows, Extras { case_studies: &case_studies, ..Extras::default() });
    let svg = figure(&rendered, "case-study-");
    has_all(
        svg,
        &[
            "sae-tied, R 4, α 1e\u{2212}3: feature 556",
            "identity: dimension 21",
            "apostrophes · named · active on 2.5 % of positions",
        ],
    );
    has_all(svg, &["␣the", "⏎", "other tokens", "100 %", "12k", "\u{2212}1.2", "0.50", "\ns\n", "␣and"]);
    has_all(
        &rendered.html,
        &[
            "share of the top token",
            "0.8750",
            "over 321 positions",
            "It is active on 100 of 4,000 positions",
            "the 2 studies of",
        ],
    );
    let alone = page(&[], Extras { case_studies: &case_studies[..1], ..Extras::default() });
    figure(&alone, "case-study-");
}

#[test]
fn an_erasure_is_accuracy_against_two_costs() {
    let mut rows = Vec::new();
    for (method, setting, accuracy, norm) in [
        ("none", "", 0.97, 0.0),
        ("sae-tied", "ratio=4,alpha=1e-3,feature=31,", 0.6, 1.5),
        ("leace", "", 0.52, 3.0),
        ("class-mean", "", 0.55, 4.0),
    ] {
        let setting = format!("{setting}concept=gender");
        for (metric, value) in [
            ("accuracy", accuracy),
            ("transfer_accuracy", 0.9),
            ("edit_norm", norm),
            ("kl", 0.01 * norm),
            ("p_correct", 0.5),
        ] {
            let one = row("erasure", method, HOOK, &setting, metric, value);
            rows.push(ResultRow { ci_low: Some(value - 0.05), ci_high: Some(value + 0.05), ..one });
        }
    }
    let rendered = page(&rows, Extras::default());
    let svg = figure(&rendered, "erasure-gender-blocks");
    has_all(
        svg,
        &[
            "accuracy that is left",
            "on other prompts",
            "size of the edit",
            "KL on ordinary text",
            "sae-tied, R 4, α 1e\u{2212}3, feature 31",
            "leace",
            "class-mean",
        ],
    );
    assert_eq!(count(svg, "chance"), 4);
    has_all(&rendered.html, &["probability of the right answer", "Lower left is good"]);

    // A cost that was not measured has no panel.
    rows.retain(|row| row.metric != "kl");
    let without = page(&rows, Extras::default());
    assert_eq!(count(figure(&without, "erasure-"), "chance"), 2);
}

#[test]
fn graphs_and_studies_come_back_and_damaged_ones_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_circuits(&path("circuits.json"), &[circuit(), circuit()]).unwrap();
    assert_eq!(read_circuits(&path("circuits.json")).unwrap(), [circuit(), circuit()]);
    write_case_studies(&path("case-studies.json"), &[study("identity", 3)]).unwrap();
    assert_eq!(read_case_studies(&path("case-studies.json")).unwrap(), [study("identity", 3)]);
    write_circuits(&path("circuits.json"), &[]).unwrap();
    assert_eq!(read_circuits(&path("circuits.json")).unwrap(), []);

    let fresh = path("fresh.json");
    let told = |refused: ReportError, place: &str, expected: &str| {
        let message = refused.to_string();
        assert!(message.contains(place) && message.ends_with(expected), "{message}");
    };
    let refuse = |change: fn(&mut Circuit), expected: &str| {
        let mut circuits = [circuit(), circuit()];
        change(&mut circuits[1]);
        told(
            write_circuits(&fresh, &circuits).unwrap_err(),
            "fresh.json: circuit 1 (\"sae-tied\", \"ratio=4",
            expected,
        );
        let extras = Extras { circuits: &circuits, ..Extras::default() };
        told(render(&[], extras, &Provenance::default()).unwrap_err(), "circuit 1 (", expected);
        assert!(!fresh.exists());
    };
    refuse(|c| c.target = 3, "its target is node 3 of 3, expected an index from 0");
    refuse(|c| c.edges[2].from = 7, "edge 2: from is node 7 of 3, expected an index from 0");
    refuse(|c| c.edges[0].ablation_high = Some(f64::NAN), "edge 0: ablation_high is NaN, expected a finite number");
    refuse(|c| c.nodes[1].mean_activation = f64::INFINITY, "node 1: mean_activation is inf, expected a finite number");
    refuse(
        |c| c.edges[1].to = 1,
        "edge 1: runs from \"blocks.3.hook_resid_post\" to \"blocks.3.hook_resid_post\", expected an earlier hook point before a later one",
    );

    let refuse = |change: fn(&mut CaseStudy), expected: &str| {
        let mut studies = [study("sae-tied", 5)];
        change(&mut studies[0]);
        told(write_case_studies(&fresh, &studies).unwrap_err(), "fresh.json: case study 0 (\"sae-tied\"", expected);
        let extras = Extras { case_studies: &studies, ..Extras::default() };
        told(render(&[], extras, &Provenance::default()).unwrap_err(), "case study 0 (", expected);
        assert!(!fresh.exists());
    };
    refuse(|s| s.n_active = 4001, "it is active on 4001 of 4000 positions");
    refuse(|s| _ = s.bins.pop(), "bins has 10 edges, expected 11");
    refuse(|s| s.bins[3] = 9.0, "bins has 9 before 2, expected ascending edges");
    refuse(|s| s.bins[3] = f64::NAN, "an edge of bins is NaN, expected a finite number");
    refuse(|s| _ = s.tokens[1].counts.pop(), "counts of token \" the\" has 9 numbers, expected 10, one for each bin");
    refuse(|s| s.other.push(1), "other has 11 numbers, expected 10, one for each bin");
    refuse(|s| s.logit_effects[0].change = f64::NAN, "effect on \"s\": change is NaN, expected a finite number");

    // A file that was damaged or is another.
    std::fs::write(&fresh, "[{\"method\":\"x\",\"surprise\":1}]").unwrap();
    told(
        read_circuits(&fresh).unwrap_err(),
        "fresh.json: not a circuits file (an array of {method, setting, target",
        "column 25",
    );
    told(
        read_case_studies(&fresh).unwrap_err(),
        "fresh.json: not a case-studies file (an array of {method, hook",
        "column 25",
    );
    let text = serde_json::to_string(&[circuit()]).unwrap().replace("\"target\":0", "\"target\":9");
    std::fs::write(&fresh, text).unwrap();
    told(
        read_circuits(&fresh).unwrap_err(),
        "fresh.json: circuit 0 (",
        "its target is node 9 of 3, expected an index from 0",
    );
    assert!(matches!(read_circuits(&path("absent")), Err(ReportError::Io { .. })));
}

#[test]
fn hostile_text_stays_text() {
    let mut rows = Vec::new();
    for experiment in ["task", "attribution", "circuit", "case-study", "erasure"] {
        for metric in
            ["kl_auc", "exact_effect", "attributed_effect", "accuracy", "edit_norm", "features_for_half_kl", HOSTILE]
        {
            for task in ["a", HOSTILE] {
                let setting = format!("ratio={HOSTILE},ranking={HOSTILE},concept={HOSTILE},task={task}");
                rows.push(row(experiment, HOSTILE, HOSTILE, &setting, metric, 0.5));
                rows.push(row(experiment, "sae-tied", HOSTILE, &format!("{setting},feature={HOSTILE}"), metric, 0.5));
            }
        }
    }
    let mut circuits = [circuit()];
    (circuits[0].method, circuits[0].setting) = (HOSTILE.into(), format!("target={HOSTILE}"));
    circuits[0].edges.clear();
    circuits[0].nodes.iter_mut().for_each(|node| (node.hook, node.explanation) = (HOSTILE.into(), HOSTILE.into()));
    let mut case_studies = [study(HOSTILE, 3), study("identity", 3)];
    for study in &mut case_studies {
        for text in [&mut study.hook, &mut study.setting, &mut study.name, &mut study.picked] {
            *text = HOSTILE.into();
        }
        study.tokens.iter_mut().for_each(|token| token.token = HOSTILE.into());
        study.logit_effects.iter_mut().for_each(|effect| effect.token = HOSTILE.into());
    }
    page(&rows, Extras { circuits: &circuits, case_studies: &case_studies, ..Extras::default() });
}
