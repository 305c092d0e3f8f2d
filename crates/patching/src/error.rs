use monosem_hooks::HookPoint;

/// Why prompts could not be made, or a model could not be patched.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PatchingError {
    /// The text of a task is not TOML of the expected form.
    #[error("{origin}: {problem}")]
    Parse {
        /// Where the text came from.
        origin: String,
        /// What the reader of TOML said, with line and column.
        problem: String,
    },
    /// A template or a list of a task makes no sense.
    #[error("{origin}: {what}: {problem}")]
    Task {
        /// Where the task came from.
        origin: String,
        /// The list, or the template by its place in the list, from 0.
        what: String,
        /// What was expected of it.
        problem: String,
    },
    /// The tokenizer makes one token of no name.
    #[error("no name of the task is a single token of this vocabulary: {name:?} adds {n_tokens} tokens to {before:?}")]
    NoSingleTokenName {
        /// The first name of the list.
        name: String,
        /// How many tokens it adds.
        n_tokens: usize,
        /// The prompt it was put after.
        before: String,
    },
    /// A half of the names is too small for three in one prompt.
    #[error(
        "too few names: settings are chosen by one half of them and results reported on the other, each half needs 3, and one has {found}; of \
         the {listed} names in the task {of} are single tokens of this vocabulary, expected 6 or more"
    )]
    TooFewNames {
        /// Names in the half.
        found: usize,
        /// Names that are single tokens, in both halves.
        of: usize,
        /// Names in the task.
        listed: usize,
    },
    /// A half of the templates is empty.
    #[error(
        "too few templates: settings are chosen by one half of them and results reported on the other, and one half is empty; the task has \
         {listed}, expected two or more with one order of the names (ABBA or BABA)"
    )]
    TooFewTemplates {
        /// Templates in the task.
        listed: usize,
    },
    /// A template gave no new prompt however often names, places and objects were drawn.
    #[error("template {template} gave no new prompt in {attempts} attempts after {found} prompts: {problem}")]
    NoPrompt {
        /// Place of the template in the list, from 0.
        template: usize,
        /// Draws that were made.
        attempts: usize,
        /// Prompts that were made before.
        found: usize,
        /// Why the last draw was of no use.
        problem: String,
    },
    /// There is nothing to patch.
    #[error("no prompts: expected one or more")]
    NoPrompts,
    /// The model has no such place.
    #[error("the model has no hook point {hook}: it has {n_layers} layers, and not every architecture has every site")]
    NoHookPoint {
        /// The place asked for.
        hook: HookPoint,
        /// Blocks of the model.
        n_layers: usize,
    },
    /// A dictionary reads activations of another width than the hook point has.
    #[error("the dictionary reads activations {d_in} wide, but {hook} is {width} wide")]
    Width {
        /// Width that the dictionary reads.
        d_in: usize,
        /// The place asked for.
        hook: HookPoint,
        /// Its width.
        width: usize,
    },
    /// A text cannot be run.
    #[error("the text of {n_tokens} tokens cannot be run: {problem}")]
    Tokens {
        /// Length of the text.
        n_tokens: usize,
        /// What was expected.
        problem: String,
    },
    /// A setting is out of range.
    #[error("{setting}: {problem}")]
    Setting {
        /// Name of the field.
        setting: &'static str,
        /// What was expected of it.
        problem: String,
    },
    /// A feature is not in the dictionary.
    #[error("feature {feature} is not in a dictionary of {n_latents} latents")]
    NoFeature {
        /// The feature asked for.
        feature: usize,
        /// Latents of the dictionary.
        n_latents: usize,
    },
    /// Activations or logits overflowed.
    #[error("{what} gives numbers that are not finite: the dictionary's weights or the change are too large")]
    NotFinite {
        /// What was done to the model.
        what: &'static str,
    },
    /// The caller ended the work.
    #[error("interrupted")]
    Interrupted,
}

/// Told how much of how much is done; ends the work by [`Break`](std::ops::ControlFlow::Break).
pub type Progress<'a> = dyn FnMut(usize, usize) -> std::ops::ControlFlow<()> + 'a;

pub(crate) fn report(progress: &mut Progress<'_>, done: usize, total: usize) -> Result<(), PatchingError> {
    if progress(done, total).is_break() { Err(PatchingError::Interrupted) } else { Ok(()) }
}
