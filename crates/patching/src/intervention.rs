use std::collections::HashSet;
use std::ops::ControlFlow;

use monosem_dictionary::Dictionary;
use monosem_hooks::{HookPoint, HookedModel};
use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut3, aview1};
use serde::{Deserialize, Serialize};

use crate::PatchingError;
use crate::directions::directions;
use crate::evaluation::Distribution;
use crate::pass::{check_hook, check_tokens, last_logits};

/// What becomes of a code.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// It is multiplied.
    Scale(f32),
    /// It is zero.
    Ablate,
    /// It has this value, also where the feature was not active.
    Set(f32),
}

impl Change {
    fn of(self, code: f32) -> f32 {
        match self {
            Self::Scale(factor) => factor * code,
            Self::Ablate => 0.0,
            Self::Set(value) => value,
        }
    }
}

/// A change of features wherever a model runs: `x' = x + sum_j (c'_j - c_j) f_j`. What the dictionary does not explain of `x` stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intervention {
    /// Where the dictionary reads and the features are changed.
    pub hook: HookPoint,
    /// The features.
    pub features: Vec<usize>,
    /// What becomes of their codes.
    pub change: Change,
}

/// A model whose features are changed while it runs.
pub struct Steering<'a> {
    model: &'a dyn HookedModel,
    dictionary: &'a dyn Dictionary,
    drop_positions: &'a [usize],
    edits: Vec<Edit>,
}

/// One intervention with its features' decoder rows `[feature, d_in]`.
struct Edit {
    intervention: Intervention,
    directions: Array2<f32>,
}

/// Next-token logits without and with interventions.
#[derive(Debug, Clone, PartialEq)]
pub struct Steered {
    /// Logits `[d_vocab]` of the model as it is.
    pub base: Array1<f32>,
    /// Logits `[d_vocab]` with the interventions.
    pub steered: Array1<f32>,
}

/// What interventions do to one token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenChange {
    /// The token.
    pub token: u32,
    /// Its log-probability without interventions, in nats.
    pub base: f64,
    /// With them.
    pub steered: f64,
}

impl Steered {
    /// The `n` tokens whose log-probability changes most, either way, the largest change first. Tokens less probable than `floor` both
    /// without and with the interventions are left out: large changes of what never occurs say little.
    #[must_use]
    pub fn changes(&self, n: usize, floor: f64) -> Vec<TokenChange> {
        let [base, steered] = [&self.base, &self.steered].map(|logits| Distribution::of(logits.view()));
        let (base, steered) = (base.log_p().iter().copied(), steered.log_p().iter().copied());
        let change = |(token, (base, steered))| TokenChange { token, base, steered };
        let mut changes: Vec<TokenChange> =
            (0u32..).zip(base.zip(steered)).map(change).filter(|c| c.base.max(c.steered) >= floor.ln()).collect();
        let size = |c: &TokenChange| (c.steered - c.base).abs();
        changes.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.token.cmp(&b.token)));
        changes.truncate(n);
        changes
    }
}

impl<'a> Steering<'a> {
    /// Checks the interventions. At `drop_positions` nothing is changed: position 0 is an attention sink in most models.
    ///
    /// # Errors
    /// If the model has no such hook point, the dictionary reads another width, a feature is not in the dictionary or is changed twice at one
    /// hook point, or a value is not finite.
    pub fn new(
        model: &'a dyn HookedModel,
        dictionary: &'a dyn Dictionary,
        interventions: &[Intervention],
        drop_positions: &'a [usize],
    ) -> Result<Self, PatchingError> {
        let n_latents = dictionary.n_latents();
        let mut seen = HashSet::new();
        for intervention in interventions {
            check_hook(model, intervention.hook, dictionary.d_in())?;
            let finite = matches!(intervention.change, Change::Scale(v) | Change::Set(v) if v.is_finite());
            if !finite && intervention.change != Change::Ablate {
                let problem = format!("expected a finite number, not {:?}", intervention.change);
                return Err(PatchingError::Setting { setting: "change", problem });
            }
            for &feature in &intervention.features {
                if feature >= n_latents {
                    return Err(PatchingError::NoFeature { feature, n_latents });
                }
                if !seen.insert((intervention.hook, feature)) {
                    let problem = format!("{feature} is named twice at {}", intervention.hook);
                    return Err(PatchingError::Setting { setting: "features", problem });
                }
            }
        }
        let edit = |i: &Intervention| Edit { intervention: i.clone(), directions: directions(dictionary, &i.features) };
        Ok(Self { model, dictionary, drop_positions, edits: interventions.iter().map(edit).collect() })
    }

    /// The next token's logits after a text, without and with the interventions.
    ///
    /// # Errors
    /// If the text is empty, longer than the model's context, or holds a token that is not in its vocabulary, or the change is so large
    /// that logits overflow.
    pub fn steer(&self, tokens: &[u32]) -> Result<Steered, PatchingError> {
        check_tokens(self.model, tokens)?;
        Ok(Steered { base: self.logits(tokens, false)?, steered: self.logits(tokens, true)? })
    }

    /// Continues a text by `n` tokens, the most probable each time (of equal ones the lowest), with the interventions or without; fewer where
    /// the model's context ends. Features are changed at the new positions too.
    ///
    /// # Errors
    /// As [`Self::steer`].
    pub fn continue_greedily(&self, tokens: &[u32], n: usize, steered: bool) -> Result<Vec<u32>, PatchingError> {
        check_tokens(self.model, tokens)?;
        let mut text = tokens.to_vec();
        for _ in 0..n.min(self.model.max_context() - tokens.len()) {
            text.push(most_probable(self.logits(&text, steered)?.view()));
        }
        Ok(text.split_off(tokens.len()))
    }

    /// The activations `[position, width]` of a text at a hook point, with the interventions up to it or without.
    ///
    /// # Errors
    /// As [`Self::steer`], or if the model has no such hook point.
    pub fn activations(&self, tokens: &[u32], at: HookPoint, steered: bool) -> Result<Array2<f32>, PatchingError> {
        check_tokens(self.model, tokens)?;
        let width = self.model.width(at.site).filter(|_| at.layer < self.model.n_layers());
        if width.is_none() {
            return Err(PatchingError::NoHookPoint { hook: at, n_layers: self.model.n_layers() });
        }
        let mut found = None;
        let _ = self.model.forward(aview1(tokens).insert_axis(ndarray::Axis(0)), &mut |point, mut activations| {
            if steered {
                self.apply(point, activations.view_mut());
            }
            if point != at {
                return ControlFlow::Continue(());
            }
            found = Some(activations.index_axis(ndarray::Axis(0), 0).to_owned());
            ControlFlow::Break(())
        });
        Ok(found.expect("a pass visits every hook point whose site the model has"))
    }

    fn logits(&self, tokens: &[u32], steered: bool) -> Result<Array1<f32>, PatchingError> {
        let row = aview1(tokens);
        let batch = row.insert_axis(ndarray::Axis(0));
        let logits = last_logits(self.model, batch, &[tokens.len() - 1], &mut |point, activations| {
            if steered {
                self.apply(point, activations);
            }
        });
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(PatchingError::NotFinite { what: "the intervention" });
        }
        Ok(logits.row(0).to_owned())
    }

    /// Changes the activations at a hook point. All codes are those before any change there.
    fn apply(&self, point: HookPoint, mut activations: ArrayViewMut3<'_, f32>) {
        let edits: Vec<&Edit> = self.edits.iter().filter(|edit| edit.intervention.hook == point).collect();
        if edits.is_empty() {
            return;
        }
        for mut context in activations.outer_iter_mut() {
            let codes = self.dictionary.encode(context.view());
            for (position, mut x) in context.rows_mut().into_iter().enumerate() {
                if self.drop_positions.contains(&position) {
                    continue;
                }
                let (latents, values) = codes.row(position);
                for edit in &edits {
                    for (&feature, direction) in edit.intervention.features.iter().zip(edit.directions.rows()) {
                        let found = latents.binary_search_by_key(&feature, |latent| *latent as usize);
                        let code = found.map_or(0.0, |i| values[i]);
                        x.scaled_add(edit.intervention.change.of(code) - code, &direction);
                    }
                }
            }
        }
    }
}

fn most_probable(logits: ArrayView1<'_, f32>) -> u32 {
    let above = |best: (u32, f32), next: (u32, f32)| if next.1 > best.1 { next } else { best };
    (0u32..).zip(logits.iter().copied()).reduce(above).map_or(0, |(token, _)| token)
}
