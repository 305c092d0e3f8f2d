//! Dictionaries, as opposed to measurements of them: what makes two rows speak of the same one, and how it is drawn.

use std::cmp::Ordering;

use super::{label_of, method_order, style_of};
use crate::chart::{Dash, Row, Shape, Style};
use crate::row::{ResultRow, Setting};
use crate::{number, palette};

/// A dictionary: the method that made it, and its own settings without those of a measurement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Dictionary {
    pub(super) method: String,
    pub(super) setting: Setting,
}

impl Dictionary {
    /// The dictionary a row speaks of; `measured` are the keys that belong to the measurement.
    pub(super) fn of(row: &ResultRow, measured: &[&str]) -> Dictionary {
        Dictionary { method: row.method.clone(), setting: Setting::parse(&row.setting).without(measured) }
    }

    pub(super) fn label(&self) -> String {
        label_of(&self.method, &self.setting)
    }
}

impl PartialOrd for Dictionary {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Dictionary {
    fn cmp(&self, other: &Self) -> Ordering {
        method_order(&self.method, &other.method).then_with(|| self.setting.cmp(&other.setting))
    }
}

/// The place in the palette of a kind of sparse autoencoder: known kinds keep theirs, so that they look the same in every figure;
/// the others take those that the kinds present, `saes` in order, leave free.
pub(super) fn hue_of(method: &str, saes: &[&str]) -> usize {
    let known = |method: &str| match method {
        "sae-tied" => Some(0),
        "sae-relu" => Some(1),
        "sae-gated" => Some(2),
        "sae-jump-relu" => Some(3),
        "sae-top-k" | "sae-topk" => Some(4),
        "sae-batch-top-k" => Some(5),
        "sae-matryoshka" => Some(6),
        _ => None,
    };
    known(method).unwrap_or_else(|| {
        let taken = |hue: &usize| saes.iter().any(|other| known(other) == Some(*hue));
        let mut free: Vec<usize> = (0..palette::SAE_HUES).filter(|hue| !taken(hue)).collect();
        if free.is_empty() {
            free = (0..palette::SAE_HUES).collect();
        }
        let place = saes.iter().filter(|m| known(m).is_none()).position(|m| *m == method).unwrap_or(0);
        free[place % free.len()]
    })
}

/// The controls that a score may have, what each is in words, and its shape.
pub(super) const CONTROLS: [(&str, &str, Shape); 3] = [
    ("shuffled", "explanations dealt to other features", Shape::Diamond),
    ("random-directions", "random directions instead of features", Shape::Cross),
    ("random-weights", "the same on a model with random weights", Shape::Wedge),
];

/// How a control looks: muted, whatever the dictionary.
pub(super) fn of_control(shape: Shape) -> Style {
    Style { colour: palette::MUTED, shape, filled: false, dash: Dash::Solid }
}

/// All dictionaries of a section in reading order, which decides how each looks.
pub(super) struct Looks {
    pub(super) all: Vec<Dictionary>,
}

impl Looks {
    pub(super) fn of(dictionaries: impl Iterator<Item = Dictionary>) -> Looks {
        let mut all: Vec<Dictionary> = dictionaries.collect();
        all.sort();
        all.dedup();
        Looks { all }
    }

    /// As everywhere, but the shade of an autoencoder is chosen by its whole setting, not by its size alone, among those of its kind.
    pub(super) fn style(&self, dictionary: &Dictionary) -> Style {
        let saes: Vec<&Dictionary> = self.all.iter().filter(|d| palette::family(&d.method) == "sae").collect();
        let mut methods: Vec<&str> = saes.iter().map(|d| d.method.as_str()).collect();
        methods.dedup();
        // In order, as all of them are.
        let of_kind = saes.iter().filter(|d| d.method == dictionary.method);
        let sizes: Vec<String> = of_kind.map(|d| label_of("", &d.setting)).collect();
        style_of(&dictionary.method, Some(&label_of("", &dictionary.setting)), &sizes, &methods)
    }

    /// A measurement of a dictionary as a row of dots, its value written with so many digits.
    pub(super) fn row(&self, dictionary: &Dictionary, measured: &ResultRow, digits: i32) -> Row {
        Row {
            label: dictionary.label(),
            value: measured.value,
            low: measured.ci_low,
            high: measured.ci_high,
            text: number::significant(measured.value, digits),
            style: self.style(dictionary),
            group: palette::family(&dictionary.method).to_owned(),
            beside: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fourteen_dictionaries_look_different() {
        let dictionary =
            |method: &str, setting: &str| Dictionary { method: method.into(), setting: Setting::parse(setting) };
        let methods = ["sae-relu", "sae-gated", "sae-jump-relu", "sae-top-k", "sae-batch-top-k", "sae-matryoshka"];
        let mut all: Vec<Dictionary> = methods.iter().map(|m| dictionary(m, "ratio=2,k=32")).collect();
        all.extend(["1", "2", "4"].map(|r| dictionary("sae-tied", &format!("ratio={r},alpha=0.002"))));
        all.extend(["pca", "pca-oriented", "ica", "identity-relu", "random-relu"].map(|m| dictionary(m, "")));
        let looks = Looks::of(all.iter().cloned());
        let styles: Vec<Style> = all.iter().map(|d| looks.style(d)).collect();
        for (i, a) in styles.iter().enumerate() {
            assert!(styles[i + 1..].iter().all(|b| a != b), "{:?}", all[i]);
        }
        // By shape alone the kinds can be told apart too.
        let mut shapes: Vec<String> = styles[..7].iter().map(|s| format!("{:?} {}", s.shape, s.filled)).collect();
        shapes.sort();
        shapes.dedup();
        assert_eq!(shapes.len(), 7);
    }

    #[test]
    fn known_kinds_keep_their_hue_and_others_take_what_is_left() {
        assert_eq!(hue_of("sae-tied", &["sae-new", "sae-tied"]), 0);
        assert_eq!(hue_of("sae-new", &["sae-new", "sae-tied"]), 1);
        assert_eq!(hue_of("sae", &["sae"]), 0);
        let many: Vec<String> = (0..20).map(|i| format!("sae-{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(hue_of("sae-9", &many), 2);
    }
}
