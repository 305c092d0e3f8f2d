//! Causal tests of the features of a dictionary.
//!
//! A [`Task`] gives prompts and their counterfactuals: [`IoiTask`], [`MinimalPairs`], [`GreaterThanTask`], or one's own through [`draw_prompts`]. [`Patching`] runs both once; after that any set of features can be moved to
//! what they are in the counterfactual, to see how far the model's answer follows ([`Patching::evaluate`]), which few features carry it
//! ([`Patching::select`], [`Patching::rank_by_single_effect`], [`Curve`]), and where they differ ([`Patching::feature_changes`]). [`Steering`]
//! changes features on any text, and [`logit_effect`] says what that does where a feature is active. [`EditedPrompts`] and [`kl_of_edits`] measure any edit
//! of activations, whether by a dictionary or not.
//!
//! ```
//! use monosem_dictionary::Dictionary;
//! use monosem_hooks::HookedModel;
//! use monosem_patching::{
//!     Curve, Half, IoiTask, Patching, PatchingConfig, PatchingError, Progress, SelectionConfig, Start, accuracy,
//! };
//!
//! /// Features needed for half the effect: chosen on one half of names and templates, counted on the other.
//! fn features_for_half(
//!     model: &dyn HookedModel,
//!     dictionary: &dyn Dictionary,
//!     task: &IoiTask,
//!     encode: &dyn Fn(&str) -> Vec<u32>,
//!     progress: &mut Progress,
//! ) -> Result<Option<usize>, PatchingError> {
//!     let chosen_on = task.prompts(50, 0, Half::Choose, encode)?;
//!     let reported_on = task.prompts(50, 0, Half::Report, encode)?;
//!     println!("the model is right on {:.0} %", 100.0 * accuracy(model, &reported_on)?.share());
//!     let config = PatchingConfig {
//!         hook: "blocks.11.hook_resid_post".parse().expect("a hook point"),
//!         drop_positions: vec![0],
//!         with_error_term: false,
//!     };
//!     let thresholds = SelectionConfig::log_spaced(50);
//!     let selection = Patching::new(model, dictionary, &chosen_on, &config)?
//!         .select(&SelectionConfig { thresholds, seed: 0, start: Start::All }, progress)?;
//!     let other = Patching::new(model, dictionary, &reported_on, &config)?;
//!     let curve = Curve::new(other.unpatched(), selection.sets().into_iter().map(|set| other.evaluate(set)));
//!     Ok(curve.features_for(0.5))
//! }
//! # let _ = features_for_half;
//! ```
//!
//! Conventions: a feature is a latent of the dictionary, by its index; KL in nats and in `f64`; a set's numbers are kept prompt by prompt.

mod attribution;
mod circuit;
mod curve;
mod directions;
mod edits;
mod error;
mod evaluation;
mod intervention;
mod logit_effect;
mod pass;
mod patching;
mod prompt;
mod ranking;
mod run;
mod selection;
mod state;
mod task;

pub use circuit::{Candidate, Circuit, CircuitConfig, CircuitEdge, CircuitLayer, CircuitNode, Occurrence};
pub use curve::{Bootstrap, CountAxis, Curve, Interval};
pub use edits::{ActivationEdit, EditEvaluation, EditFrom, EditPlace, EditedPrompts, kl_of_edits};
pub use error::{PatchingError, Progress};
pub use evaluation::Evaluation;
pub use intervention::{Change, Intervention, Steered, Steering, TokenChange};
pub use logit_effect::{LogitEffect, logit_effect};
pub use patching::{Patching, PatchingConfig};
pub use prompt::{Accuracy, Mark, Prompt, accuracy};
pub use ranking::{FeatureChange, SingleEffect};
pub use selection::{Accepted, Selection, SelectionConfig, Start};
pub use state::State;
pub use task::{
    Class, Encode, GreaterThanTask, Half, IoiTask, MinimalPairs, NameOrder, Pair, Task, Template, draw_prompts,
    parse_task,
};
