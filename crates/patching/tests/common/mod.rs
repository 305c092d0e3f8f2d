//! A small model, a small task and its tokenizer.
#![allow(dead_code)] // not every test file uses all of it

use std::ops::ControlFlow;

use monosem_dictionary::{Activation, LinearDictionary};
use monosem_hooks::{Hook, HookPoint, HookedModel, Site};
use monosem_patching::{Half, IoiTask, Prompt};
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, s};

pub(crate) const D_MODEL: usize = 8;

/// Blocks of causal averaging and a tanh MLP. Rows are multiplied one by one, so the batch does not matter to the last bit.
pub(crate) struct Model {
    embed: Array2<f32>,
    blocks: Vec<[Array2<f32>; 3]>,
    unembed: Array2<f32>,
}

fn gaussian(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    LinearDictionary::random(rows, columns, Activation::Linear, seed).w_enc
}

impl Model {
    pub(crate) fn new(d_vocab: usize, n_layers: usize, seed: u64) -> Self {
        let block = |layer: u64| {
            let at = seed.wrapping_mul(1000) + 10 * layer;
            [gaussian(D_MODEL, D_MODEL, at) * 2.0, gaussian(D_MODEL, 12, at + 1) * 2.0, gaussian(12, D_MODEL, at + 2)]
        };
        Self {
            embed: gaussian(d_vocab, D_MODEL, seed.wrapping_mul(1000) + 1_000_000) * 2.0,
            blocks: (1..=n_layers as u64).map(block).collect(),
            unembed: gaussian(D_MODEL, d_vocab, seed.wrapping_mul(1000) + 2_000_000) * 4.0,
        }
    }
}

fn rows_times(x: &Array3<f32>, w: &Array2<f32>) -> Array3<f32> {
    let (batch, positions, _) = x.dim();
    let mut product = Array3::zeros((batch, positions, w.ncols()));
    for i in 0..batch {
        for position in 0..positions {
            product.slice_mut(s![i, position, ..]).assign(&x.slice(s![i, position, ..]).dot(w));
        }
    }
    product
}

/// Mean of the positions so far.
fn causal_mean(x: &Array3<f32>) -> Array3<f32> {
    let mut mixed = Array3::zeros(x.dim());
    for (mut mixed, x) in mixed.outer_iter_mut().zip(x.outer_iter()) {
        let mut sum = Array1::<f32>::zeros(x.ncols());
        for (position, row) in x.rows().into_iter().enumerate() {
            sum += &row;
            mixed.row_mut(position).assign(&(&sum / (position + 1) as f32));
        }
    }
    mixed
}

impl HookedModel for Model {
    fn n_layers(&self) -> usize {
        self.blocks.len()
    }

    fn d_vocab(&self) -> usize {
        self.embed.nrows()
    }

    fn max_context(&self) -> usize {
        32
    }

    fn width(&self, site: Site) -> Option<usize> {
        match site {
            Site::AttnZ => None,
            Site::MlpPost => Some(12),
            _ => Some(D_MODEL),
        }
    }

    fn forward(&self, tokens: ArrayView2<'_, u32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        let (batch, positions) = tokens.dim();
        let embedded = Array3::from_shape_fn((batch, positions, D_MODEL), |(i, p, k)| {
            self.embed[[tokens[[i, p]] as usize, k]] + 0.1 * (p as f32 * (k + 1) as f32).sin()
        });
        self.forward_from(0, embedded, hook)
    }

    fn forward_from(&self, layer: usize, mut x: Array3<f32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        assert!(layer <= self.n_layers() && x.dim().2 == D_MODEL, "block {layer}, stream {:?}", x.dim());
        for layer in layer..self.n_layers() {
            let [attention, mlp_in, mlp_out] = &self.blocks[layer];
            let at = |site| HookPoint::new(layer, site);
            hook(at(Site::ResidPre), x.view_mut())?;
            let mut out = rows_times(&causal_mean(&x), attention);
            hook(at(Site::AttnOut), out.view_mut())?;
            x += &out;
            hook(at(Site::ResidMid), x.view_mut())?;
            let mut hidden = rows_times(&x, mlp_in).mapv(f32::tanh);
            hook(at(Site::MlpPost), hidden.view_mut())?;
            let mut out = rows_times(&hidden, mlp_out);
            hook(at(Site::MlpOut), out.view_mut())?;
            x += &out;
            hook(at(Site::ResidPost), x.view_mut())?;
        }
        ControlFlow::Continue(rows_times(&x, &self.unembed))
    }
}

pub(crate) const TASK: &str = r#"
names = ["Anna", "Ben", "Carl", "Dora", "Emil", "Fritz", "Gerd", "Hans", "Ida", "Jan"]
places = ["park", "shop"]
objects = ["book", "pen", "kite"]

[[templates]]
order = "ABBA"
text = "When [IO] and [S] met at the [PLACE], [S] gave a [OBJECT] to"

[[templates]]
order = "ABBA"
text = "Then [IO] saw [S], and [S] waved to"

[[templates]]
order = "BABA"
text = "Today [S] and [IO] left the [PLACE] late, so [S] sent a [OBJECT] to"

[[templates]]
order = "BABA"
text = "Soon [S] found [IO], and [S] talked to"
"#;

pub(crate) fn task() -> IoiTask {
    IoiTask::parse(TASK, "test").unwrap()
}

/// Words and commas.
fn words(text: &str) -> Vec<String> {
    text.replace(',', " ,").split_whitespace().map(str::to_owned).collect()
}

/// The words of the task, each a token.
pub(crate) fn vocabulary(task: &IoiTask) -> Vec<String> {
    let lists = task.names.iter().chain(&task.places).chain(&task.objects).cloned();
    let mut all: Vec<String> = task.templates.iter().flat_map(|t| words(&t.text)).chain(lists).collect();
    all.sort();
    all.dedup();
    all
}

pub(crate) fn encoder(vocabulary: Vec<String>) -> impl Fn(&str) -> Vec<u32> {
    move |text| {
        let id =
            |word: String| vocabulary.binary_search(&word).unwrap_or_else(|_| panic!("{word:?} in {text:?}")) as u32;
        words(text).into_iter().map(id).collect()
    }
}

/// Prompts of the task, and the size of the vocabulary.
pub(crate) fn prompts(n: usize, seed: u64, half: Half) -> (Vec<Prompt>, usize) {
    let task = task();
    let vocabulary = vocabulary(&task);
    let size = vocabulary.len();
    (task.prompts(n, seed, half, &encoder(vocabulary)).unwrap(), size)
}

pub(crate) fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

pub(crate) fn argmax(logits: ArrayView1<'_, f32>) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0 as u32
}
