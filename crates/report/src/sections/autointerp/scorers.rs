//! What the scorers and the sources of explanations are, in words, and the order in which they are told.

use crate::escape::html;
use crate::number;

/// What a scorer gets that knows nothing.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Chance {
    Value(f64),
    /// One in the number of things to choose from, which the rows do not name.
    OneInChoices,
}

struct Scorer {
    name: &'static str,
    chance: Chance,
    /// What it asks and what its number is (HTML).
    words: &'static str,
}

const SCORERS: [Scorer; 7] = [
    Scorer {
        name: "patterns",
        chance: Chance::Value(0.0),
        words: "The explanation is a list of patterns, which says by itself how active the feature is at each token; correlation of \
                that with the truth. No language model is asked.",
    },
    Scorer {
        name: "simulation",
        chance: Chance::Value(0.0),
        words: "A language model that knows the explanation expects a value at each token, read off its probabilities of the digits; \
                correlation of that with the truth.",
    },
    Scorer {
        name: "chat-simulation",
        chance: Chance::Value(0.0),
        words: "As <em>simulation</em>, but the model writes the values out in its reply; correlation with the truth.",
    },
    Scorer {
        name: "detection",
        chance: Chance::Value(0.5),
        words: "Given the explanation, on which of these windows of text is the feature active, and on which is it quiet? Balanced \
                accuracy.",
    },
    Scorer {
        name: "fuzzing",
        chance: Chance::Value(0.5),
        words: "Given the explanation, are the marked tokens of a window those on which the feature is active, or others? Balanced \
                accuracy.",
    },
    Scorer {
        name: "intruder",
        chance: Chance::OneInChoices,
        words: "Which of these windows is the one on which the feature is quiet? Accuracy. No explanation is shown: this asks whether \
                the feature means one thing, not whether its explanation says so.",
    },
    Scorer {
        name: "surprisal",
        chance: Chance::Value(0.5),
        words: "How much likelier does the explanation make a window, against a description that says nothing? Area under the ROC \
                curve (AUC) of that gain, for windows on which the feature is active against quiet ones.",
    },
];

/// Where explanations come from: key, and words (HTML).
const EXPLAINERS: [(&str, &str); 4] = [
    ("patterns", "a list of patterns that was found by counting, without a language model"),
    ("integers", "a language model that was shown fragments with the activation of each token as a whole number"),
    ("windows", "a language model that was shown windows with the active tokens marked"),
    ("imported", "made elsewhere and read from a file"),
];

fn scorer(name: &str) -> Option<&'static Scorer> {
    SCORERS.iter().find(|s| s.name == name)
}

/// Place of a scorer in every list; unknown ones come last.
pub(super) fn rank(name: &str) -> usize {
    SCORERS.iter().position(|s| s.name == name).unwrap_or(SCORERS.len())
}

/// Place of a source of explanations in every list.
pub(super) fn explainer_rank(name: &str) -> usize {
    EXPLAINERS.iter().position(|(key, _)| *key == name).unwrap_or(EXPLAINERS.len())
}

/// `chance 0.5`, which needs no escaping; empty for a scorer that is not known. `choices`: among how many the intruder was to be found, where that is known.
pub(super) fn chance(name: &str, choices: Option<u32>) -> String {
    match (scorer(name).map(|s| s.chance), choices) {
        (None, _) => String::new(),
        (Some(Chance::Value(v)), _) => format!("chance {}", number::significant(v, 1)),
        (Some(Chance::OneInChoices), Some(choices)) => format!("chance 1 in {choices}"),
        (Some(Chance::OneInChoices), None) => "chance 1 in the choices".to_owned(),
    }
}

/// Among how many things the choice was, from a score and what it is with chance taken out: `corrected = (score - c) / (1 - c)`.
pub(super) fn choices(name: &str, score: f64, corrected: f64) -> Option<u32> {
    if scorer(name)?.chance != Chance::OneInChoices || corrected >= 1.0 {
        return None;
    }
    let choices = (1.0 - corrected) / (score - corrected);
    // Rounding of the two numbers must not invent a count.
    let whole = choices.round();
    ((choices - whole).abs() < 0.01 && (2.0..=1000.0).contains(&whole)).then_some(whole as u32)
}

/// The scorers of a run, each with its sentence and its chance level.
pub(super) fn definitions(names: &[String]) -> String {
    let known = names.iter().filter_map(|name| scorer(name));
    let list: Vec<String> = known
        .map(|s| {
            let chance = match s.chance {
                Chance::OneInChoices => "Chance 1 in the number of choices".to_owned(),
                Chance::Value(_) => capital(&chance(s.name, None)),
            };
            let constant =
                if s.chance == Chance::Value(0.5) { ", also for one who always answers the same" } else { "" };
            format!("<dt>{}</dt><dd>{} <b class=\"name\">{chance}</b>{constant}.</dd>", s.name, s.words)
        })
        .collect();
    if list.is_empty() { String::new() } else { format!("<dl class=\"terms\">\n{}\n</dl>\n", list.join("\n")) }
}

/// Where the explanations of a run came from, as a sentence; empty where nothing is known of it.
pub(super) fn sources(names: &[String]) -> String {
    let parts: Vec<String> = names
        .iter()
        .filter(|name| !name.is_empty())
        .map(|name| match EXPLAINERS.iter().find(|(key, _)| key == name) {
            Some((key, words)) => format!("<code>{key}</code>: {words}"),
            None => format!("<code>{}</code>", html(name)),
        })
        .collect();
    if parts.is_empty() { String::new() } else { format!("Where explanations come from: {}.", parts.join("; ")) }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_follow_from_a_score_and_its_correction() {
        assert_eq!(choices("intruder", 0.7, 0.6), Some(4));
        assert_eq!(choices("intruder", 0.4, 0.1), Some(3));
        assert_eq!(choices("intruder", 1.0, 1.0), None);
        assert_eq!(choices("intruder", 0.5, 0.5), None);
        assert_eq!(choices("intruder", 0.7, 0.61), None);
        assert_eq!(choices("detection", 0.7, 0.4), None);
        assert_eq!(chance("intruder", Some(4)), "chance 1 in 4");
        assert_eq!(chance("fuzzing", None), "chance 0.5");
        assert_eq!(chance("patterns", None), "chance 0");
    }
}
