//! Contexts run from a position on, against contexts run whole.

use std::ops::ControlFlow;
use std::path::Path;

use monosem_hooks::{Hook, HookPoint, HookedModel, Past, Resumed, Resumption, Site};
use monosem_lm::{LanguageModel, LoadOptions};
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, s};
use proptest::prelude::*;

const NAMES: [&str; 3] = ["neox-tiny", "gpt2-tiny", "llama-tiny"];

fn load(name: &str) -> LanguageModel {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden")).join(name);
    LanguageModel::load(&folder, &LoadOptions::default()).unwrap()
}

/// The same model with what a model does that does not implement [`HookedModel::resume`].
struct Plain<'a>(&'a LanguageModel);

impl HookedModel for Plain<'_> {
    fn n_layers(&self) -> usize {
        self.0.n_layers()
    }

    fn d_vocab(&self) -> usize {
        self.0.d_vocab()
    }

    fn max_context(&self) -> usize {
        self.0.max_context()
    }

    fn width(&self, site: Site) -> Option<usize> {
        self.0.width(site)
    }

    fn forward(&self, tokens: ArrayView2<'_, u32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        self.0.forward(tokens, hook)
    }

    fn forward_from(&self, layer: usize, resid: Array3<f32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        self.0.forward_from(layer, resid, hook)
    }
}

/// A context at a block: what enters it, and what is put at a site of it.
struct Context {
    stream: Array2<f32>,
    replaced: Option<(Site, Array2<f32>)>,
}

impl Context {
    fn new(model: &LanguageModel, layer: usize, n: usize, site: Option<Site>, seed: u32) -> Self {
        let noise = |width: usize, seed: u32| {
            Array2::from_shape_fn((n, width), |(i, k)| ((i * 31 + k * 17 + seed as usize * 101) as f32).sin())
        };
        let site = site.filter(|_| layer < model.n_layers());
        let replaced = site.and_then(|site| Some((site, noise(model.width(site)?, seed + 7))));
        Self { stream: noise(model.d_model(), seed), replaced }
    }

    fn whole(&self, model: &dyn HookedModel, layer: usize) -> Array1<f32> {
        let stream = self.stream.clone().insert_axis(Axis(0));
        let logits = model.forward_from(layer, stream, &mut |point, mut activations| {
            if let Some((_, x)) = self.replaced.as_ref().filter(|(site, _)| point == HookPoint::new(layer, *site)) {
                activations.index_axis_mut(Axis(0), 0).assign(x);
            }
            ControlFlow::Continue(())
        });
        logits.continue_value().unwrap().slice(s![0, -1, ..]).to_owned()
    }

    fn from<'a>(&'a self, first: usize, past: Option<&'a Past>) -> Resumed<'a> {
        let replaced = self.replaced.as_ref().map(|(site, x)| (*site, x.slice(s![first.., ..])));
        Resumed { past, first, stream: self.stream.slice(s![first.., ..]), replaced }
    }
}

fn close(a: &Array1<f32>, b: ndarray::ArrayView1<'_, f32>) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + a.abs()))
}

const SITES: [Option<Site>; 6] =
    [None, Some(Site::ResidPre), Some(Site::AttnZ), Some(Site::AttnOut), Some(Site::MlpPost), Some(Site::ResidPost)];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn contexts_resumed_are_contexts_run_whole(
        name in prop::sample::select(&NAMES[..]),
        layer in 0usize..3,
        lengths in prop::collection::vec((2usize..12, 0usize..100), 1..5),
        site in prop::sample::select(&SITES[..]),
        seed in 0u32..1000,
    ) {
        let model = load(name);
        let layer = layer.min(model.n_layers());
        for model in [&model as &dyn HookedModel, &Plain(&model)] {
            let real = load(name);
            let contexts: Vec<Context> =
                (0u32..).zip(&lengths).map(|(i, (n, _))| Context::new(&real, layer, *n, site, seed + 50 * i)).collect();
            let all: Vec<Resumed<'_>> = contexts.iter().map(|c| c.from(0, None)).collect();
            let Resumption { logits, pasts } = model.resume(layer, &all, true);
            for (context, logits) in contexts.iter().zip(logits.rows()) {
                prop_assert!(close(&context.whole(model, layer), logits));
            }
            // Other activations from somewhere on: what was kept of the positions before serves.
            let mut changed: Vec<Context> =
                (0u32..).zip(&lengths).map(|(i, (n, _))| Context::new(&real, layer, *n, site, seed + 50 * i + 9000)).collect();
            let firsts: Vec<usize> = lengths.iter().map(|(n, draw)| draw % n).collect();
            for ((changed, before), &first) in changed.iter_mut().zip(&contexts).zip(&firsts) {
                changed.stream.slice_mut(s![..first, ..]).assign(&before.stream.slice(s![..first, ..]));
                if let (Some((_, x)), Some((_, before))) = (&mut changed.replaced, &before.replaced) {
                    x.slice_mut(s![..first, ..]).assign(&before.slice(s![..first, ..]));
                }
            }
            let from: Vec<Resumed<'_>> =
                changed.iter().zip(&pasts).zip(&firsts).map(|((c, past), first)| c.from(*first, Some(past))).collect();
            let resumed = model.resume(layer, &from, true);
            prop_assert_eq!(&resumed.logits, &model.resume(layer, &from, false).logits);
            for (context, logits) in changed.iter().zip(resumed.logits.rows()) {
                prop_assert!(close(&context.whole(model, layer), logits));
            }
            // And so does what was kept of both, put together.
            let mut together = pasts.clone();
            for ((past, newer), first) in together.iter_mut().zip(&resumed.pasts).zip(&firsts) {
                past.replace_from(*first, newer);
            }
            let last: Vec<Resumed<'_>> =
                changed.iter().zip(&together).map(|(c, past)| c.from(c.stream.nrows() - 1, Some(past))).collect();
            for (context, logits) in changed.iter().zip(model.resume(layer, &last, false).logits.rows()) {
                prop_assert!(close(&context.whole(model, layer), logits));
            }
        }
    }
}

#[test]
fn a_context_does_not_depend_on_its_neighbours() {
    for name in NAMES {
        let model = load(name);
        let contexts: Vec<Context> = (2..7).map(|n| Context::new(&model, 1, n, None, n as u32)).collect();
        let all: Vec<Resumed<'_>> = contexts.iter().map(|c| c.from(0, None)).collect();
        let together = model.resume(1, &all, false).logits;
        for (i, context) in all.iter().enumerate() {
            let alone = model.resume(1, std::slice::from_ref(context), false).logits;
            assert!(close(&alone.row(0).to_owned(), together.row(i)), "{name}: context {i}");
        }
    }
    assert_eq!(load(NAMES[0]).resume(1, &[], true).pasts, []);
}

#[test]
#[should_panic(expected = "a context resumed at 2 has no past")]
fn a_context_without_its_past_is_a_fault() {
    let model = load(NAMES[0]);
    let context = Context::new(&model, 1, 5, None, 0);
    let _ = model.resume(1, &[context.from(2, None)], false);
}
