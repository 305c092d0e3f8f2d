//! The laws of the report: it never panics, never lets text become markup, and gives the same bytes for the same rows.

use monosem_report::{NodeInfo, Provenance, Rendered, ReportError, ResultRow, read_results, render, write_results};
use proptest::prelude::*;

const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"'`&lt;\u{202e}\0]]>";

fn row(experiment: &str, method: &str, hook: &str, setting: &str, metric: &str, value: f64) -> ResultRow {
    ResultRow {
        experiment: experiment.into(),
        method: method.into(),
        hook: hook.into(),
        setting: setting.into(),
        metric: metric.into(),
        value,
        ci_low: None,
        ci_high: None,
        n: 20_000,
        unit: "fraction".into(),
    }
}

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
    rows.push(row("unheard-of", "sae-tied", hook, "", "novelty", 0.5));
    rows[0].ci_low = Some(0.07);
    rows[0].ci_high = Some(0.09);
    rows
}

fn provenance() -> Provenance {
    Provenance {
        title: "A run".into(),
        profile: "toy".into(),
        profile_toml: "seed = 0\n".into(),
        model: "a model".into(),
        text: "a text".into(),
        nodes: vec![NodeInfo {
            name: "evaluate".into(),
            key: "0123456789abcdef".into(),
            seconds: 12.5,
            cached: true,
            folder: "nodes/evaluate-0123456789ab".into(),
            sources: vec!["capture".into()],
            experiments: vec!["dictionary".into(), "splice".into()],
        }],
        version: "0.1.0".into(),
        notes: vec!["A caveat.".into()],
    }
}

/// A tag: its name, and its text with every quoted value taken out.
struct Tag {
    name: String,
    bare: String,
}

/// The tags in order: a parser small enough to trust.
fn tags(markup: &str) -> Vec<Tag> {
    let mut tags = Vec::new();
    let mut rest = markup;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let mut quote = None;
        let mut bare = String::new();
        let mut end = None;
        for (i, c) in rest.char_indices() {
            match (quote, c) {
                (None, '>') => {
                    end = Some(i);
                    break;
                }
                (None, '"' | '\'') => quote = Some(c),
                (None, c) => bare.push(c),
                (Some(q), c) if q == c => quote = None,
                (Some(_), _) => {}
            }
        }
        rest = &rest[end.expect("a tag ends") + 1..];
        let name: String =
            bare.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '!' | '?')).collect();
        if name == "script" || name == "style" {
            rest = &rest[rest.find(&format!("</{name}>")).expect("raw text ends")..];
        }
        tags.push(Tag { name, bare });
    }
    tags
}

/// Elements that are opened are closed, in order.
fn check_balance(markup: &str) {
    let mut open: Vec<String> = Vec::new();
    for Tag { name, bare } in tags(markup) {
        for forbidden in [" on", " src=", "srcdoc", "xlink"] {
            assert!(!bare.contains(forbidden), "<{bare}>");
        }
        let single = ["meta", "link", "br", "rect", "circle", "line", "polyline", "polygon", "!DOCTYPE"];
        if let Some(closed) = name.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(closed));
        } else if !single.contains(&name.as_str()) {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<String>::new());
}

fn check_page(rendered: &Rendered) {
    check_balance(&rendered.html);
    assert_eq!(rendered.html.matches("<script>").count(), 1, "one script, ours");
    for forbidden in ["<img", "<iframe", "@import", "url(", "<object", "<base", "<form"] {
        assert!(!rendered.html.contains(forbidden), "{forbidden}");
    }
    let links = rendered.html.matches("href=\"").count();
    let inside = rendered.html.matches("href=\"#").count() + rendered.html.matches("href=\"data:").count();
    assert_eq!(links, inside, "every link stays on the page");
    for figure in &rendered.figures {
        check_balance(&figure.svg);
        assert!(figure.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c)));
        let number = |attribute: &str, text: &str| -> f64 {
            let text = &text[text.find(&format!(" {attribute}=\"")).unwrap() + attribute.len() + 3..];
            text[..text.find('"').unwrap()].parse().unwrap()
        };
        let (w, h) = (4.0 * number("width", &figure.svg), 4.0 * number("height", &figure.svg));
        for text in figure.svg.split("<text ").skip(1) {
            let text = format!(" {text}");
            let (x, y) = (number("x", &text), number("y", &text));
            assert!((0.0..=w).contains(&x) && (0.0..=h).contains(&y), "a text leaves figure {}", figure.name);
        }
    }
}

#[test]
fn a_run_has_every_part() {
    let rendered = render(&run(), &provenance()).unwrap();
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
            "planted-correlated",
        ]
    );
    let headings: Vec<&str> = rendered.html.split("<h2>").skip(1).map(|h| &h[..h.find("</h2>").unwrap()]).collect();
    assert_eq!(
        headings,
        [
            "Read this first",
            "Dictionaries: reconstruction against sparsity",
            "Training curves",
            "Language modelling with the reconstruction spliced in",
            "Planted features",
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
    ] {
        assert!(rendered.html.contains(part), "missing: {part}");
    }
}

#[test]
fn missing_experiments_are_named_and_nothing_is_fine() {
    let rendered = render(&[], &Provenance::default()).unwrap();
    check_page(&rendered);
    assert!(rendered.figures.is_empty());
    assert!(rendered.html.contains(
        "Left out, because this run has no such rows: <code>dictionary</code>, <code>training</code>, <code>splice</code>, \
         <code>planted</code>."
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
    check_page(&render(&rows, &p).unwrap());
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    let mut rows = run();
    rows[3].ci_high = Some(f64::NAN);
    for refused in [write_results(&path, &rows).unwrap_err(), render(&rows, &provenance()).unwrap_err()] {
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
    let rendered = render(&run(), &provenance()).unwrap();
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

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), Just(HOSTILE.to_owned()), Just(String::new()), "[a-z.=,<&\"]{0,12}"]
}

fn number() -> impl Strategy<Value = f64> {
    use prop::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![4 => 0.0..2.0, 2 => 0.0..5000.0, 1 => NORMAL | NEGATIVE | POSITIVE | SUBNORMAL | ZERO]
}

prop_compose! {
    fn any_row()(
        experiment in prop_oneof![Just("dictionary".to_owned()), Just("training".to_owned()), Just("splice".to_owned()), Just("planted".to_owned()), text()],
        method in prop_oneof![Just("sae-tied".to_owned()), Just("pca-topk".to_owned()), Just("identity".to_owned()), text()],
        hook in prop_oneof![Just("blocks.3.hook_resid_post".to_owned()), Just(String::new()), text()],
        setting in prop_oneof![
            Just(String::new()),
            (0..4u32, number()).prop_map(|(r, a)| format!("ratio={r},alpha={a:e}")),
            (0..4u32, 0..9u32).prop_map(|(r, s)| format!("ratio={r},alpha=1e-3,seed={r},step={s}")),
            (1..99u32).prop_map(|k| format!("k={k}")),
            Just("ablation=none".to_owned()),
            Just("generator=correlated,ratio=1,alpha=0".to_owned()),
            text(),
        ],
        metric in prop_oneof![
            Just("fvu".to_owned()), Just("l0".to_owned()), Just("dead_latents".to_owned()), Just("n_latents".to_owned()),
            Just("perplexity".to_owned()), Just("mmcs".to_owned()), Just("loss".to_owned()), text(),
        ],
        value in number(),
        ci_low in prop::option::of(number()),
        ci_high in prop::option::of(number()),
        n in any::<u64>(),
        unit in text(),
    ) -> ResultRow {
        ResultRow { experiment, method, hook, setting, metric, value, ci_low, ci_high, n, unit }
    }
}

fn any_rows() -> impl Strategy<Value = (Vec<ResultRow>, Vec<ResultRow>)> {
    prop::collection::vec(any_row(), 0..40).prop_flat_map(|rows| (Just(rows.clone()), Just(rows).prop_shuffle()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_rows_make_a_sound_page((rows, shuffled) in any_rows(), note in text(), seconds in prop::num::f64::ANY) {
        let finite = rows.iter().all(|r| [Some(r.value), r.ci_low, r.ci_high].iter().flatten().all(|v| v.is_finite()));
        let mut p = provenance();
        p.notes.push(note);
        p.nodes[0].seconds = seconds;
        let rendered = render(&rows, &p);
        prop_assert_eq!(rendered.is_ok(), finite);
        if let Ok(rendered) = rendered {
            check_page(&rendered);
            prop_assert!(rendered == render(&shuffled, &p).unwrap(), "the order of the rows shows");
        }
    }

    #[test]
    fn results_come_back_to_the_last_bit((rows, shuffled) in any_rows()) {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a.json"), folder.path().join("b.json"));
        match write_results(&first, &rows) {
            Err(ReportError::NonFinite { .. }) => prop_assert!(!first.exists()),
            Err(e) => return Err(TestCaseError::fail(e.to_string())),
            Ok(()) => {
                let back = read_results(&first).unwrap();
                prop_assert_eq!(back.len(), rows.len());
                for row in &rows {
                    prop_assert!(back.contains(row));
                }
                write_results(&second, &shuffled).unwrap();
                prop_assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
            }
        }
    }
}
