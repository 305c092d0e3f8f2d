//! Dictionaries, as opposed to measurements of them: what makes two rows speak of the same one, and how it is drawn.

use std::cmp::Ordering;

use super::{label_of, method_order, style_of};
use crate::chart::{Row, Style};
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

    /// As everywhere, but the shade of an autoencoder is chosen by its whole setting, not by its size alone.
    pub(super) fn style(&self, dictionary: &Dictionary) -> Style {
        let saes: Vec<&Dictionary> = self.all.iter().filter(|d| palette::family(&d.method) == "sae").collect();
        let mut methods: Vec<&str> = saes.iter().map(|d| d.method.as_str()).collect();
        methods.dedup();
        let mut settings: Vec<Setting> = saes.iter().map(|d| d.setting.clone()).collect();
        settings.sort();
        let mut sizes: Vec<String> = settings.iter().map(|s| label_of("", s)).collect();
        sizes.dedup();
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
