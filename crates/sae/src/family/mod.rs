//! The families of autoencoders: a file each, with the paper it comes from and the few lines in which it differs from the others.
//!
//! What they share is the engine: an affine encoder, whose pre-activations are computed for all latents; a choice of the few that count; codes, and a
//! reconstruction from those; gradients for what was chosen only. A family says which pre-activations are chosen ([`Formula::selection`],
//! [`Formula::floor`]), what code each one gives ([`Formula::codes`]), and what the loss's gradient is ([`Formula::gradients`]). A new family is a new
//! file and a line in [`Family`] and in [`Family::formula`].

use monosem_dictionary::Activation;
use serde::{Deserialize, Serialize};

use crate::kernels::sum_row;
use crate::{ConfigError, TrainConfig};

mod batch_top_k;
mod gated;
mod jump_relu;
mod matryoshka;
mod relu;
mod tied;
mod top_k;

pub use batch_top_k::BatchTopK;
pub(crate) use batch_top_k::REMEMBERED;
pub use gated::Gated;
pub use jump_relu::JumpRelu;
pub use matryoshka::Matryoshka;
pub use relu::Relu;
pub use tied::Tied;
pub use top_k::TopK;

/// Which autoencoder is trained, with the settings of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Family {
    /// ReLU and an L1 penalty, one matrix for encoder and decoder (arXiv 2309.08600).
    Tied(Tied),
    /// ReLU and an L1 penalty, unit decoder rows and a decoder bias.
    Relu(Relu),
    /// The k largest codes of every row (arXiv 2406.04093).
    TopK(TopK),
    /// The `k * rows` largest codes of a batch (arXiv 2412.06410).
    BatchTopK(BatchTopK),
    /// A threshold for every latent, learned through straight-through estimators, and an L0 penalty (arXiv 2407.14435).
    JumpRelu(JumpRelu),
    /// A gate decides which latents are active, a magnitude how much (arXiv 2404.16014).
    Gated(Gated),
    /// BatchTopK whose first latents have to reconstruct by themselves (arXiv 2503.17547).
    Matryoshka(Matryoshka),
}

impl Default for Family {
    fn default() -> Self {
        Self::Tied(Tied {})
    }
}

impl Family {
    pub(crate) fn formula(&self) -> &dyn Formula {
        match self {
            Self::Tied(family) => family,
            Self::Relu(family) => family,
            Self::TopK(family) => family,
            Self::BatchTopK(family) => family,
            Self::JumpRelu(family) => family,
            Self::Gated(family) => family,
            Self::Matryoshka(family) => family,
        }
    }

    /// Which pre-activations count.
    #[must_use]
    pub fn selection(&self) -> Selection {
        self.formula().selection()
    }

    /// Numbers of latents that reconstruct by themselves, ascending, the last being all; empty for all only.
    #[must_use]
    pub fn prefixes(&self) -> &[usize] {
        self.formula().prefixes()
    }

    /// Its name in settings, files and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tied(_) => "tied",
            Self::Relu(_) => "relu",
            Self::TopK(_) => "top-k",
            Self::BatchTopK(_) => "batch-top-k",
            Self::JumpRelu(_) => "jump-relu",
            Self::Gated(_) => "gated",
            Self::Matryoshka(_) => "matryoshka",
        }
    }
}

/// Most parameters that a latent may have besides its rows and its encoder bias.
pub(crate) const MAX_EXTRAS: usize = 2;

/// Which parameters an autoencoder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Encoder and decoder share one matrix whose rows count by their direction only; else the decoder has unit rows of its own.
    pub tied: bool,
    /// The reconstruction has a bias.
    pub decoder_bias: bool,
    /// That bias is subtracted from what the encoder reads.
    pub subtract_decoder_bias: bool,
    /// Codes have a second version, reconstructed by a decoder that this does not train.
    pub second_reconstruction: bool,
    /// Names of further parameters of a latent, at most two.
    pub extras: &'static [&'static str],
}

impl Layout {
    /// A decoder of its own with a bias.
    pub(crate) const UNTIED: Self = Self {
        tied: false,
        decoder_bias: true,
        subtract_decoder_bias: true,
        second_reconstruction: false,
        extras: &[],
    };
}

/// Which pre-activations count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// Those above the latent's threshold.
    Threshold,
    /// The k largest positive ones of a row.
    TopK(usize),
    /// The `k * rows` largest positive ones of the batch.
    BatchTopK(usize),
}

/// Parameters by latent.
#[derive(Clone, Copy)]
pub(crate) struct PerLatent<'a> {
    /// Encoder bias.
    pub(crate) bias: &'a [f32],
    /// Those of [`Layout::extras`]; the others are empty.
    pub(crate) extras: [&'a [f32]; MAX_EXTRAS],
    /// [`Formula::derived`], computed once for a step; empty without extras.
    pub(crate) derived: &'a [f32],
}

/// Pre-activations and the latents they are of.
#[derive(Clone, Copy)]
pub(crate) struct Entries<'a> {
    pub(crate) latents: &'a [u32],
    pub(crate) pre: &'a [f32],
    pub(crate) of: PerLatent<'a>,
}

impl Entries<'_> {
    /// Latent and pre-activation of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, f32)> {
        self.latents.iter().zip(self.pre).map(|(latent, pre)| (*latent as usize, *pre))
    }
}

/// What back-propagation knows of entries: products of decoder rows with the gradient of each reconstruction.
pub(crate) struct Dots<'a> {
    /// With that of the reconstruction from the codes: the loss's gradient by the code.
    pub(crate) first: &'a [f32],
    /// With that of the second reconstruction, where there is one.
    pub(crate) second: &'a [f32],
    /// The sparsity coefficient over the number of rows.
    pub(crate) penalty: f32,
}

/// A latent after training: `code = gain * (pre - bias) + inference bias` where that exceeds the threshold, else 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Inference {
    /// Factor on the encoder's row.
    pub(crate) gain: f32,
    /// Encoder bias.
    pub(crate) bias: f32,
    /// What a code has to exceed, for [`Activation::JumpRelu`].
    pub(crate) threshold: f32,
}

/// One family's part of a training step.
pub(crate) trait Formula: Send + Sync {
    /// Which parameters there are.
    fn layout(&self) -> Layout;

    /// Checks the settings that only this family has, and those it does not allow.
    fn validate(&self, config: &TrainConfig) -> Result<(), ConfigError>;

    /// Which pre-activations count.
    fn selection(&self) -> Selection {
        Selection::Threshold
    }

    /// Numbers of latents that reconstruct by themselves, ascending, the last being all; empty for all only.
    fn prefixes(&self) -> &[usize] {
        &[]
    }

    /// Where the extra parameters start.
    fn initial_extras(&self) -> [f32; MAX_EXTRAS] {
        [0.0; MAX_EXTRAS]
    }

    /// Length of the encoder's rows at the start, which point where the decoder's do.
    fn initial_length(&self, _n_latents: usize, _d_in: usize) -> f32 {
        1.0
    }

    /// Length of the encoder's rows of latents that begin anew, as a share of the mean of the others (a fifth in Bricken et al. 2023, so that they
    /// disturb little).
    fn resampled_length(&self) -> f32 {
        0.2
    }

    /// A function of the extra parameters of latent `j` that the formulas need often.
    fn derived(&self, _extras: [f32; MAX_EXTRAS]) -> f32 {
        0.0
    }

    /// Pre-activations of latent `j` not above this have neither a code nor a gradient.
    fn floor(&self, _of: PerLatent<'_>, _j: usize) -> f32 {
        0.0
    }

    /// The codes, and those of the second reconstruction if there is one; returns their sparsity penalty. Pre-activations that are not above
    /// the floor may be among the entries: their codes are 0. Unless a family says otherwise, ReLU and the sum of the codes (which a family that chooses the largest
    /// multiplies by an `alpha` of 0).
    fn codes(&self, entries: Entries<'_>, codes: &mut [f32], _second: &mut [f32]) -> f64 {
        for (code, pre) in codes.iter_mut().zip(entries.pre) {
            *code = if *pre > 0.0 { *pre } else { 0.0 };
        }
        codes.chunks(256).map(|codes| f64::from(sum_row(codes).0)).sum()
    }

    /// The loss's gradient by each pre-activation (`deltas`) and by the extra parameters of its latent, of the same entries. Unless a family says otherwise, that of ReLU and
    /// its sum.
    fn gradients(&self, entries: Entries<'_>, dots: Dots<'_>, deltas: &mut [f32], _extras: [&mut [f32]; MAX_EXTRAS]) {
        for ((delta, pre), dot) in deltas.iter_mut().zip(entries.pre).zip(dots.first) {
            *delta = if *pre > 0.0 { dot + dots.penalty } else { 0.0 };
        }
    }

    /// From sums over the batch of `[delta, extras...]` to the gradients of `[encoder bias, extras...]` of latent `j`.
    fn of_latent(&self, _of: PerLatent<'_>, _j: usize, sums: [f32; 1 + MAX_EXTRAS]) -> [f32; 1 + MAX_EXTRAS] {
        sums
    }

    /// Latent `j` after training. `threshold` is the mean of the smallest codes chosen from a batch.
    fn inference(&self, of: PerLatent<'_>, j: usize, _threshold: f32) -> Inference {
        Inference { gain: 1.0, bias: of.bias[j], threshold: 0.0 }
    }

    /// From pre-activations to codes after training.
    fn activation(&self) -> Activation;
}

/// With this length `n` random directions of which half are active reconstruct `x` on the mean: `sum_j ReLU(s w_j x) w_j = s n / (2 d) x`.
fn reconstructing_length(n_latents: usize, d_in: usize) -> f32 {
    (2.0 * d_in as f32 / n_latents as f32).min(1.0)
}

fn k_within(k: usize, config: &TrainConfig) -> Result<(), ConfigError> {
    if k == 0 || k > config.n_latents {
        let problem = format!("is {k}, expected 1 to n_latents ({})", config.n_latents);
        return Err(ConfigError { key: "k", problem });
    }
    Ok(())
}

fn no_alpha(name: &str, config: &TrainConfig) -> Result<(), ConfigError> {
    if config.alpha != 0.0 {
        let problem = format!("is {}, but {name} has no sparsity penalty: set it to 0 and choose k", config.alpha);
        return Err(ConfigError { key: "alpha", problem });
    }
    Ok(())
}
