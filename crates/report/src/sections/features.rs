//! The feature browser: explanations beside the text the features are active on.

use std::fmt::Write as _;

use super::Section;
use super::look::Dictionary;
use crate::escape::{html, slug};
use crate::number;
use crate::row::{Setting, natural_order};
use crate::{FeatureExample, Fragment};

/// Features shown of each dictionary, where there are not too many dictionaries.
const PER_DICTIONARY: usize = 5;
/// Features shown in all, unless the dictionaries are more: what a page can carry.
const MOST: usize = 300;
/// Fragments shown of each kind.
const PER_KIND: usize = 3;
/// Tokens shown of a fragment.
const LONGEST: usize = 160;

/// A dictionary at a hook, with its features in the order given.
struct Shelf<'f> {
    hook: &'f str,
    dictionary: Dictionary,
    features: Vec<&'f FeatureExample>,
}

/// Appends the browser; nothing where there are no features.
pub(super) fn browser(section: &mut Section, experiment: &str, features: &[&FeatureExample]) {
    if features.is_empty() {
        return;
    }
    let shelves = shelves(features);
    let per = (MOST / shelves.len()).clamp(1, PER_DICTIONARY);
    let id = format!("features-{}", slug(experiment));
    let title = if ["ioi", "task"].contains(&experiment) {
        "What the chosen features are active on"
    } else {
        "Features, and text they are active on"
    };
    let predicted = features.iter().flat_map(|f| &f.fragments).any(|f| !f.predicted.is_empty());
    let underline = if predicted {
        "; <span class=\"text\"><i class=\"p9\">underlined</i></span>: how active the explanation predicts it to be"
    } else {
        ""
    };
    let scores = if experiment == "autointerp" {
        " The score is the chance-corrected one of the scorer that was run first; the line below the explanation has the others, as they came."
    } else {
        ""
    };
    let out = &mut section.html;
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        out,
        "<div class=\"browser\" id=\"{id}\">\n<h3>{title}</h3>\n<p>The first {per} features of each dictionary in <code>features.json</code>, \
         with up to {PER_KIND} fragments of the largest activations (<em>top</em>) and {PER_KIND} random ones. <span class=\"text\"><i \
         class=\"a9\">Shaded</i></span>: how active the feature is, relative to its largest activation here (hover for the value){underline}. ↵ is a line \
         break.{scores}</p>"
    );
    for (i, shelf) in shelves.iter().enumerate() {
        let _ = writeln!(
            out,
            "<details class=\"shelf\" data-method=\"{}\" data-hook=\"{}\"{}><summary><b>{}</b> <code>{}</code> <small>{} of {}</small></summary>",
            html(&shelf.dictionary.method),
            html(shelf.hook),
            if i == 0 { " open" } else { "" },
            html(&shelf.dictionary.label()),
            html(shelf.hook),
            shelf.features.len().min(per),
            number::count(shelf.features.len() as u64),
        );
        shelf.features.iter().take(per).for_each(|feature| show(out, feature));
        out.push_str("</details>\n");
    }
    out.push_str("</div>\n");
    section.parts.push((id, title.to_owned()));
}

/// By hook, then by dictionary.
fn shelves<'f>(features: &[&'f FeatureExample]) -> Vec<Shelf<'f>> {
    let mut shelves: Vec<Shelf<'f>> = Vec::new();
    for feature in features {
        let dictionary = Dictionary { method: feature.method.clone(), setting: Setting::parse(&feature.setting) };
        match shelves.iter_mut().find(|s| s.hook == feature.hook && s.dictionary == dictionary) {
            Some(shelf) => shelf.features.push(feature),
            None => shelves.push(Shelf { hook: &feature.hook, dictionary, features: vec![feature] }),
        }
    }
    shelves.sort_by(|a, b| natural_order(a.hook, b.hook).then_with(|| a.dictionary.cmp(&b.dictionary)));
    shelves
}

fn show(out: &mut String, feature: &FeatureExample) {
    let largest = feature.fragments.iter().flat_map(|f| &f.activations).copied().fold(0.0, f32::max);
    let mut facts = vec![feature.score.map_or_else(|| "not scored".to_owned(), |s| format!("score {}", decimals(s)))];
    facts.extend(feature.skew.map(|v| format!("skew {}", number::significant(v, 2))));
    facts.extend(feature.kurtosis.map(|v| format!("kurtosis {}", number::significant(v, 2))));
    if largest > 0.0 {
        facts.push(format!("largest activation here {}", number::significant(f64::from(largest), 3)));
    }
    let _ = writeln!(
        out,
        "<article class=\"feature\"><h4>Feature {} <small>{}</small></h4>",
        number::count(feature.feature as u64),
        html(&facts.join(" · "))
    );
    for (class, text) in [("explanation", &feature.explanation), ("note", &feature.note)] {
        if !text.is_empty() {
            let _ = writeln!(out, "<p class=\"{class}\">{}</p>", html(text));
        }
    }
    let mut kinds: Vec<&str> = Vec::new();
    for fragment in &feature.fragments {
        kinds.push(&fragment.kind);
        if kinds.iter().filter(|k| **k == fragment.kind).count() <= PER_KIND {
            let _ = writeln!(
                out,
                "<div class=\"fragment\"><span class=\"kind\">{}</span><p class=\"text\">{}</p></div>",
                html(&fragment.kind),
                shaded(fragment, largest)
            );
        }
    }
    out.push_str("</article>\n");
}

/// Two decimals with a true minus sign.
fn decimals(v: f64) -> String {
    format!("{v:.2}").replace('-', "\u{2212}")
}

/// The tokens around the strongest one; a token that is neither active nor predicted to be is plain text.
fn shaded(fragment: &Fragment, largest: f32) -> String {
    let n = fragment.tokens.len();
    let level = |v: f32| if largest > 0.0 { (10.0 * (v / largest).clamp(0.0, 1.0)).round() as u8 } else { 0 };
    let strongest =
        (0..n).fold(0, |best, i| if fragment.activations[i] > fragment.activations[best] { i } else { best });
    let from = strongest.saturating_sub(LONGEST * 3 / 4).min(n.saturating_sub(LONGEST));
    let to = n.min(from + LONGEST);
    let mut out = String::new();
    out.push_str(if from > 0 { "… " } else { "" });
    for i in from..to {
        let (token, activation) = (html(&visible(&fragment.tokens[i])), fragment.activations[i]);
        let classes: Vec<String> =
            [('a', level(activation)), ('p', fragment.predicted.get(i).map_or(0, |p| level(*p)))]
                .into_iter()
                .filter(|(_, level)| *level > 0)
                .map(|(letter, level)| format!("{letter}{level}"))
                .collect();
        if classes.is_empty() {
            out.push_str(&token);
        } else {
            let value = number::significant(f64::from(activation), 2);
            let _ = write!(out, "<i class=\"{}\" title=\"{value}\">{token}</i>", classes.join(" "));
        }
    }
    out.push_str(if to < n { " …" } else { "" });
    out
}

/// White space that would not show, or would break the line, as signs.
fn visible(token: &str) -> String {
    token.replace("\r\n", "↵").replace(['\n', '\u{2028}', '\u{2029}'], "↵").replace('\r', "␍").replace('\t', "⇥")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_shaded_and_underlined_by_tenths() {
        let fragment = Fragment {
            kind: "top".into(),
            tokens: [" a", "<b>", "\n", "  c"].map(str::to_owned).to_vec(),
            activations: vec![0.0, 4.0, -1.0, 1.9],
            predicted: vec![0.1, 2.0, 0.0, 9.0],
        };
        assert_eq!(
            shaded(&fragment, 4.0),
            " a<i class=\"a10 p5\" title=\"4\">&lt;b&gt;</i>↵<i class=\"a5 p10\" title=\"1.9\">  c</i>"
        );
        assert_eq!(shaded(&Fragment { predicted: Vec::new(), ..fragment }, 0.0), " a&lt;b&gt;↵  c");
        assert_eq!(shaded(&Fragment::default(), 1.0), "");
    }

    #[test]
    fn a_long_fragment_is_cut_around_its_strongest_token() {
        let tokens: Vec<String> = (0..1000).map(|i| format!(" {i}")).collect();
        let mut activations = vec![0.0; 1000];
        activations[500] = 1.0;
        let text = shaded(&Fragment { kind: String::new(), tokens, activations, predicted: Vec::new() }, 1.0);
        assert!(text.starts_with("…  380 381") && text.ends_with(" 539 …"), "{text}");
    }
}
