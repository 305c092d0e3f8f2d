use monosem_llm::Message;
use serde::{Deserialize, Serialize};

use super::LlmConfig;

/// A way to score an explanation, or a feature without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScorerKind {
    /// Correlation of a list of patterns' values with the activations: see [`crate::CorrelationScorer`]. Asks no model. Chance: 0.
    Patterns,
    /// Correlation of the activations with what a model expects of them, read off its probabilities of the digits after each token (Bills et al. 2023,
    /// and arXiv 2309.08600). Needs the log-probabilities of a prompt. Chance: 0.
    Simulation,
    /// The same with the values written out by the model for a whole fragment in one reply. Chance: 0.
    ChatSimulation,
    /// Balanced accuracy of telling windows on which the feature is active from such on which it is quiet. Chance: 1/2, also for a constant answer.
    Detection,
    /// Balanced accuracy of telling active tokens, marked in a window, from marks elsewhere in windows as active. Chance: 1/2.
    Fuzzing,
    /// How often the one quiet window among active ones is found, without an explanation: whether the feature means one thing at all. Chance: 1 in the
    /// number of windows.
    Intruder,
    /// Area under the ROC curve of the gain in log-likelihood that an explanation brings to a window, for active against quiet windows. Needs the
    /// log-probabilities of a prompt, and no embeddings. Chance: 1/2.
    Surprisal,
}

impl ScorerKind {
    /// All, in the order they are reported in.
    pub const ALL: [Self; 7] = [
        Self::Patterns,
        Self::Simulation,
        Self::ChatSimulation,
        Self::Detection,
        Self::Fuzzing,
        Self::Intruder,
        Self::Surprisal,
    ];

    /// Its name on command lines and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Patterns => "patterns",
            Self::Simulation => "simulation",
            Self::ChatSimulation => "chat-simulation",
            Self::Detection => "detection",
            Self::Fuzzing => "fuzzing",
            Self::Intruder => "intruder",
            Self::Surprisal => "surprisal",
        }
    }

    /// What the figure is.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Patterns | Self::Simulation | Self::ChatSimulation => "correlation",
            Self::Detection | Self::Fuzzing => "balanced accuracy",
            Self::Intruder => "accuracy",
            Self::Surprisal => "AUC",
        }
    }

    /// What a scorer that knows nothing gets.
    #[must_use]
    pub fn chance(self, config: &LlmConfig) -> f64 {
        match self {
            Self::Patterns | Self::Simulation | Self::ChatSimulation => 0.0,
            Self::Detection | Self::Fuzzing | Self::Surprisal => 0.5,
            Self::Intruder => 1.0 / config.intruder_choices as f64,
        }
    }

    /// Whether it needs fragments on which the feature is quiet.
    #[must_use]
    pub fn needs_quiet(self) -> bool {
        matches!(self, Self::Detection | Self::Intruder | Self::Surprisal)
    }

    /// Whether it reads the probabilities of a prompt's tokens, which chat services do not give.
    #[must_use]
    pub fn needs_prompt_scores(self) -> bool {
        matches!(self, Self::Simulation | Self::Surprisal)
    }
}

impl std::fmt::Display for ScorerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for ScorerKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("expected one of {}", names()))
    }
}

/// Why a feature has no score. Such a feature is neither 0 nor left out: it is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Unscored {
    /// Not enough text on which the feature is active.
    #[error("too few fragments on which it is active")]
    TooFewFragments,
    /// Not enough text on which it is quiet.
    #[error("{found} fragments on which it is quiet, {needed} needed")]
    TooFewQuiet {
        /// Found.
        found: usize,
        /// Asked for.
        needed: usize,
    },
    /// Active windows have no tokens left to mark wrongly.
    #[error("active on nearly every token: there is nothing else to mark")]
    NothingElseToMark,
    /// The model gave no explanation.
    #[error("no explanation: {why}")]
    NotExplained {
        /// What it gave instead.
        why: String,
    },
    /// Too many replies could not be used.
    #[error("of {asked} replies {unparsed} could not be read and {refused} were refused")]
    Replies {
        /// Requests.
        asked: u32,
        /// Replies of another form than asked for.
        unparsed: u32,
        /// Replies withheld.
        refused: u32,
    },
}

/// A prompt and what came back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    /// Name, version and hash of the template.
    pub template: String,
    /// The conversation; empty where a text was scored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// The text that was scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What came back: the reply, or the numbers read off the scores.
    pub reply: String,
    /// Why it could not be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a scorer says of one feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Which scorer.
    pub scorer: ScorerKind,
    /// The score in [`ScorerKind::unit`]; none if the feature is unscored.
    pub value: Option<f64>,
    /// On the strongest fragments only.
    pub top: Option<f64>,
    /// On random active fragments only.
    pub random: Option<f64>,
    /// What a scorer that knows nothing gets.
    pub chance: f64,
    /// `(value - chance) / (1 - chance)`: 0 for knowing nothing, 1 for knowing all.
    pub corrected: Option<f64>,
    /// 95 % interval of `value` by the bootstrap over fragments, windows or trials, taken for independent although windows of one prompt and trials of one feature
    /// are not quite.
    pub interval: Option<(f64, f64)>,
    /// Area under the ROC curve, where the model told how sure it was.
    pub auc: Option<f64>,
    /// Requests.
    pub asked: u32,
    /// Replies that could not be read.
    pub unparsed: u32,
    /// Replies withheld.
    pub refused: u32,
    /// Why there is no score.
    pub unscored: Option<Unscored>,
    /// Every prompt and reply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exchanges: Vec<Exchange>,
}

impl Verdict {
    /// Of a feature that this scorer says nothing of.
    #[must_use]
    pub fn unscored(scorer: ScorerKind, chance: f64, why: Unscored) -> Self {
        Self {
            scorer,
            value: None,
            top: None,
            random: None,
            chance,
            corrected: None,
            interval: None,
            auc: None,
            asked: 0,
            unparsed: 0,
            refused: 0,
            unscored: Some(why),
            exchanges: Vec::new(),
        }
    }

    pub(crate) fn set(&mut self, value: Option<f64>) {
        self.value = value;
        self.corrected = value.map(|value| (value - self.chance) / (1.0 - self.chance));
    }
}
