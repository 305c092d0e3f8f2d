//! A language model: embeddings, blocks of one family, final normalisation, unembedding.

use std::ops::ControlFlow;
use std::path::Path;

use monosem_bf16::Precision;
use monosem_hooks::{Hook, HookedModel, Resumed, Resumption, Site};
use ndarray::{Array3, ArrayView2};

use crate::backward::walk::{Gradients, Kept, Walk};
use crate::gpt2::Gpt2Block;
use crate::linear::{Linear, centre_rows};
use crate::llama::LlamaBlock;
use crate::neox::NeoXBlock;
use crate::norm::Norm;
use crate::parts::norm_rows;
use crate::pass::{Before, Buffers, Pass, Rows, Shape};
use crate::product::{Into, Matrix, product};
use crate::random::Redraw;
use crate::weights::Source;
use crate::weights::gguf::{Gguf, GgufLlama};
use crate::weights::safetensors::SafetensorsFolder;
use crate::{Config, Family, LmError, config};

/// What a family's block does.
pub(crate) trait Block: Send + Sync {
    /// Takes the residual stream through the block, past its hook points.
    fn run(&self, layer: usize, x: &mut Rows, buffers: &mut Buffers, pass: &mut Pass<'_>) -> ControlFlow<()>;

    /// Takes the gradient `dx` of the stream that leaves the block back to the stream that enters it, past its hook points in reverse.
    fn backward(
        &self,
        layer: usize,
        kept: &Kept,
        dx: &mut Rows,
        buffers: &mut Gradients,
        walk: &mut Walk<'_>,
    ) -> ControlFlow<()>;

    /// The maps that write to the residual stream.
    fn writers(&mut self) -> [&mut Linear; 2];

    /// The maps that read from it.
    fn readers(&mut self) -> [&mut Linear; 2];
}

#[derive(Clone)]
enum Blocks {
    NeoX(Vec<NeoXBlock>),
    Gpt2(Vec<Gpt2Block>),
    Llama(Vec<LlamaBlock>),
}

impl Blocks {
    fn get(&self, layer: usize) -> &dyn Block {
        match self {
            Self::NeoX(blocks) => &blocks[layer],
            Self::Gpt2(blocks) => &blocks[layer],
            Self::Llama(blocks) => &blocks[layer],
        }
    }

    fn iter_mut(&mut self) -> Box<dyn Iterator<Item = &mut dyn Block> + '_> {
        match self {
            Self::NeoX(blocks) => Box::new(blocks.iter_mut().map(|b| b as &mut dyn Block)),
            Self::Gpt2(blocks) => Box::new(blocks.iter_mut().map(|b| b as &mut dyn Block)),
            Self::Llama(blocks) => Box::new(blocks.iter_mut().map(|b| b as &mut dyn Block)),
        }
    }
}

/// How a model is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadOptions {
    /// Subtract from everything that writes to the residual stream (embeddings, attention and MLP output maps with their biases) its mean over
    /// `d_model`, as TransformerLens does. The logits stay the same where LayerNorm subtracts the mean anyway, the residual stream gets
    /// mean zero. An error for models with RMSNorm. Default: false.
    pub center_writing_weights: bool,
    /// What the maps of the blocks are computed in. Everything else (attention, normalisation, the residual stream, the unembedding) is `f32`, and so are
    /// the weights that a backward pass multiplies by. Default: `f32`.
    #[serde(default)]
    pub precision: Precision,
}

/// A causal language model with its weights in memory as `f32`.
#[derive(Clone)]
pub struct LanguageModel {
    config: Config,
    weights_hash: String,
    /// `[d_vocab, d_model]`.
    embed: Vec<f32>,
    /// `[max_context, d_model]` where positions are learned.
    positions: Option<Vec<f32>>,
    blocks: Blocks,
    final_norm: Norm,
    /// `[d_vocab, d_model]`; `None` where it is the embedding itself.
    unembed: Option<Vec<f32>>,
    centred: bool,
    precision: Precision,
}

/// The hash of weights that were made from others.
fn derived(original: &str, how: &str) -> String {
    blake3::hash(format!("{original} {how}").as_bytes()).to_hex().to_string()
}

impl LanguageModel {
    /// Loads a model from a folder in Hugging Face layout (`config.json` and `model.safetensors`, or its index and shards) or from a
    /// `.gguf` file.
    ///
    /// # Errors
    /// If a file is absent, truncated or corrupt, the family or a feature is not supported, a tensor is missing or has another shape than
    /// the configuration says, or the options do not suit the family.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, LmError> {
        let mut model = if path.is_dir() {
            let config = config::json::read(&path.join("config.json"))?;
            Self::read(config, &SafetensorsFolder::open(path)?)?
        } else {
            let file = Gguf::open(path)?;
            let config = config::gguf::read(&file)?;
            let head_dim = config.head_dim;
            Self::read(config, &GgufLlama { file: &file, head_dim })?
        };
        if options.center_writing_weights {
            if model.config.family == Family::Llama {
                return Err(LmError::CannotCentre(Family::Llama));
            }
            model.centre();
        }
        if options.precision == Precision::Bf16 {
            model.precision = Precision::Bf16;
            model.weights_hash = derived(&model.weights_hash, "in bf16");
            model.round();
        }
        Ok(model)
    }

    fn read(config: Config, source: &dyn Source) -> Result<Self, LmError> {
        let c = &config;
        // A head-less GPT-2 checkpoint has no prefix.
        let prefix = if source.has("wte.weight") { "" } else { "transformer." };
        let (embed, unembed, final_norm) = match c.family {
            Family::GptNeoX => {
                ("gpt_neox.embed_in.weight".to_owned(), "embed_out.weight", "gpt_neox.final_layer_norm".to_owned())
            }
            Family::Gpt2 => (format!("{prefix}wte.weight"), "lm_head.weight", format!("{prefix}ln_f")),
            Family::Llama => ("model.embed_tokens.weight".to_owned(), "lm_head.weight", "model.norm".to_owned()),
        };
        let layers = 0..c.n_layers;
        Ok(Self {
            embed: source.read(&embed, &[c.d_vocab, c.d_model])?,
            positions: match c.family {
                Family::Gpt2 => Some(source.read(&format!("{prefix}wpe.weight"), &[c.max_context, c.d_model])?),
                Family::GptNeoX | Family::Llama => None,
            },
            blocks: match c.family {
                Family::GptNeoX => {
                    Blocks::NeoX(layers.map(|l| NeoXBlock::read(source, l, c)).collect::<Result<_, _>>()?)
                }
                Family::Gpt2 => {
                    Blocks::Gpt2(layers.map(|l| Gpt2Block::read(source, prefix, l, c)).collect::<Result<_, _>>()?)
                }
                Family::Llama => {
                    Blocks::Llama(layers.map(|l| LlamaBlock::read(source, l, c)).collect::<Result<_, _>>()?)
                }
            },
            final_norm: match c.family {
                Family::Llama => Norm::read_rms(source, &final_norm, c)?,
                Family::GptNeoX | Family::Gpt2 => Norm::read_layer_norm(source, &final_norm, c)?,
            },
            unembed: if c.tied_embeddings { None } else { Some(source.read(unembed, &[c.d_vocab, c.d_model])?) },
            weights_hash: source.hash().to_owned(),
            centred: false,
            precision: Precision::F32,
            config,
        })
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// BLAKE3 of the weight files in hexadecimal: of their bytes, one file after the other in the order of their names. With maps in bf16, and
    /// after [`Self::randomized`], a hash of the original's and what was changed.
    #[must_use]
    pub fn weights_hash(&self) -> &str {
        &self.weights_hash
    }

    /// The same architecture with weights drawn anew: each tensor from a normal distribution with its own mean and standard deviation.
    /// Normalisations are kept, tied embeddings stay tied, centred weights are centred again. This is the control that shows what a dictionary
    /// owes to the architecture and the data alone.
    #[must_use]
    pub fn randomized(&self, seed: u64) -> Self {
        let mut model = self.clone();
        model.weights_hash = derived(&self.weights_hash, &format!("randomized {seed}"));
        let mut redraw = Redraw::new(seed);
        let source = if self.config.tied_embeddings { model.unembed.take() } else { None };
        // A centred model keeps its tied unembedding apart; what is drawn anew is the tensor they were made from.
        if let Some(original) = source {
            model.embed = original;
        }
        redraw.tensor(&mut model.embed);
        model.positions.iter_mut().for_each(|positions| redraw.tensor(positions));
        for block in model.blocks.iter_mut() {
            block.readers().into_iter().flat_map(Linear::tensors_mut).for_each(|tensor| redraw.tensor(tensor));
            block.writers().into_iter().flat_map(Linear::tensors_mut).for_each(|tensor| redraw.tensor(tensor));
        }
        model.unembed.iter_mut().for_each(|unembed| redraw.tensor(unembed));
        if self.centred {
            model.centre();
        }
        model.round();
        model
    }

    /// Rounds the maps again after their weights were set, if they are to be rounded at all.
    fn round(&mut self) {
        if self.precision == Precision::Bf16 {
            for block in self.blocks.iter_mut() {
                block.readers().into_iter().for_each(Linear::round);
                block.writers().into_iter().for_each(Linear::round);
            }
        }
    }

    fn centre(&mut self) {
        if self.unembed.is_none() {
            // The unembedding only reads, so it keeps the weights that the embedding had.
            self.unembed = Some(self.embed.clone());
        }
        centre_rows(&mut self.embed, self.config.d_model);
        self.positions.iter_mut().for_each(|positions| centre_rows(positions, self.config.d_model));
        self.blocks.iter_mut().flat_map(Block::writers).for_each(Linear::centre_outputs);
        self.centred = true;
    }

    /// The embeddings of tokens whose rows begin at position `first`.
    pub(crate) fn embed(&self, tokens: ArrayView2<'_, u32>, first: usize) -> Rows {
        let d_model = self.config.d_model;
        let mut rows = Rows::new(tokens.len(), d_model);
        for (((_, position), &token), row) in tokens.indexed_iter().zip(rows.data.chunks_exact_mut(d_model)) {
            let token = token as usize;
            assert!(
                token < self.config.d_vocab,
                "token {token} is not below the vocabulary size {}",
                self.config.d_vocab
            );
            row.copy_from_slice(&self.embed[token * d_model..][..d_model]);
            if let Some(positions) = &self.positions {
                row.iter_mut().zip(&positions[(first + position) * d_model..]).for_each(|(x, p)| *x += p);
            }
        }
        rows
    }

    /// One block.
    pub(crate) fn block(&self, layer: usize) -> &dyn Block {
        self.blocks.get(layer)
    }

    /// Whether the MLPs have gates.
    pub(crate) fn gated(&self) -> bool {
        matches!(self.blocks, Blocks::Llama(_))
    }

    /// The normalisation before the unembedding.
    pub(crate) fn final_norm(&self) -> &Norm {
        &self.final_norm
    }

    /// The unembedding, `[d_vocab, d_model]`.
    pub(crate) fn unembedding(&self) -> &[f32] {
        self.unembed.as_ref().unwrap_or(&self.embed)
    }

    /// Blocks from `layer` on, then the final normalisation.
    pub(crate) fn states(&self, layer: usize, x: &mut Rows, pass: &mut Pass<'_>) -> ControlFlow<(), Rows> {
        let rows = x.data.len() / x.width;
        let mut buffers = Buffers::new(&self.config, rows, self.gated());
        for layer in layer..self.config.n_layers {
            self.block(layer).run(layer, x, &mut buffers, pass)?;
        }
        norm_rows(x, &self.final_norm, &mut buffers.normed, pass.shape.plan);
        ControlFlow::Continue(buffers.normed)
    }

    /// Logits `[rows, d_vocab]` of normalised states `[rows, d_model]`.
    pub(crate) fn unembed(&self, states: &[f32]) -> Vec<f32> {
        let Config { d_vocab, d_model, .. } = self.config;
        let rows = states.len() / d_model;
        let unembed = Matrix::new(self.unembedding(), d_vocab, d_model).transposed();
        let mut logits = vec![0.0; rows * d_vocab];
        product(&mut logits, Matrix::new(states, rows, d_model), unembed, Into::Replace, rayon::current_num_threads());
        logits
    }

    /// Blocks from `layer` on, then the final normalisation and the unembedding.
    fn run(
        &self,
        layer: usize,
        mut x: Rows,
        (batch, positions): (usize, usize),
        hook: &mut Hook<'_>,
    ) -> ControlFlow<(), Array3<f32>> {
        let c = &self.config;
        assert!(positions <= c.max_context, "{positions} positions do not fit in a context of {}", c.max_context);
        let rows = batch * positions;
        if rows == 0 {
            return ControlFlow::Continue(Array3::zeros((batch, positions, c.d_vocab)));
        }
        let mut pass = Pass { shape: Shape::new(c, batch, positions, 0), hook, before: Before::Nothing };
        let normed = self.states(layer, &mut x, &mut pass)?;
        let logits = self.unembed(&normed.data);
        let logits = Array3::from_shape_vec((batch, positions, c.d_vocab), logits);
        ControlFlow::Continue(logits.expect("there is a logit for every token and every entry of the vocabulary"))
    }
}

impl Rows {
    /// The rows of an array, without a copy where it is its vector.
    pub(crate) fn of(array: Array3<f32>) -> Self {
        let (n, width) = (array.len(), array.dim().2);
        if !array.is_standard_layout() {
            return Self { data: array.iter().copied().collect(), width };
        }
        let (data, offset) = array.into_raw_vec_and_offset();
        // An owned array in standard order may still be a part of its vector.
        let offset = offset.unwrap_or(0);
        let data = if offset == 0 && data.len() == n { data } else { data[offset..][..n].to_vec() };
        Self { data, width }
    }
}

impl HookedModel for LanguageModel {
    fn n_layers(&self) -> usize {
        self.config.n_layers
    }

    fn d_vocab(&self) -> usize {
        self.config.d_vocab
    }

    fn max_context(&self) -> usize {
        self.config.max_context
    }

    fn width(&self, site: Site) -> Option<usize> {
        match site {
            Site::AttnZ => Some(self.config.d_query()),
            Site::MlpPost => Some(self.config.d_mlp),
            Site::ResidMid if self.config.parallel_residual => None,
            Site::ResidPre | Site::AttnOut | Site::ResidMid | Site::MlpOut | Site::ResidPost => {
                Some(self.config.d_model)
            }
        }
    }

    fn forward(&self, tokens: ArrayView2<'_, u32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        let (_, positions) = tokens.dim();
        let most = self.config.max_context;
        assert!(positions <= most, "{positions} positions do not fit in a context of {most}");
        self.run(0, self.embed(tokens, 0), tokens.dim(), hook)
    }

    fn forward_from(&self, layer: usize, resid: Array3<f32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        let (batch, positions, width) = resid.dim();
        let Config { n_layers, d_model, .. } = self.config;
        assert!(layer <= n_layers, "block {layer} is beyond the {n_layers} of the model");
        assert_eq!(width, d_model, "a residual stream {:?} is not d_model {d_model} wide", resid.dim());
        self.run(layer, Rows::of(resid), (batch, positions), hook)
    }

    fn resume(&self, layer: usize, contexts: &[Resumed<'_>], keep: bool) -> Resumption {
        self.resume_contexts(layer, contexts, keep)
    }
}
