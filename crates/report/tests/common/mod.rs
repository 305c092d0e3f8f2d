//! What the tests share: a row, a provenance, and a judge of pages.

// Each test binary uses a part of it.
#![allow(dead_code)]

use monosem_report::{Extras, FeatureExample, NodeInfo, Provenance, Rendered, ResultRow};

pub(crate) const HOSTILE: &str =
    "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"'`&lt;\u{202e}\0]]>";

pub(crate) fn row(experiment: &str, method: &str, hook: &str, setting: &str, metric: &str, value: f64) -> ResultRow {
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

pub(crate) fn with(features: &[FeatureExample]) -> Extras<'_> {
    Extras { features, ..Extras::default() }
}

pub(crate) fn provenance() -> Provenance {
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

pub(crate) fn check_page(rendered: &Rendered) {
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
