use std::fmt;

use serde::{Deserialize, Serialize};

use crate::CorpusError;

/// How a text becomes contexts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusConfig {
    /// Tokens in a context.
    pub context: usize,
    /// At most so many tokens in all splits together; each split gets its share of them, rounded down to whole contexts,
    /// and reading stops when all have theirs. `None` takes everything.
    pub max_tokens: Option<usize>,
    /// The field of a `.jsonl` line that holds the text.
    #[serde(default = "default_field")]
    pub field: String,
    /// The order in which the files of a folder are read.
    #[serde(default)]
    pub file_order: FileOrder,
    /// Draws the split of each document, the order of the contexts and, where asked for, that of the files.
    pub seed: u64,
    /// Shares of the held-out and the interpretation split.
    pub splits: SplitFractions,
}

fn default_field() -> String {
    "text".to_owned()
}

/// The order in which the files of a folder are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileOrder {
    /// By name: a file added at the end changes nothing of what comes before it.
    #[default]
    Sorted,
    /// Drawn from the seed: with `max_tokens`, what is read is a fair sample of a folder whose names follow its subjects.
    Seeded,
}

/// Shares of the documents, from 0 to 1; what is left is for training. A split with the share 0 stays empty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitFractions {
    /// Documents that nothing is fitted on, for measuring.
    pub held_out: f64,
    /// Documents that explanations of latents are made from and scored on.
    pub interpretation: f64,
}

impl CorpusConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`CorpusError::Config`] names the field, its value and the valid range.
    pub fn validate(&self) -> Result<(), CorpusError> {
        let bad = |key, why: String| Err(CorpusError::Config { key, why });
        if self.context == 0 {
            return bad("context", "is 0, expected at least 1 token".into());
        }
        if let Some(max) = self.max_tokens.filter(|max| *max < self.context) {
            return bad("max_tokens", format!("is {max}, less than one context of {}", self.context));
        }
        if self.field.is_empty() {
            return bad("field", "is empty, expected the name of a JSON field such as `text`".into());
        }
        let SplitFractions { held_out, interpretation } = self.splits;
        for (key, share) in [("splits.held_out", held_out), ("splits.interpretation", interpretation)] {
            if !(0.0..1.0).contains(&share) {
                return bad(key, format!("is {share}, expected a share from 0 up to 1"));
            }
        }
        if held_out + interpretation >= 1.0 {
            return bad("splits", format!("{held_out} and {interpretation} leave nothing for training"));
        }
        Ok(())
    }

    /// The most contexts that a split may have.
    pub(crate) fn quota(&self, split: Split) -> usize {
        match self.max_tokens {
            // The small addend keeps 0.3 * 10 from being rounded down to 2.
            Some(max) => (self.splits.share(split) * max as f64 / self.context as f64 + 1e-9) as usize,
            None if self.splits.share(split) > 0.0 => usize::MAX,
            None => 0,
        }
    }
}

impl SplitFractions {
    /// The share of a split.
    pub fn share(&self, split: Split) -> f64 {
        match split {
            Split::Train => 1.0 - self.held_out - self.interpretation,
            Split::HeldOut => self.held_out,
            Split::Interpretation => self.interpretation,
        }
    }
}

/// What a document is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Dictionaries are fitted on it.
    Train,
    /// Measured on, fitted on never.
    HeldOut,
    /// Latents are explained from it.
    Interpretation,
}

impl Split {
    /// All splits, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::Train, Self::HeldOut, Self::Interpretation];

    /// The split of the document with this index (counted from 0 in the order of the source).
    ///
    /// A BLAKE3 hash of the seed and the index, read as a number `u` in [0, 1), decides: held out if `u < held_out`, else
    /// interpretation if `u < held_out + interpretation`, else train. So documents added at the end change nothing before.
    pub fn of_document(index: u32, seed: u64, fractions: &SplitFractions) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("monosem corpus split of a document");
        hasher.update(&seed.to_le_bytes()).update(&u64::from(index).to_le_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        // The upper 53 bits make an exact f64 below 1.
        let u = (u64::from_le_bytes(first) >> 11) as f64 / (1u64 << 53) as f64;
        if u < fractions.held_out {
            Self::HeldOut
        } else if u < fractions.held_out + fractions.interpretation {
            Self::Interpretation
        } else {
            Self::Train
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
            Self::Interpretation => "interpretation",
        })
    }
}
