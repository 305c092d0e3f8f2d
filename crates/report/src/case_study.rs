//! Case studies: the tokens behind a feature's activations, and what the feature does to the model's answer; and their file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ReportError;
use crate::entries::{self, Entry, finite};

/// Bins between a feature's smallest and largest activation.
const BINS: usize = 10;

/// A histogram of one feature's activations by token, and the effects of removing the feature.
///
/// Serialises in exactly this key order, in `case-studies.json` beside `results.json`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct CaseStudy {
    /// What made the dictionary, as in result rows: `sae-tied`, ...; `identity` for a dimension of the activation itself.
    pub method: String,
    /// Hook point, as `blocks.3.hook_resid_post`.
    pub hook: String,
    /// Setting of the dictionary, as `ratio=2,alpha=2e-3`; may be empty.
    pub setting: String,
    /// Index of the feature in its dictionary, from 0.
    pub feature: usize,
    /// As a person named it; may be empty.
    pub name: String,
    /// Why it is here: `named`, `largest skew`, ...
    pub picked: String,
    /// Positions looked at.
    pub n_tokens: u64,
    /// Those of them on which the feature is active; at most `n_tokens`.
    pub n_active: u64,
    /// The 11 ascending edges of 10 equal bins of activation.
    pub bins: Vec<f64>,
    /// The most frequent tokens, with the positions in each bin.
    pub tokens: Vec<TokenCounts>,
    /// Positions of all other tokens, for each bin.
    pub other: Vec<u64>,
    /// Tokens whose probability changes most when the feature is removed.
    pub logit_effects: Vec<LogitEffect>,
    /// Positions over which each effect is a mean.
    pub n_contexts: u64,
}

/// How often a token is at the positions of each bin.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct TokenCounts {
    /// Its text, with its own leading space.
    pub token: String,
    /// Positions, for each of the 10 bins.
    pub counts: Vec<u64>,
}

/// What removing a feature does to one token.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct LogitEffect {
    /// Its text, with its own leading space.
    pub token: String,
    /// Mean change of the log-probability that it comes next when the feature is removed, in nats.
    pub change: f64,
}

impl Entry for CaseStudy {
    const FILE: &'static str = "case-studies";
    const ONE: &'static str = "case study";
    const KEYS: &'static str = "method, hook, setting, feature, name, picked, n_tokens, n_active, bins, tokens: [{token, counts}], other, \
                                logit_effects: [{token, change}], n_contexts";

    fn describe(&self) -> String {
        format!("{:?}", (&self.method, &self.hook, &self.setting, self.feature))
    }

    fn fault(&self) -> Option<String> {
        if self.n_active > self.n_tokens {
            return Some(format!("it is active on {} of {} positions", self.n_active, self.n_tokens));
        }
        if self.bins.len() != BINS + 1 {
            return Some(format!("bins has {} edges, expected {}", self.bins.len(), BINS + 1));
        }
        if let Some(fault) = self.bins.iter().find_map(|edge| finite("an edge of bins", Some(*edge))) {
            return Some(fault);
        }
        if let Some(pair) = self.bins.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Some(format!("bins has {} before {}, expected ascending edges", pair[0], pair[1]));
        }
        let listed = self.tokens.iter().map(|t| (format!("counts of token {:?}", t.token), t.counts.len()));
        let others = ("other".to_owned(), self.other.len());
        if let Some((what, found)) = listed.chain([others]).find(|(_, found)| *found != BINS) {
            return Some(format!("{what} has {found} numbers, expected {BINS}, one for each bin"));
        }
        let of_effect =
            |e: &LogitEffect| Some(format!("effect on {:?}: {}", e.token, finite("change", Some(e.change))?));
        self.logit_effects.iter().find_map(of_effect)
    }
}

/// Reads a file of case studies: a JSON array of them.
///
/// # Errors
/// The file cannot be read, is not an array of studies with exactly the keys of [`CaseStudy`], or one of them has lists whose
/// lengths do not fit, bins that do not ascend or a number that is not finite; file and study are named.
pub fn read_case_studies(path: &Path) -> Result<Vec<CaseStudy>, ReportError> {
    entries::read(path)
}

/// Writes a file of case studies: a JSON array with one study per line, in the order given, which the report keeps.
///
/// The file appears whole or not at all: it is written beside its place and renamed.
///
/// # Errors
/// As for [`read_case_studies`], and nothing is written; or the file cannot be written.
pub fn write_case_studies(path: &Path, studies: &[CaseStudy]) -> Result<(), ReportError> {
    entries::write(path, studies)
}
