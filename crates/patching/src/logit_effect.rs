use monosem_dictionary::Dictionary;
use monosem_hooks::HookedModel;

use crate::evaluation::Distribution;
use crate::pass::check_tokens;
use crate::{Intervention, Occurrence, PatchingError, Steering, TokenChange};

/// What an intervention at single positions does to the token that comes next, mean over the positions.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitEffect {
    /// Positions: the last ones of so many texts.
    pub n_texts: usize,
    /// For each token of the vocabulary the means of its log-probability, in nats, without the intervention and with it.
    pub changes: Vec<TokenChange>,
    /// For each token the means of its probability without and with.
    p: Vec<[f64; 2]>,
}

impl LogitEffect {
    /// The `n` tokens whose log-probability changes most, either way, the largest change first. Tokens whose mean probability is below `floor`
    /// both without and with the intervention are left out.
    #[must_use]
    pub fn largest(&self, n: usize, floor: f64) -> Vec<TokenChange> {
        let probable = |(_, [base, steered]): &(&TokenChange, &[f64; 2])| base.max(*steered) >= floor;
        let mut changes: Vec<TokenChange> =
            self.changes.iter().zip(&self.p).filter(probable).map(|(change, _)| *change).collect();
        let size = |c: &TokenChange| (c.steered - c.base).abs();
        changes.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.token.cmp(&b.token)));
        changes.truncate(n);
        changes
    }
}

/// Changes features at the last position of each text, and at no other, and takes the mean of what that does to the next token: with
/// [`Change::Ablate`](crate::Change::Ablate) what a feature does where it is active, by `x' = x - c f` (figure 11 of arXiv 2309.08600).
///
/// # Errors
/// As [`Steering::new`] and [`Steering::steer`], or if there is no text.
pub fn logit_effect(
    model: &dyn HookedModel,
    dictionary: &dyn Dictionary,
    intervention: &Intervention,
    texts: &[Occurrence],
) -> Result<LogitEffect, PatchingError> {
    if texts.is_empty() {
        return Err(PatchingError::Setting { setting: "texts", problem: "expected one or more".into() });
    }
    let d_vocab = model.d_vocab();
    let mut p = vec![[0.0; 2]; d_vocab];
    let mut log_p = vec![[0.0; 2]; d_vocab];
    for text in texts {
        check_tokens(model, &text.tokens)?;
        let earlier: Vec<usize> = (0..text.tokens.len() - 1).collect();
        let steering = Steering::new(model, dictionary, std::slice::from_ref(intervention), &earlier)?;
        let steered = steering.steer(&text.tokens)?;
        for (i, logits) in [&steered.base, &steered.steered].into_iter().enumerate() {
            let distribution = Distribution::of(logits.view());
            p.iter_mut().zip(distribution.p()).for_each(|(sum, p)| sum[i] += p);
            log_p.iter_mut().zip(distribution.log_p()).for_each(|(sum, log_p)| sum[i] += log_p);
        }
    }
    let n = texts.len() as f64;
    p.iter_mut().flatten().for_each(|sum| *sum /= n);
    let change =
        |(token, [base, steered]): (u32, [f64; 2])| TokenChange { token, base: base / n, steered: steered / n };
    Ok(LogitEffect { n_texts: texts.len(), changes: (0u32..).zip(log_p).map(change).collect(), p })
}
