#![doc = include_str!("../README.md")]

mod candidates;
mod classes;
mod error;
mod examples;
mod explain;
mod explanation;
mod gather;
mod pattern;
mod sample;
mod score;
mod seam;
mod statistics;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use classes::TokenClass;
pub use error::ConfigError;
pub use examples::{Example, FeatureExamples, Fragments, Moments};
pub use explain::{PatternConfig, PatternExplainer};
pub use explanation::{PatternExplanation, PatternSimulator, Rule};
pub use gather::{GatherConfig, Gatherer, SplitRule};
pub use pattern::{Pattern, WINDOWS};
pub use score::{Budget, CorrelationScorer, CurvePoint, Score, score_curve};
pub use seam::{ExampleRef, Explainer, Scorer, Simulator};
pub use statistics::{Summary, correlation, derangement, mean};
pub use vocabulary::{Vocabulary, WordPiece};
