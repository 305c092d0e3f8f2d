//! Explanations and scores as lines of JSON, one feature to a line, with every example shown and every prompt used.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Example, Exchange, FeatureExamples, Fragments, Verdict, Vocabulary};

/// Why a file of explanations cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{}, line {line}: {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what was expected.
        why: String,
    },
}

/// A feature with its explanation, its scores and all they were made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureRecord {
    /// The dictionary: a method's name and setting, or a path.
    pub dictionary: String,
    /// The hook point it reads.
    pub hook: String,
    /// The control that this is of; none for the thing itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// The feature's number in the dictionary.
    pub feature: usize,
    /// What it stands for, in a line; none where nobody could say.
    pub explanation: Option<String>,
    /// How the explanation was made: `patterns`, `integers`, `windows`, or `imported`.
    pub explainer: String,
    /// The model that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The prompt and the reply behind the explanation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Exchange>,
    /// A verdict for each scorer.
    pub verdicts: Vec<Verdict>,
    /// The fragments that it was explained from and scored on.
    pub examples: Vec<ShownExample>,
}

/// What a fragment was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To explain from.
    Explain,
    /// To score on; one of the strongest.
    ScoreTop,
    /// To score on; a random one on which the feature is active.
    ScoreRandom,
    /// To score on; the feature is quiet there.
    Quiet,
}

/// A fragment as it was shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShownExample {
    /// What it was for.
    pub purpose: Purpose,
    /// The document it is from.
    pub document: u32,
    /// Its number among the fragments.
    pub fragment: u32,
    /// The text of its tokens.
    pub tokens: Vec<String>,
    /// The activations on the last of them; empty where the feature is quiet.
    pub activations: Vec<f32>,
}

/// The fragments of a feature, as they are written to a record.
#[must_use]
pub fn shown_examples(fragments: &Fragments, feature: &FeatureExamples, vocabulary: &Vocabulary) -> Vec<ShownExample> {
    let shown = |purpose, fragment: u32, activations: &[f32]| ShownExample {
        purpose,
        document: fragments.documents[fragment as usize],
        fragment,
        tokens: fragments.tokens_of(fragment).iter().map(|token| vocabulary.text(*token).to_owned()).collect(),
        activations: activations.to_vec(),
    };
    let of = |purpose, examples: &[Example]| -> Vec<ShownExample> {
        examples.iter().map(|e| shown(purpose, e.fragment, &e.activations)).collect()
    };
    let mut all = of(Purpose::Explain, &feature.explain);
    all.extend(of(Purpose::ScoreTop, &feature.score_top));
    all.extend(of(Purpose::ScoreRandom, &feature.score_random));
    all.extend(feature.quiet.iter().map(|quiet| shown(Purpose::Quiet, quiet.fragment, &[])));
    all
}

/// Writes records, a line each. The file appears whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write_records(path: &Path, records: &[FeatureRecord]) -> Result<(), RecordError> {
    let fail = |source| RecordError::Io { path: path.to_owned(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::io::BufWriter::new(fs::File::create(&temporary)?);
        for record in records {
            serde_json::to_writer(&mut file, record)?;
            file.write_all(b"\n")?;
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        fail(e)
    })
}

/// Reads what [`write_records`] wrote.
///
/// # Errors
/// If the file cannot be read or a line is not a record.
pub fn read_records(path: &Path) -> Result<Vec<FeatureRecord>, RecordError> {
    let parse = |value: Value| serde_json::from_value(value).map_err(|e| e.to_string());
    lines(path, parse).map(|records| records.into_iter().map(|(_, record)| record).collect())
}

/// Reads explanations made elsewhere: lines of JSON with `feature` (a number) and `explanation` (a text); whatever else stands there is passed over, and so are
/// lines of a control.
///
/// # Errors
/// If the file cannot be read, a line is of another form, or a feature is explained twice.
pub fn read_explanations(path: &Path) -> Result<BTreeMap<usize, String>, RecordError> {
    let parse = |value: Value| {
        let feature = value["feature"].as_u64().and_then(|n| usize::try_from(n).ok());
        let feature = feature.ok_or("no number \"feature\"")?;
        // Controls have numbers of their own, and explanations that are not the feature's.
        if value.get("control").is_some_and(|control| !control.is_null()) {
            return Ok(None);
        }
        match &value["explanation"] {
            Value::String(text) if !text.trim().is_empty() => Ok(Some((feature, text.trim().to_owned()))),
            // What nobody could explain is written as null.
            Value::Null if value.get("explanation").is_some() => Ok(None),
            _ => Err("no text \"explanation\"".to_owned()),
        }
    };
    let mut explanations = BTreeMap::new();
    for (line, found) in lines(path, parse)? {
        let Some((feature, text)) = found else { continue };
        if explanations.insert(feature, text).is_some() {
            let why = format!("feature {feature} has an explanation already");
            return Err(RecordError::Line { path: path.to_owned(), line, why });
        }
    }
    Ok(explanations)
}

/// Every line of a file that is not empty, parsed, with its number.
fn lines<T>(path: &Path, parse: impl Fn(Value) -> Result<T, String>) -> Result<Vec<(usize, T)>, RecordError> {
    let io = |source| RecordError::Io { path: path.to_owned(), source };
    let mut parsed = Vec::new();
    for (i, line) in BufReader::new(fs::File::open(path).map_err(io)?).lines().enumerate() {
        let (line, number) = (line.map_err(io)?, i + 1);
        if line.trim().is_empty() {
            continue;
        }
        let value = serde_json::from_str(&line).map_err(|e| e.to_string()).and_then(&parse);
        let value = value.map_err(|why| RecordError::Line { path: path.to_owned(), line: number, why })?;
        parsed.push((number, value));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ScorerKind, Unscored};

    fn record(feature: usize, explanation: Option<&str>) -> FeatureRecord {
        let example = ShownExample {
            purpose: Purpose::ScoreTop,
            document: 3,
            fragment: 17,
            tokens: vec![" a\n".into(), "\"}".into()],
            activations: vec![0.1, 1.0 / 3.0],
        };
        FeatureRecord {
            dictionary: "sae".into(),
            hook: "blocks.1.hook_resid_post".into(),
            control: None,
            feature,
            explanation: explanation.map(str::to_owned),
            explainer: "windows".into(),
            model: Some("m".into()),
            asked: None,
            verdicts: vec![Verdict::unscored(ScorerKind::Detection, 0.5, Unscored::TooFewFragments)],
            examples: vec![example],
        }
    }

    #[test]
    fn records_survive_their_file_and_explanations_are_read_from_it() {
        let folder = std::env::temp_dir().join(format!("monosem-records-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("explanations.jsonl");
        let records = [record(4, Some("days")), record(2, None), record(9, Some("a \"quote\"\nand a break"))];
        write_records(&path, &records).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
        assert_eq!(read_records(&path).unwrap(), records);
        let explanations = read_explanations(&path).unwrap();
        assert_eq!(explanations.keys().copied().collect::<Vec<_>>(), [4, 9]);
        fs::write(&path, "{\"feature\": 1, \"explanation\": \"x\"}\n\n{\"feature\": 1, \"explanation\": \"y\"}\n")
            .unwrap();
        let error = read_explanations(&path).unwrap_err().to_string();
        assert!(error.ends_with("line 3: feature 1 has an explanation already"), "{error}");
        let of_control = FeatureRecord { control: Some("shuffled".into()), ..record(4, Some("of another")) };
        write_records(&path, &[record(4, Some("days")), of_control]).unwrap();
        assert_eq!(read_explanations(&path).unwrap(), BTreeMap::from([(4, "days".to_owned())]));
        fs::write(&path, "{\"feature\": 1, \"explanation\": 3}\n").unwrap();
        assert!(read_explanations(&path).unwrap_err().to_string().contains("line 1: no text"));
        fs::write(&path, "{\"feature\": 1, \"expl").unwrap();
        assert!(read_explanations(&path).unwrap_err().to_string().contains("line 1:"));
        assert!(read_records(&folder.join("none")).unwrap_err().to_string().contains("none"));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");
        fs::remove_dir_all(&folder).unwrap();
    }
}
