use crate::Score;

/// A fragment and what one feature does on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExampleRef<'a> {
    /// The whole fragment `[length]`.
    pub tokens: &'a [u32],
    /// The feature's activations on the last tokens of the fragment, at most `length` of them. The tokens before (an attention
    /// sink, say) are context: they are neither fitted nor scored.
    pub activations: &'a [f32],
}

impl ExampleRef<'_> {
    /// Number of leading tokens that have no activation.
    ///
    /// # Panics
    /// If there are more activations than tokens.
    pub fn skip(&self) -> usize {
        let (tokens, activations) = (self.tokens.len(), self.activations.len());
        assert!(activations <= tokens, "{activations} activations on a fragment of {tokens} tokens");
        tokens - activations
    }
}

/// Says of a feature, from examples, what it stands for.
pub trait Explainer {
    /// What it says.
    type Explanation;
    /// Why it may have nothing to say; [`std::convert::Infallible`] for what is computed on the spot.
    type Error;

    /// The explanation of one feature.
    ///
    /// # Errors
    /// As the explainer documents.
    fn explain(&self, examples: &[ExampleRef<'_>]) -> Result<Self::Explanation, Self::Error>;
}

/// Guesses a feature's activations from the explanation alone.
pub trait Simulator<E: ?Sized> {
    /// Why it may fail.
    type Error;

    /// One value for each token, on any linear scale. The value of a token depends on no later token.
    ///
    /// # Errors
    /// As the simulator documents.
    fn simulate(&self, explanation: &E, tokens: &[u32]) -> Result<Vec<f32>, Self::Error>;
}

/// Says how good an explanation is on examples that it was not made from.
pub trait Scorer<E: ?Sized> {
    /// Why it may fail.
    type Error;

    /// The score on the `top` and the `random` examples of one feature.
    ///
    /// # Errors
    /// As the scorer documents.
    fn score(&self, explanation: &E, top: &[ExampleRef<'_>], random: &[ExampleRef<'_>]) -> Result<Score, Self::Error>;
}
