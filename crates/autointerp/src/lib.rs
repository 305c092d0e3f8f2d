#![doc = include_str!("../README.md")]

mod candidates;
mod classes;
mod comparison;
mod delphi;
mod error;
mod examples;
mod explain;
mod explanation;
mod gather;
mod histogram;
mod llm;
mod pattern;
mod records;
mod sample;
mod score;
mod seam;
mod statistics;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use classes::TokenClass;
pub use comparison::{Comparison, centred_p_value, difference, holm, paired_difference, percentile_p_value};
pub use delphi::{DelphiCache, DelphiConfig, DelphiError};
pub use error::ConfigError;
pub use examples::{Example, FeatureExamples, Fragments, Moments, Quiet};
pub use explain::{PatternConfig, PatternExplainer};
pub use explanation::{PatternExplanation, PatternSimulator, Rule};
pub use gather::{GatherConfig, Gatherer, SplitRule};
pub use histogram::TokenHistogram;
pub use llm::{
    Evidence, Exchange, ExplainerKind, Interpreter, LlmConfig, Prompts, QuietRef, ScorerKind, Template, TemplateError,
    Unscored, Verdict, Written,
};
pub use pattern::{Pattern, WINDOWS};
pub use records::{
    FeatureRecord, Purpose, RecordError, ShownExample, read_explanations, read_records, shown_examples, write_records,
};
pub use score::{Budget, CorrelationScorer, CurvePoint, Score, score_curve};
pub use seam::{ExampleRef, Explainer, Scorer, Simulator};
pub use statistics::{Summary, auc, bootstrap, bootstrap_mean, correlation, derangement, mean, rank_correlation};
pub use vocabulary::{Vocabulary, WordPiece};
