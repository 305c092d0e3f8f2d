use monosem_hooks::HookedModel;
use serde::{Deserialize, Serialize};

use crate::PatchingError;
use crate::pass::{Start, batches, check_tokens, last_logits, padded_tokens};

/// A prompt of indirect object identification and its counterfactual, as tokens.
///
/// The counterfactual ("target") prompt has a third name in the place of IO and is the same otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoiPrompt {
    /// The prompt; the answer would follow after a space.
    pub text: String,
    /// Tokens of the prompt.
    pub tokens: Vec<u32>,
    /// Tokens of the counterfactual, as many.
    pub target_tokens: Vec<u32>,
    /// The indirect object's name, the answer to the prompt.
    pub io: u32,
    /// The subject's name, which occurs twice.
    pub s: u32,
    /// The name in the place of IO, the answer to the counterfactual.
    pub third: u32,
    /// Place of the template in the task's list, from 0.
    pub template: usize,
    /// Position of IO, and of the third name in the counterfactual.
    pub io_position: usize,
    /// Position of the first occurrence of S.
    pub s1_position: usize,
    /// Position of the second occurrence of S.
    pub s2_position: usize,
}

impl IoiPrompt {
    /// Finds the names' positions and checks that the two prompts differ in the one token that names IO.
    pub(crate) fn new(
        text: String,
        [tokens, target_tokens]: [Vec<u32>; 2],
        [io, s, third]: [u32; 3],
        template: usize,
    ) -> Result<Self, String> {
        let places = |name: u32| tokens.iter().enumerate().filter(move |(_, t)| **t == name).map(|(i, _)| i);
        if tokens.len() != target_tokens.len() {
            return Err(format!("{text:?} has {} tokens, its counterfactual {}", tokens.len(), target_tokens.len()));
        }
        let (Some(io_position), 1) = (places(io).next(), places(io).count()) else {
            return Err(format!("{text:?} does not hold the token {io} of IO once"));
        };
        let differ = |i: &usize| tokens[*i] != target_tokens[*i];
        if (0..tokens.len()).filter(differ).ne([io_position]) || target_tokens[io_position] != third {
            return Err(format!("the counterfactual of {text:?} differs in more than the token of IO"));
        }
        let [s1_position, s2_position] = places(s).collect::<Vec<_>>()[..] else {
            return Err(format!("{text:?} does not hold the token {s} of S twice"));
        };
        if places(third).next().is_some() {
            return Err(format!("{text:?} holds the token {third} of the third name"));
        }
        Ok(Self { text, tokens, target_tokens, io, s, third, template, io_position, s1_position, s2_position })
    }

    /// Position of the last token, after which the answer is expected.
    #[must_use]
    pub fn end(&self) -> usize {
        self.tokens.len() - 1
    }
}

/// How well a model does the task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// `logit(IO) - logit(S)` after each prompt.
    pub logit_diff: Vec<f64>,
}

impl Accuracy {
    /// Share of prompts with `logit(IO) > logit(S)`.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.logit_diff.iter().filter(|diff| **diff > 0.0).count() as f64 / self.logit_diff.len() as f64
    }

    /// Mean of `logit(IO) - logit(S)`.
    #[must_use]
    pub fn mean_logit_diff(&self) -> f64 {
        self.logit_diff.iter().sum::<f64>() / self.logit_diff.len() as f64
    }
}

/// Runs the prompts, unpatched.
///
/// # Errors
/// If a prompt is longer than the model's context or a token is not in its vocabulary.
pub fn accuracy(model: &dyn HookedModel, prompts: &[IoiPrompt]) -> Result<Accuracy, PatchingError> {
    prompts.iter().try_for_each(|prompt| check_tokens(model, &prompt.tokens))?;
    let lengths: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
    let mut logit_diff = vec![0.0; prompts.len()];
    for batch in batches(&lengths) {
        let tokens = padded_tokens(&batch.iter().map(|&i| prompts[i].tokens.as_slice()).collect::<Vec<_>>());
        let ends: Vec<usize> = batch.iter().map(|&i| prompts[i].end()).collect();
        let logits = last_logits(model, Start::Tokens(tokens.view()), &ends, &mut |_, _| {});
        for (&i, logits) in batch.iter().zip(logits.rows()) {
            let [io, s] = [prompts[i].io, prompts[i].s].map(|name| f64::from(logits[name as usize]));
            logit_diff[i] = io - s;
        }
    }
    Ok(Accuracy { logit_diff })
}
