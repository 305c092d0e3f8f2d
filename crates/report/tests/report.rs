//! A small run with every kind of row: what the report shows of it, and what it refuses.

mod common;

use common::{HOSTILE, check_page, provenance, row, with};
use monosem_report::{
    Extras, FeatureExample, Fragment, Provenance, ReportError, ResultRow, read_features, read_results, render,
    write_features, write_results,
};

/// A small run with every kind of row.
fn run() -> Vec<ResultRow> {
    let hook = "blocks.3.hook_resid_post";
    let mut rows = Vec::new();
    for (method, setting, fvu, l0) in [
        ("sae-tied", "ratio=2,alpha=1e-4", 0.08, 140.0),
        ("sae-tied", "ratio=2,alpha=1e-3", 0.25, 40.0),
        ("sae-tied", "ratio=4,alpha=1e-3", 0.22, 42.0),
        ("pca-topk", "k=40", 0.4, 40.0),
        ("identity", "", 0.0, 576.0),
        ("random-relu", "", 38.0, 288.0),
    ] {
        rows.push(row("dictionary", method, hook, setting, "fvu", fvu));
        rows.push(row("dictionary", method, hook, setting, "l0", l0));
        rows.push(row("dictionary", method, hook, setting, "dead_latents", 7.0));
        rows.push(row("dictionary", method, hook, setting, "n_latents", 1152.0));
        rows.push(row("splice", method, hook, setting, "perplexity", 30.0 + 100.0 * fvu));
    }
    for (ablation, perplexity) in [("none", 27.0), ("mean", 2700.0), ("zero", 15_000.0)] {
        rows.push(row("splice", "identity", hook, &format!("ablation={ablation}"), "perplexity", perplexity));
    }
    for step in [0, 100, 200, 300] {
        let setting = format!("ratio=2,alpha=1e-3,seed=0,step={step}");
        rows.push(row("training", "sae-tied", hook, &setting, "fvu", 1.0 / (1.0 + f64::from(step))));
        rows.push(row("training", "sae-tied", hook, &setting, "l0", 300.0 - f64::from(step) / 2.0));
    }
    for alpha in ["0", "1e-2", "1e-1"] {
        rows.push(row("planted", "sae-tied", "", &format!("generator=correlated,ratio=2,alpha={alpha}"), "mmcs", 0.9));
    }
    interpretability(&mut rows, hook);
    explanations(&mut rows, hook);
    indirect_objects(&mut rows, hook);
    for (property, auroc) in [("inside_quote", 0.97), ("after_name", 0.75)] {
        rows.push(row("properties", "sae-tied", hook, &format!("ratio=2,property={property}"), "best_auroc", auroc));
        rows.push(row("properties", "pca", hook, &format!("property={property}"), "best_auroc", 0.5));
    }
    probes(&mut rows, hook);
    rows.push(row("unheard-of", "sae-tied", hook, "", "novelty", 0.5));
    rows[0].ci_low = Some(0.07);
    rows[0].ci_high = Some(0.09);
    rows
}

/// A k of its own beside the number of latents that a probe reads.
fn probes(rows: &mut Vec<ResultRow>, hook: &str) {
    let mut push = |method: &str, setting: &str, metric: &str, value: f64| {
        rows.push(row("properties", method, hook, setting, metric, value));
    };
    for (property, auroc) in [("property=inside_quote,", 0.71), ("", 0.61)] {
        let metric = if property.is_empty() { "probe_auroc_mean" } else { "probe_auroc" };
        for (latents, more) in [("1", 0.0), ("2", 0.02), ("5", 0.11)] {
            push("sae-top-k", &format!("ratio=2,k=32,{property}latents={latents}"), metric, auroc + more);
        }
        push("identity", &format!("{property}latents=all"), metric, auroc + 0.24);
    }
    for (setting, rate) in [(",property=inside_quote", 0.21), (",property=inside_quote,within=after_name", 0.99)] {
        push("sae-top-k", &format!("ratio=2,k=32{setting}"), "absorption_rate", rate);
    }
    push("sae-top-k", "ratio=2,k=32,property=inside_quote", "split_latents", 3.0);
    push("sae-top-k", "ratio=2,k=32", "absorption_rate_mean", 0.224);
    push("sae-top-k", "ratio=2,k=32", "split_latents_mean", 2.5);
}

fn interpretability(rows: &mut Vec<ResultRow>, hook: &str) {
    for (method, setting, score) in
        [("sae-tied", "ratio=2,alpha=1e-3", 0.4), ("pca", "", 0.2), ("pca-oriented", "", 0.25)]
    {
        let with = |more: &str| if setting.is_empty() { more.to_owned() } else { format!("{setting},{more}") };
        for (length, gain) in
            [("patterns=1", 0.5), ("patterns=5", 1.0), ("patterns=30", 1.2), ("bits=64", 0.8), ("bits=256", 1.1)]
        {
            rows.push(row("interp", method, hook, &with(length), "interp_score", gain * score));
        }
        rows.push(row("interp", method, hook, &with("patterns=5"), "scored_features", 140.0));
        rows.push(row("interp", method, hook, &with("patterns=5"), "kurtosis_correlation", 0.15));
        rows.push(row("interp", method, hook, &with("patterns=5,control=shuffled"), "interp_score", 0.01));
        rows.push(row("interp", method, hook, &with("patterns=5,control=random-weights"), "interp_score", 0.1));
    }
    rows.push(row("interp", "pca", "blocks.4.hook_resid_post", "patterns=5", "interp_score", 0.3));
    for (metric, value) in [
        ("fragments", 50_000.0),
        ("fragment_tokens", 32.0),
        ("documents", 1234.0),
        ("explain_fragments", 200.0),
        ("score_fragments_top", 5.0),
        ("score_fragments_random", 5.0),
    ] {
        rows.push(row("interp", "model", hook, "", metric, value));
    }
}

/// One scorer and its control; `tests/explanations.rs` has the rest.
fn explanations(rows: &mut Vec<ResultRow>, hook: &str) {
    for (setting, value) in [("scorer=detection", 0.6), ("control=shuffled,scorer=detection", 0.1)] {
        let setting = format!("ratio=2,explainer=integers,{setting}");
        rows.push(row("autointerp", "sae-tied", hook, &setting, "corrected_score", value));
        rows.push(row("autointerp", "sae-tied", hook, &setting, "unscored_features", 9000.0));
    }
    rows.push(row("autointerp", "sae-tied", hook, "ratio=2,scorers=detection+fuzzing", "agreement_rank", 0.5));
}

/// On prompts of all names, and once more on prompts of few.
fn indirect_objects(rows: &mut Vec<ResultRow>, hook: &str) {
    for names in ["", ",names=4"] {
        indirect_objects_of(rows, hook, names);
    }
    rows.push(row("ioi", "model", "", "prompts=report", "ioi_accuracy", 0.98));
}

fn indirect_objects_of(rows: &mut Vec<ResultRow>, hook: &str, names: &str) {
    for (method, setting) in [("sae-tied", "ratio=4,alpha=1e-3,"), ("pca", "")] {
        for prompts in ["choose", "report"] {
            for (threshold, count, kl) in
                [("none", 0.0, 3.0), ("1e-2", 12.0, 1.2), ("1e-3", 90.0, 0.5), ("all", 700.0, 0.4)]
            {
                let setting = format!("{setting}prompts={prompts},seed=0,threshold={threshold}{names}");
                rows.push(row("ioi", method, hook, &setting, "patched_features", count));
                rows.push(row("ioi", method, hook, &setting, "edit_norm", count.sqrt()));
                rows.push(ResultRow {
                    ci_low: Some(kl - 0.1),
                    ci_high: Some(kl + 0.1),
                    ..row("ioi", method, hook, &setting, "kl", kl)
                });
            }
            let setting = format!("{setting}prompts={prompts},seed=0{names}");
            rows.push(row("ioi", method, hook, &setting, "features_for_half_kl", 11.0));
        }
    }
}

/// One fragment of three tokens.
fn feature(experiment: &str, method: &str, hook: &str, feature: usize) -> FeatureExample {
    FeatureExample {
        experiment: experiment.into(),
        method: method.into(),
        hook: hook.into(),
        setting: "ratio=2".into(),
        feature,
        explanation: "fires on \" that\" (7/10)".into(),
        score: Some(0.31 + feature as f64 / 100.0),
        skew: Some(12.0),
        kurtosis: Some(100.0 + feature as f64),
        note: "acts at S2".into(),
        fragments: vec![Fragment {
            kind: "top".into(),
            tokens: vec![" said".into(), " that".into(), "\n".into()],
            activations: vec![0.5, 2.0, 0.0],
            predicted: vec![0.0, 1.4, 0.0],
        }],
    }
}

fn features() -> Vec<FeatureExample> {
    let hook = "blocks.3.hook_resid_post";
    let mut all: Vec<FeatureExample> = (0..25).map(|i| feature("interp", "sae-tied", hook, i)).collect();
    all.push(feature("ioi", "pca", hook, 7));
    all.push(feature("autointerp", "sae-tied", hook, 9));
    all.push(feature("elsewhere", "pca", hook, 8));
    all
}

#[test]
fn a_run_has_every_part() {
    let rendered = render(&run(), with(&features()), &provenance()).unwrap();
    check_page(&rendered);
    let names: Vec<&str> = rendered.figures.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "fvu-l0-blocks.3.hook-resid-post",
            "dead-blocks.3.hook-resid-post",
            "training-blocks.3.hook-resid-post",
            "splice-blocks.3.hook-resid-post",
            "splice-l0-blocks.3.hook-resid-post",
            "interp-layers-hook-resid-post",
            "interp-blocks.3.hook-resid-post",
            "interp-length-blocks.3.hook-resid-post",
            "interp-kurtosis-blocks.3.hook-resid-post",
            "interp-blocks.4.hook-resid-post",
            "autointerp-blocks.3.hook-resid-post",
            "ioi-blocks.3.hook-resid-post",
            "ioi-half-blocks.3.hook-resid-post",
            "ioi-blocks.3.hook-resid-post-4-names",
            "ioi-half-blocks.3.hook-resid-post-4-names",
            "planted-correlated",
        ]
    );
    let headings: Vec<&str> = rendered.html.split("<h2>").skip(1).map(|h| &h[..h.find("</h2>").unwrap()]).collect();
    assert_eq!(
        headings,
        [
            "Read this first",
            "The paper, place by place",
            "Dictionaries: reconstruction against sparsity",
            "Training curves",
            "Language modelling with the reconstruction spliced in",
            "Interpretability scores",
            "Explanations by a language model, scored several ways",
            "Indirect objects: which features carry a behaviour",
            "Known properties of the text",
            "Planted features",
            "Experiment: elsewhere",
            "Experiment: unheard-of",
            "Timings",
            "How to read this",
            "Profile",
        ]
    );
    for part in [
        "A caveat.",
        "0.080 <span class=\"ci\">[0.070, 0.090]</span>",
        "20,000",
        "written by node <a href=\"#node-0\"><code>evaluate</code></a>",
        "id=\"node-0\"",
        "seed = 0",
        "random-relu ↑ 38",
        "nothing replaced 27",
        "prefers-color-scheme: dark",
        "@media print",
        "FVU at equal sparsity",
        "from the store",
        "href=\"#features-interp\"",
        "Looked at were 50,000 fragments of 32 tokens each, from 1,234 documents. A feature is explained from at most 200 fragments on which it is \
         active, and scored on others: the 5 on which it is strongest, and 5 random ones. Features scored, of those looked at: 140 of 20,000 of sae-tied, \
         R 2, α 1e\u{2212}3; 140 of 20,000 of pca; 140 of 20,000 of pca-oriented.",
        "control: explanations dealt to other features",
        "<small>5 of 25</small>",
        "Feature 4 <small>score 0.35 ",
        "fires on &quot; that&quot; (7/10)",
        "<i class=\"a3\" title=\"0.50\"> said</i><i class=\"a10 p7\" title=\"2\"> that</i>↵",
        "<span class=\"heat a9\">0.97</span>",
        // The probes of 1 and of 5 latents, and the dense one; at the foot the means.
        "<span class=\"heat a4\">0.71</span> <span class=\"heat a6\">0.82</span></td><td class=\"num\" data-key=\"9.5e-1\"><span class=\"heat a9\">0.95</span>",
        "<tfoot>\n<tr><td><span class=\"name\">mean</span></td><td class=\"num\" data-key=\"7.2e-1\"><span class=\"heat a2\">0.61</span> <span class=\"heat a4\">0.72</span>",
        "dense probe",
        "<span class=\"heat a2\">0.21</span> <span class=\"ci\">3</span>",
        "<span class=\"heat a2\">0.22</span> <span class=\"ci\">2.5</span>",
        "IOI accuracy",
        "and the one feature of <code>features.json</code> whose <code>experiment</code> is <code>ioi</code>",
    ] {
        assert!(rendered.html.contains(part), "missing: {part}");
    }
}

#[test]
fn missing_experiments_are_named_and_nothing_is_fine() {
    let rendered = render(&[], Extras::default(), &Provenance::default()).unwrap();
    check_page(&rendered);
    assert!(rendered.figures.is_empty());
    assert!(rendered.html.contains(
        "Left out, because this run has no such results: <code>claims</code>, <code>dictionary</code>, <code>training</code>, <code>sweep</code>, <code>sweep-training</code>, <code>splice</code>, \
         <code>interp</code>, <code>autointerp</code>, <code>ioi</code>, <code>task</code>, <code>attribution</code>, <code>circuit</code>, <code>case-study</code>, <code>erasure</code>, <code>properties</code>, <code>planted</code>, <code>planted-grid</code>, <code>anchor</code>."
    ));
}

#[test]
fn hostile_text_stays_text() {
    let mut rows = run();
    for row in &mut rows {
        row.unit = HOSTILE.into();
        if row.experiment != "unheard-of" {
            row.hook = format!("{}{HOSTILE}", row.hook);
            row.method = format!("{}{HOSTILE}", row.method);
            row.setting = format!("{},note={HOSTILE}", row.setting);
        } else {
            row.experiment = HOSTILE.into();
            row.metric = HOSTILE.into();
        }
    }
    let mut p = provenance();
    for text in [&mut p.title, &mut p.profile, &mut p.profile_toml, &mut p.model, &mut p.text, &mut p.version] {
        *text = HOSTILE.into();
    }
    p.notes = vec![HOSTILE.into()];
    let node = &mut p.nodes[0];
    for text in [&mut node.name, &mut node.key, &mut node.folder] {
        *text = HOSTILE.into();
    }
    node.sources = vec![HOSTILE.into()];
    node.experiments = vec![HOSTILE.into()];
    node.seconds = f64::NAN;
    let mut features = features();
    for feature in &mut features {
        for text in [&mut feature.method, &mut feature.hook, &mut feature.explanation, &mut feature.note] {
            *text = HOSTILE.into();
        }
        feature.setting = format!("note={HOSTILE}");
        feature.fragments[0].kind = HOSTILE.into();
        feature.fragments[0].tokens = vec![HOSTILE.into(); 3];
    }
    features[27].experiment = HOSTILE.into();
    check_page(&render(&rows, with(&features), &p).unwrap());
}

#[test]
fn features_come_back_and_uneven_ones_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("features.json");
    write_features(&path, &features()).unwrap();
    assert_eq!(read_features(&path).unwrap(), features());

    let refuse = |change: fn(&mut FeatureExample), expected: &str| {
        let mut features = features();
        change(&mut features[3]);
        let fresh = folder.path().join("fresh.json");
        for refused in
            [write_features(&fresh, &features).unwrap_err(), render(&[], with(&features), &provenance()).unwrap_err()]
        {
            let message = refused.to_string();
            assert!(message.contains("\"sae-tied\"") && message.ends_with(expected), "{message}");
        }
        assert!(!fresh.exists());
    };
    refuse(|f| _ = f.fragments[0].activations.pop(), "fragment 0 has 3 tokens but 2 activations");
    refuse(|f| _ = f.fragments[0].predicted.pop(), "fragment 0 has 3 tokens but 2 predicted");
    refuse(|f| f.fragments[0].activations[1] = f32::NAN, "one of its activations is NaN, expected finite numbers");
    refuse(|f| f.kurtosis = Some(f64::INFINITY), "kurtosis is inf, expected a finite number");

    std::fs::write(&path, "[{\"experiment\":\"x\"}]").unwrap();
    let message = read_features(&path).unwrap_err().to_string();
    assert!(
        message.contains("features.json: not a features file") && message.contains("missing field `method`"),
        "{message}"
    );
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    let mut rows = run();
    rows[3].ci_high = Some(f64::NAN);
    for refused in
        [write_results(&path, &rows).unwrap_err(), render(&rows, Extras::default(), &provenance()).unwrap_err()]
    {
        assert!(matches!(refused, ReportError::NonFinite { field: "ci_high", .. }));
        let message = refused.to_string();
        assert!(message.contains("n_latents") && message.contains("ratio=2,alpha=1e-4"), "{message}");
    }
    assert!(!path.exists());
}

#[test]
fn the_file_is_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    let mut one = row("dictionary", "sae-tied", "blocks.3.hook_resid_post", "ratio=2,alpha=8.577e-4", "fvu", 0.25);
    one.ci_low = Some(0.2);
    write_results(&path, &[one.clone(), row("dictionary", "pca", "blocks.3.hook_resid_post", "", "fvu", 0.5)]).unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        "[\n{\"experiment\":\"dictionary\",\"method\":\"pca\",\"hook\":\"blocks.3.hook_resid_post\",\"setting\":\"\",\"metric\":\"fvu\",\
         \"value\":0.5,\"ci_low\":null,\"ci_high\":null,\"n\":20000,\"unit\":\"fraction\"},\n\
         {\"experiment\":\"dictionary\",\"method\":\"sae-tied\",\"hook\":\"blocks.3.hook_resid_post\",\
         \"setting\":\"ratio=2,alpha=8.577e-4\",\"metric\":\"fvu\",\"value\":0.25,\"ci_low\":0.2,\"ci_high\":null,\"n\":20000,\
         \"unit\":\"fraction\"}\n]\n"
    );
    write_results(&path, &[]).unwrap();
    assert_eq!(read_results(&path).unwrap(), []);

    std::fs::write(&path, "[{\"experiment\":\"x\"}]").unwrap();
    let message = read_results(&path).unwrap_err().to_string();
    assert!(message.contains("results.json") && message.contains("missing field `method`"), "{message}");
    assert!(matches!(read_results(&folder.path().join("absent")), Err(ReportError::Io { .. })));
}

#[test]
fn a_report_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("a/b");
    let rendered = render(&run(), Extras::default(), &provenance()).unwrap();
    rendered.write(&at).unwrap();
    assert_eq!(std::fs::read_to_string(at.join("report.html")).unwrap(), rendered.html);
    let mut written: Vec<String> = std::fs::read_dir(at.join("figures"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected: Vec<String> = rendered.figures.iter().map(|f| format!("{}.svg", f.name)).collect();
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
}

#[test]
fn claims_show_their_p_values_and_their_sample() {
    let hook = "blocks.3.hook_resid_post";
    let mut rows = Vec::new();
    for (other, low, p_value, p_holm) in [("pca", 0.2, 0.0001, 0.0002), ("ica", 0.01, 0.04, 0.08)] {
        let setting = format!("ratio=2,alpha=1e-3,above={other}");
        let difference = row("claims", "sae-tied", hook, &setting, "interp_score_difference", 0.3);
        rows.push(ResultRow { ci_low: Some(low), ci_high: Some(0.4), n: 300, ..difference });
        let of = format!("{setting},of=interp_score_difference");
        rows.push(row("claims", "sae-tied", hook, &of, "p_value", p_value));
        rows.push(row("claims", "sae-tied", hook, &of, "p_holm", p_holm));
    }
    let html = render(&rows, Extras::default(), &provenance()).unwrap().html;
    let lines: Vec<&str> = html.split("<tr>").filter(|line| line.contains("score higher than")).collect();
    let [ica, pca] = lines[..] else { panic!("{} lines of claims", lines.len()) };
    for part in
        ["than pca ", "1e\u{2212}4", "2e\u{2212}4 <span class=\"ci\">of 2</span>", "300 features", "<b>holds</b>"]
    {
        assert!(pca.contains(part), "{part} is not in {pca}");
    }
    // The interval alone would have said that it holds.
    assert!(ica.contains("than ica ") && ica.contains("0.080 <span") && ica.contains("<b>undecided</b>"), "{ica}");
    assert!(!html.contains("decided by its interval alone"));

    rows.retain(|row| row.metric == "interp_score_difference");
    let html = render(&rows, Extras::default(), &provenance()).unwrap().html;
    assert!(html.contains("decided by its interval alone"));
    assert!(
        html.split("<tr>").filter(|line| line.contains("score higher than")).all(|line| line.contains("<b>holds</b>"))
    );
}
