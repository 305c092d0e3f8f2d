//! What a model is made of, as its configuration says.

pub(crate) mod gguf;
pub(crate) mod json;

use std::fmt;

use serde::{Deserialize, Serialize};

/// A family of models that share one forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Family {
    /// GPT-NeoX, of which Pythia is one.
    GptNeoX,
    /// GPT-2.
    Gpt2,
    /// Llama, of which SmolLM2 is one.
    Llama,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 3] = [Self::GptNeoX, Self::Gpt2, Self::Llama];

    /// The name in the `model_type` key of a Hugging Face configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GptNeoX => "gpt_neox",
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
        }
    }

    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The non-linearity of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x Phi(x)` with the normal distribution function, through `erf`.
    Gelu,
    /// GELU with its tanh approximation (GPT-2's `gelu_new`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
}

impl Activation {
    /// The activation that transformers means by a name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            _ => return None,
        })
    }

    pub(crate) const NAMES: &str = "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu or silu";
}

/// How rotary frequencies are stretched for contexts longer than those of the training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// They are not.
    None,
    /// Every frequency is divided by the factor.
    Linear {
        /// How much longer contexts become.
        factor: f64,
    },
    /// Low frequencies are divided, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// How much longer contexts become.
        factor: f64,
        /// Waves longer than the original context divided by this are divided by `factor`.
        low_freq_factor: f64,
        /// Waves shorter than the original context divided by this are kept.
        high_freq_factor: f64,
        /// The context length of the training, in tokens.
        original_context: usize,
    },
    /// Each frequency is divided by its own number (the `rope_freqs` tensor of a GGUF file).
    Divisors(Vec<f32>),
}

/// Rotary position embeddings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// The base of the geometric series of wavelengths.
    pub base: f64,
    /// How many of a head's dimensions turn, the first ones; the rest passes through. Even.
    pub dims: usize,
    /// Stretching for long contexts.
    pub scaling: RopeScaling,
}

/// The architecture of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Which forward pass.
    pub family: Family,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the MLP's hidden layer.
    pub d_mlp: usize,
    /// Number of query heads of a block.
    pub n_heads: usize,
    /// Number of key and value heads of a block; a divisor of `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of tokens in the vocabulary.
    pub d_vocab: usize,
    /// Longest context, in tokens.
    pub max_context: usize,
    /// Added to the variance in every normalisation.
    pub norm_eps: f64,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Rotary embeddings; `None` where positions are learned vectors (GPT-2).
    pub rope: Option<Rope>,
    /// Whether attention and MLP of a block read the same residual stream (GPT-NeoX).
    pub parallel_residual: bool,
    /// Whether the unembedding is the embedding.
    pub tied_embeddings: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub attn_out_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
}

impl Config {
    /// Width of the queries of all heads together.
    #[must_use]
    pub fn d_query(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of the keys, or the values, of all heads together.
    #[must_use]
    pub fn d_key(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// The key and what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        // Far above any model, far below what could overflow a product of two.
        const MOST: usize = 1 << 28;
        let sizes = [
            ("number of layers", self.n_layers),
            ("model width", self.d_model),
            ("mlp width", self.d_mlp),
            ("number of heads", self.n_heads),
            ("number of key-value heads", self.n_kv_heads),
            ("head width", self.head_dim),
            ("vocabulary size", self.d_vocab),
            ("context length", self.max_context),
        ];
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..=MOST).contains(size)) {
            return Err((name, format!("is {size}, expected 1 to {MOST}")));
        }
        if self.d_query() > MOST {
            return Err((
                "number of heads",
                format!("is {} at a head width of {}, too wide", self.n_heads, self.head_dim),
            ));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let problem = format!("is {}, expected a divisor of the {} heads", self.n_kv_heads, self.n_heads);
            return Err(("number of key-value heads", problem));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(("normalisation epsilon", format!("is {}, expected a small positive number", self.norm_eps)));
        }
        if let Some(rope) = &self.rope {
            if rope.dims == 0 || !rope.dims.is_multiple_of(2) || rope.dims > self.head_dim {
                let problem =
                    format!("is {}, expected an even number up to the head width {}", rope.dims, self.head_dim);
                return Err(("number of rotary dimensions", problem));
            }
            if !(rope.base.is_finite() && rope.base > 0.0) {
                return Err(("rotary base", format!("is {}, expected a positive number", rope.base)));
            }
            rope.scaling.validate(rope.dims)?;
        }
        Ok(())
    }
}

impl RopeScaling {
    fn validate(&self, dims: usize) -> Result<(), (&'static str, String)> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let good = match self {
            Self::None => true,
            Self::Linear { factor } => positive(*factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive(*factor)
                    && positive(*low_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && *original_context > 0
            }
            Self::Divisors(divisors) => divisors.len() == dims / 2 && divisors.iter().all(|&d| positive(d.into())),
        };
        if good {
            Ok(())
        } else {
            Err(("rotary scaling", format!("{self:?} makes no sense for {dims} rotary dimensions")))
        }
    }
}
