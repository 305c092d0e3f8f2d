use monosem_hooks::HookedModel;
use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};

use crate::PatchingError;
use crate::evaluation::log_odds;
use crate::pass::{batches, check_tokens, last_logits, padded_tokens};

/// A prompt and its counterfactual, as tokens.
///
/// The counterfactual ("target") prompt has as many tokens and another right answer. An answer is a set of tokens, any of which will do, because
/// a year that is late enough or a verb in the plural is not one token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// The prompt, which ends before the answer.
    pub text: String,
    /// The counterfactual.
    pub target_text: String,
    /// Tokens of the prompt.
    pub tokens: Vec<u32>,
    /// Tokens of the counterfactual, as many.
    pub target_tokens: Vec<u32>,
    /// The answer to the prompt.
    pub answers: Vec<u32>,
    /// The answer to the counterfactual; shares no token with [`Self::answers`].
    pub target_answers: Vec<u32>,
    /// What the answer to the prompt has to beat for a model to be right: the subject's name in indirect object identification.
    pub wrong: Vec<u32>,
    /// Place of the template in the task's list, from 0.
    pub template: usize,
    /// Positions with a name, ascending.
    pub marks: Vec<Mark>,
}

/// A position with a name, as `IO` or `END`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The name.
    pub name: String,
    /// The position.
    pub position: usize,
}

impl Mark {
    pub(crate) fn new(name: &str, position: usize) -> Self {
        Self { name: name.to_owned(), position }
    }
}

impl Prompt {
    /// Position of the last token, after which the answer is expected.
    #[must_use]
    pub fn end(&self) -> usize {
        self.tokens.len() - 1
    }

    /// The first position at which the counterfactual has another token.
    #[must_use]
    pub fn first_change(&self) -> usize {
        let same = self.tokens.iter().zip(&self.target_tokens).take_while(|(a, b)| a == b).count();
        same.min(self.end())
    }

    /// The position called so.
    #[must_use]
    pub fn position(&self, mark: &str) -> Option<usize> {
        self.marks.iter().find(|m| m.name == mark).map(|m| m.position)
    }

    /// `ln P(target answers) - ln P(answers)` of logits `[d_vocab]`: a difference of logits where each is one token.
    pub(crate) fn logit_diff(&self, logits: ArrayView1<'_, f32>) -> f64 {
        log_odds(logits, &self.target_answers, &self.answers)
    }
}

/// How well a model does the task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// `ln P(answers) - ln P(wrong)` after each prompt; `logit(IO) - logit(S)` in indirect object identification.
    pub logit_diff: Vec<f64>,
}

impl Accuracy {
    /// Share of prompts whose answer beats what is wrong.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.logit_diff.iter().filter(|diff| **diff > 0.0).count() as f64 / self.logit_diff.len() as f64
    }

    /// Mean of [`Self::logit_diff`].
    #[must_use]
    pub fn mean_logit_diff(&self) -> f64 {
        self.logit_diff.iter().sum::<f64>() / self.logit_diff.len() as f64
    }
}

/// Runs the prompts, unpatched.
///
/// # Errors
/// If a prompt is longer than the model's context or a token is not in its vocabulary.
pub fn accuracy(model: &dyn HookedModel, prompts: &[Prompt]) -> Result<Accuracy, PatchingError> {
    prompts.iter().try_for_each(|prompt| check_prompt(model, prompt))?;
    let lengths: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
    let mut logit_diff = vec![0.0; prompts.len()];
    for batch in batches(&lengths) {
        let tokens = padded_tokens(&batch.iter().map(|&i| prompts[i].tokens.as_slice()).collect::<Vec<_>>());
        let ends: Vec<usize> = batch.iter().map(|&i| prompts[i].end()).collect();
        let logits = last_logits(model, tokens.view(), &ends, &mut |_, _| {});
        for (&i, logits) in batch.iter().zip(logits.rows()) {
            logit_diff[i] = log_odds(logits, &prompts[i].answers, &prompts[i].wrong);
        }
    }
    Ok(Accuracy { logit_diff })
}

/// Checks that the model can run a prompt and its counterfactual, and has tokens for their answers.
pub(crate) fn check_prompt(model: &dyn HookedModel, prompt: &Prompt) -> Result<(), PatchingError> {
    check_tokens(model, &prompt.tokens)?;
    check_tokens(model, &prompt.target_tokens)?;
    for answers in [&prompt.answers, &prompt.target_answers, &prompt.wrong] {
        let n_tokens = prompt.tokens.len();
        let problem = if answers.is_empty() {
            "an answer has no token".to_owned()
        } else {
            match answers.iter().find(|token| **token as usize >= model.d_vocab()) {
                None => continue,
                Some(token) => format!("the answer {token} is not in the vocabulary of {}", model.d_vocab()),
            }
        };
        return Err(PatchingError::Tokens { n_tokens, problem });
    }
    Ok(())
}
