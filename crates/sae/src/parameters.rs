//! The trained parameters, a latent a row, with their optimiser's moments.

use monosem_dictionary::{Activation, LinearDictionary};
use ndarray::{Array1, Array2};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::family::{Formula, Layout, MAX_EXTRAS, PerLatent};
use crate::init::{orthogonal, set_lengths, uniform};
use crate::kernels::norm;
use crate::{Init, Spaces, TrainConfig};

/// Lengths below this count as this: the authors' `clamp(min=1e-8)`.
pub(crate) const SHORTEST: f32 = 1e-8;

/// Values and Adam's two moments of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Trained {
    pub(crate) value: Vec<f32>,
    pub(crate) m: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Trained {
    pub(crate) fn new(value: Vec<f32>) -> Self {
        Self { m: vec![0.0; value.len()], v: vec![0.0; value.len()], value }
    }
}

/// Everything that training changes.
#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    pub(crate) layout: Layout,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    /// `[n_latents, d_in]`; of a tied layout only the rows' directions count.
    pub(crate) w_enc: Trained,
    /// `[n_latents]`
    pub(crate) b_enc: Trained,
    /// `[n_latents, d_out]`, rows of length 1; empty in a tied layout.
    pub(crate) w_dec: Trained,
    /// `[d_out]`; zeros that nothing trains in a layout without one.
    pub(crate) b_dec: Trained,
    /// `[n_latents]` each.
    pub(crate) extras: [Trained; MAX_EXTRAS],
    /// What a row of `w_enc`, and in a tied layout of the decoder, is multiplied by: one over its length in a tied layout, else 1.
    pub(crate) scale: Vec<f32>,
    /// Length of each row of the encoder, as it is used.
    pub(crate) length: Vec<f32>,
    /// [`Formula::derived`]
    pub(crate) derived: Vec<f32>,
    /// Steps since each latent was last active.
    pub(crate) silent: Vec<u32>,
    zeros: Vec<f32>,
}

/// What encoding and back-propagation read.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) enc: &'a [f32],
    pub(crate) dec: &'a [f32],
    /// Of rows of `enc`, and of `dec` where that is the same.
    pub(crate) scale: &'a [f32],
    pub(crate) of: PerLatent<'a>,
    /// What the reconstruction begins with.
    pub(crate) offset: &'a [f32],
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
}

impl<'a> Weights<'a> {
    /// The same of a run of latents.
    pub(crate) fn part(self, latents: std::ops::Range<usize>) -> Self {
        let part = |values: &'a [f32], d: usize| values.get(latents.start * d..latents.end * d).unwrap_or_default();
        let of = PerLatent {
            bias: part(self.of.bias, 1),
            extras: self.of.extras.map(|values| part(values, 1)),
            derived: part(self.of.derived, 1),
        };
        Self { enc: part(self.enc, self.d_in), dec: part(self.dec, self.d_out), scale: part(self.scale, 1), of, ..self }
    }
}

impl Parameters {
    /// Drawn from the seed as [`Init`] says; in a tied layout Xavier-uniform rows.
    pub(crate) fn new(config: &TrainConfig, spaces: Spaces) -> Self {
        let (formula, layout) = (config.family.formula(), spaces.layout(&config.family));
        let (n, d_in, d_out) = (config.n_latents, spaces.input.d, spaces.output().d);
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let (w_enc, mut w_dec, b_enc) = match config.init {
            Init::Aligned => {
                let bound = (6.0 / (n + d_in) as f64).sqrt() as f32;
                let mut w_enc = uniform(&mut rng, n * d_in, bound);
                let mut w_dec = Vec::new();
                if !layout.tied {
                    let length = formula.initial_length(n, d_in);
                    set_lengths(&mut w_enc, d_in, length);
                    // A transcoder's decoder has no direction to start from.
                    w_dec = if spaces.target.is_none() { w_enc.clone() } else { uniform(&mut rng, n * d_out, 1.0) };
                }
                (w_enc, w_dec, vec![0.0; n])
            }
            Init::Orthogonal => {
                let bound = (d_in as f32).sqrt().recip();
                let w_enc = uniform(&mut rng, n * d_in, bound);
                let b_enc = uniform(&mut rng, n, bound);
                (w_enc, orthogonal(&mut rng, n, d_out), b_enc)
            }
        };
        set_lengths(&mut w_dec, d_out, 1.0);
        let initial = formula.initial_extras();
        let extras = std::array::from_fn(|k| match layout.extras.get(k) {
            Some(_) => Trained::new(vec![initial[k]; n]),
            None => Trained::default(),
        });
        let biases = [Trained::new(b_enc), Trained::new(vec![0.0; d_out])];
        Self::from_parts(layout, [d_in, d_out], [Trained::new(w_enc), Trained::new(w_dec)], biases, extras)
    }

    /// From values and moments; what follows from them is computed.
    pub(crate) fn from_parts(
        layout: Layout,
        [d_in, d_out]: [usize; 2],
        [w_enc, w_dec]: [Trained; 2],
        [b_enc, b_dec]: [Trained; 2],
        extras: [Trained; MAX_EXTRAS],
    ) -> Self {
        let n = b_enc.value.len();
        let (mut scale, mut length) = (vec![1.0; n], vec![0.0; n]);
        for (row, (scale, length)) in w_enc.value.chunks_exact(d_in).zip(scale.iter_mut().zip(&mut length)) {
            (*scale, *length) = scale_and_length(row, layout.tied);
        }
        let derived = if layout.extras.is_empty() { Vec::new() } else { vec![0.0; n] };
        let (silent, zeros) = (vec![0; n], vec![0.0; d_out]);
        Self { layout, d_in, d_out, w_enc, b_enc, w_dec, b_dec, extras, scale, length, derived, silent, zeros }
    }

    pub(crate) fn n_latents(&self) -> usize {
        self.b_enc.value.len()
    }

    /// Brings [`Self::derived`] up to date.
    pub(crate) fn derive(&mut self, formula: &dyn Formula) {
        for (j, derived) in self.derived.iter_mut().enumerate() {
            *derived = formula.derived(self.extras.each_ref().map(|extra| extra.value.get(j).copied().unwrap_or(0.0)));
        }
    }

    pub(crate) fn per_latent(&self) -> PerLatent<'_> {
        PerLatent {
            bias: &self.b_enc.value,
            extras: self.extras.each_ref().map(|extra| extra.value.as_slice()),
            derived: &self.derived,
        }
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        let dec = if self.layout.tied { &self.w_enc.value } else { &self.w_dec.value };
        // Where the bias is subtracted from what is read, the target has it subtracted too.
        let offset = if self.layout.subtract_decoder_bias { &self.zeros } else { &self.b_dec.value };
        let (d_in, d_out) = (self.d_in, self.d_out);
        Weights { enc: &self.w_enc.value, dec, scale: &self.scale, of: self.per_latent(), offset, d_in, d_out }
    }

    /// What is trained, by name, with its shape: the names of tensors in a [`crate::TrainState`].
    pub(crate) fn named(&self) -> Vec<(&'static str, Vec<usize>, &Trained)> {
        let n = self.n_latents();
        let mut all = vec![("w_enc", vec![n, self.d_in], &self.w_enc), ("b_enc", vec![n], &self.b_enc)];
        if !self.layout.tied {
            all.push(("w_dec", vec![n, self.d_out], &self.w_dec));
        }
        if self.layout.decoder_bias {
            all.push(("b_dec", vec![self.d_out], &self.b_dec));
        }
        all.extend(self.layout.extras.iter().zip(&self.extras).map(|(name, extra)| (*name, vec![n], extra)));
        all
    }

    /// The dictionary learned so far, in the units of the raw activations: with input scale s and target scale t, codes are divided by t, so that decoder
    /// rows keep their length. `threshold` is that of families that choose from a batch.
    pub(crate) fn dictionary(&self, formula: &dyn Formula, spaces: Spaces, threshold: f32) -> LinearDictionary {
        let (n, d_in, d_out) = (self.n_latents(), self.d_in, self.d_out);
        let (input, output) = (spaces.input.scale, spaces.output().scale);
        let (weights, of) = (self.weights(), self.per_latent());
        let inference: Vec<_> = (0..n).map(|j| formula.inference(of, j, threshold)).collect();
        let factor = |j: usize| inference[j].gain * weights.scale[j];
        let w_enc = Array2::from_shape_fn((n, d_in), |(j, k)| weights.enc[j * d_in + k] * factor(j) * (input / output));
        let dec_scale = |j: usize| if self.layout.tied { weights.scale[j] } else { 1.0 };
        let w_dec = Array2::from_shape_fn((n, d_out), |(j, k)| weights.dec[j * d_out + k] * dec_scale(j));
        let read_without = |j: usize| {
            let row = &weights.enc[j * d_in..][..d_in];
            let along = row.iter().zip(&self.b_dec.value).map(|(w, b)| f64::from(*w) * f64::from(*b)).sum::<f64>();
            if self.layout.subtract_decoder_bias { along * f64::from(factor(j)) } else { 0.0 }
        };
        let b_enc = (0..n).map(|j| ((f64::from(inference[j].bias) - read_without(j)) / f64::from(output)) as f32);
        let activation = formula.activation();
        let threshold = || inference.iter().map(|inference| inference.threshold / output).collect::<Array1<f32>>();
        LinearDictionary {
            w_enc,
            b_enc: b_enc.collect(),
            w_dec,
            b_dec: self.b_dec.value.iter().map(|b| b / output).collect(),
            activation,
            threshold: (activation == Activation::JumpRelu).then(threshold),
        }
    }

    /// Bytes of parameters and moments.
    pub(crate) fn bytes(&self) -> usize {
        let trained: usize = self.named().iter().map(|(_, _, trained)| 3 * trained.value.len()).sum();
        4 * (trained + self.scale.len() + self.length.len() + self.derived.len() + self.silent.len())
    }
}

/// The factor on a row of the encoder, and the length of what it then is.
pub(crate) fn scale_and_length(row: &[f32], tied: bool) -> (f32, f32) {
    let length = norm(row);
    match tied {
        // Not `max`, which would turn a length that is not a number into the shortest.
        true if length < SHORTEST => (1.0 / SHORTEST, length / SHORTEST),
        true => (1.0 / length, 1.0),
        false => (1.0, length),
    }
}
