//! Features as a person looks at them: an explanation, a score, and text the feature is active on; and their file.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ReportError;
use crate::row::write_whole;

/// One feature of one dictionary, with its explanation and text it is active on.
///
/// Serialises in exactly this key order, in `features.json` beside `results.json`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct FeatureExample {
    /// Family of experiments, as in [`ResultRow::experiment`](crate::ResultRow::experiment): `interp`, `autointerp`, `ioi` or `task`.
    pub experiment: String,
    /// What made the dictionary, as in result rows: `sae-tied`, `pca`, `ica-oriented`, `identity-relu`, ...
    pub method: String,
    /// Hook point, as `blocks.3.hook_resid_post`.
    pub hook: String,
    /// Setting of the dictionary, as `ratio=2,alpha=2e-3`; may be empty.
    pub setting: String,
    /// Index of the feature in its dictionary, from 0.
    pub feature: usize,
    /// A sentence; may be empty.
    pub explanation: String,
    /// Correlation of predicted with true activations, at the headline length of an explanation, or for `autointerp` the
    /// chance-corrected score of the first scorer; none: not scored.
    pub score: Option<f64>,
    /// Third uncentred moment over the standard deviation cubed, on all tokens.
    pub skew: Option<f64>,
    /// Fourth uncentred moment over the variance squared, on all tokens.
    pub kurtosis: Option<f64>,
    /// A remark, as `acts at S2, END; edit 0.8`; may be empty.
    pub note: String,
    /// Text the feature is active on.
    pub fragments: Vec<Fragment>,
}

/// A piece of text with the activation of one feature on each of its tokens.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Fragment {
    /// How the fragment was chosen: `top` (largest activations) or `random` (any on which the feature is active).
    pub kind: String,
    /// The text of each token, with its own leading space.
    pub tokens: Vec<String>,
    /// The activation on each token; as many as `tokens`.
    pub activations: Vec<f32>,
    /// What the explanation predicts for each token, in the unit of `activations`; as many as `tokens`, or none.
    pub predicted: Vec<f32>,
}

impl FeatureExample {
    /// Names the feature in messages.
    fn describe(&self) -> String {
        format!("{:?}", (&self.experiment, &self.method, &self.hook, &self.setting, self.feature))
    }

    /// Refuses numbers that are not finite and fragments whose lists differ in length.
    pub(crate) fn check(&self) -> Result<(), ReportError> {
        let wrong = |reason: String| Err(ReportError::Feature { feature: self.describe(), reason });
        for (field, number) in [("score", self.score), ("skew", self.skew), ("kurtosis", self.kurtosis)] {
            if let Some(v) = number.filter(|v| !v.is_finite()) {
                return wrong(format!("{field} is {v}, expected a finite number"));
            }
        }
        for (i, fragment) in self.fragments.iter().enumerate() {
            let tokens = fragment.tokens.len();
            for (field, values) in [("activations", &fragment.activations), ("predicted", &fragment.predicted)] {
                if values.len() != tokens && !(field == "predicted" && values.is_empty()) {
                    return wrong(format!("fragment {i} has {tokens} tokens but {} {field}", values.len()));
                }
                if let Some(v) = values.iter().find(|v| !v.is_finite()) {
                    return wrong(format!("fragment {i}: one of its {field} is {v}, expected finite numbers"));
                }
            }
        }
        Ok(())
    }
}

/// Reads a features file: a JSON array of features.
///
/// # Errors
/// The file cannot be read, is not an array of features with exactly the keys of [`FeatureExample`], or holds a fragment whose
/// lists differ in length.
pub fn read_features(path: &Path) -> Result<Vec<FeatureExample>, ReportError> {
    let bytes = fs::read(path).map_err(|source| ReportError::Io { path: path.to_owned(), source })?;
    let features: Vec<FeatureExample> =
        serde_json::from_slice(&bytes).map_err(|source| ReportError::FeatureJson { path: path.to_owned(), source })?;
    features.iter().try_for_each(FeatureExample::check)?;
    Ok(features)
}

/// Writes a features file: a JSON array with one feature per line, in the order given, which the report keeps.
///
/// The file appears whole or not at all: it is written beside its place and renamed.
///
/// # Errors
/// A number is not finite or the lists of a fragment differ in length (the feature is named, nothing is written), or the file
/// cannot be written.
pub fn write_features(path: &Path, features: &[FeatureExample]) -> Result<(), ReportError> {
    let mut text = String::from("[");
    for (i, feature) in features.iter().enumerate() {
        feature.check()?;
        text.push_str(if i == 0 { "\n" } else { ",\n" });
        let line = serde_json::to_string(feature)
            .map_err(|source| ReportError::FeatureJson { path: path.to_owned(), source })?;
        text.push_str(&line);
    }
    text.push_str("\n]\n");
    write_whole(path, text.as_bytes())
}
