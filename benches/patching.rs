//! Patched evaluations per second, against whole forward passes and against passes from the hook point on.
//!
//! `cargo bench --bench patching [-- --json]` patches one feature at a time of 50 prompts of indirect object identification, after block 18 of
//! SmolLM2-135M, and measures KL to the counterfactual. Three ways take turns in one run: the whole model from the tokens on, as a hook of a general
//! library does it; the blocks above the hook point, all positions of prompts padded to one length; and `Patching`, which runs what changed.
//! All find the same KL, which the bench checks. Without `--bench` (as under `cargo test`) a tiny model shows that it still works.

mod support;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use monosem_dictionary::{Activation, Dictionary, LinearDictionary};
use monosem_hooks::{HookPoint, HookedModel, Site};
use monosem_lm::{LanguageModel, LoadOptions, Tokenizer};
use monosem_patching::{Half, IoiTask, Patching, PatchingConfig, Prompt};
use ndarray::{Array2, Array3, ArrayView1, Axis, s};

struct Case {
    name: &'static str,
    model: LanguageModel,
    prompts: Vec<Prompt>,
    hook: HookPoint,
    ratio: usize,
    /// Features tried in a round, and rounds.
    features: usize,
    rounds: usize,
}

fn main() {
    let flag = |name: &str| std::env::args().any(|a| a == name);
    if !flag("--bench") {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/toy-model"));
        run(&case("toy-model", folder, "toy.toml", 0, (2, 2, 1)), true);
        return;
    }
    run(&case("smollm2-135m", &support::smollm2(), "templates.toml", 18, (4, 3, 3)), flag("--json"));
}

fn case(
    name: &'static str,
    path: &Path,
    task: &str,
    layer: usize,
    (ratio, features, rounds): (usize, usize, usize),
) -> Case {
    let model = LanguageModel::load(path, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let tokenizer = Tokenizer::load(path).unwrap_or_else(|e| panic!("{e}"));
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/ioi")).join(task);
    let text = std::fs::read_to_string(file).expect("the task is in the repository");
    let task = IoiTask::parse(&text, task).unwrap_or_else(|e| panic!("{e}"));
    let encode = |text: &str| tokenizer.encode(text).unwrap_or_default();
    let prompts = task.prompts(50, 0, Half::Report, &encode).unwrap_or_else(|e| panic!("{e}"));
    Case { name, model, prompts, hook: HookPoint::new(layer, Site::ResidPost), ratio, features, rounds }
}

/// The mean KL with each of some features patched alone.
type Way<'a> = dyn Fn(&[usize]) -> Vec<f64> + 'a;

fn run(case: &Case, json: bool) {
    let Case { model, prompts, hook, .. } = case;
    let d = model.d_model();
    // As many latents active as the autoencoders of this size that patching is for.
    let k = (d / 9).max(2);
    let dictionary = LinearDictionary::random(case.ratio * d, d, Activation::TopK { k }, 0);
    let config = PatchingConfig { hook: *hook, drop_positions: vec![0], with_error_term: false };
    let patching = Patching::new(model, &dictionary, prompts, &config).unwrap_or_else(|e| panic!("{e}"));
    let unpatched = patching.unpatched().mean_kl();
    let plain = Plain::new(model, &dictionary, prompts, *hook);
    let features: Vec<usize> = {
        let all = patching.candidates();
        let n = (case.features * case.rounds).min(all.len());
        (0..n).map(|i| all[i * all.len() / n]).collect()
    };
    // Prompts on which a feature changes nothing are no evaluations for any of the three.
    let changed = |feature: &usize| patching.feature_changes(&[*feature])[0].n_prompts;
    let ways: [(&str, &Way<'_>); 3] = [
        ("whole model", &|features| features.iter().map(|f| plain.kl(*f, false)).collect()),
        ("from the hook point", &|features| features.iter().map(|f| plain.kl(*f, true)).collect()),
        ("patching", &|features| {
            let effects = patching.single_effects(features, &mut |_, _| ControlFlow::Continue(()));
            effects.unwrap_or_else(|e| panic!("{e}")).iter().map(|effect| unpatched - effect.kl_fall).collect()
        }),
    ];
    ways.iter().for_each(|(_, way)| drop(way(&features[..1])));
    let mut per_second = vec![Vec::new(); ways.len()];
    for round in features.chunks(case.features) {
        let n: usize = round.iter().map(changed).sum();
        let mut found: Option<Vec<f64>> = None;
        for ((name, way), rates) in ways.iter().zip(&mut per_second) {
            let start = Instant::now();
            let kl = way(round);
            rates.push(n as f64 / start.elapsed().as_secs_f64());
            let expected = found.get_or_insert_with(|| kl.clone());
            let far = kl.iter().zip(expected.iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far < 1e-3, "{name}: the mean KL is {far} nats off");
        }
    }
    let of_whole = per_second[0].clone();
    for ((name, _), rates) in ways.iter().zip(per_second) {
        let ratio = median(rates.iter().zip(&of_whole).map(|(a, b)| a / b).collect());
        let rate = median(rates);
        if json {
            println!(
                "{}",
                serde_json::json!({
                    "bench": "patching", "model": case.name, "hook": hook.to_string(), "way": name,
                    "patched_evaluations_per_s": rate, "of_whole_model": ratio,
                })
            );
        } else {
            println!("{} {hook}, {name}: {rate:.1} patched prompts/s, {ratio:.2} times the whole model", case.name);
        }
    }
}

/// Prompts of one length, patched without regard to what changes.
struct Plain<'a> {
    model: &'a LanguageModel,
    dictionary: &'a LinearDictionary,
    hook: HookPoint,
    tokens: Array2<u32>,
    ends: Vec<usize>,
    /// Activations `[prompt, position, width]`, and of the counterfactuals.
    x: Array3<f32>,
    codes: [Vec<monosem_dictionary::Codes>; 2],
    target: Vec<Vec<f64>>,
}

impl<'a> Plain<'a> {
    fn new(model: &'a LanguageModel, dictionary: &'a LinearDictionary, prompts: &[Prompt], hook: HookPoint) -> Self {
        let padded = |of: &dyn Fn(&Prompt) -> &[u32]| {
            let longest = prompts.iter().map(|p| of(p).len()).max().unwrap_or(0);
            Array2::from_shape_fn((prompts.len(), longest), |(i, j)| of(&prompts[i]).get(j).copied().unwrap_or(0))
        };
        let ends: Vec<usize> = prompts.iter().map(Prompt::end).collect();
        let (tokens, target_tokens) = (padded(&|p| &p.tokens), padded(&|p| &p.target_tokens));
        let seen = |tokens: &Array2<u32>| {
            let mut x = None;
            let logits = model.forward(tokens.view(), &mut |point, activations| {
                if point == hook {
                    x = Some(activations.to_owned());
                }
                ControlFlow::Continue(())
            });
            (x.expect("a pass visits the hook point"), logits.continue_value().expect("nothing ends the pass"))
        };
        let ((x, _), (x_target, logits)) = (seen(&tokens), seen(&target_tokens));
        let codes = [&x, &x_target].map(|x| x.outer_iter().map(|x| dictionary.encode(x)).collect());
        let target = ends.iter().enumerate().map(|(i, end)| log_softmax(logits.slice(s![i, *end, ..]))).collect();
        Self { model, dictionary, hook, tokens, ends, x, codes, target }
    }

    /// The mean KL with one feature patched.
    fn kl(&self, feature: usize, from_hook: bool) -> f64 {
        let mut patched = self.x.clone();
        let direction = self.dictionary.w_dec.row(feature);
        let code = |codes: &monosem_dictionary::Codes, position: usize| {
            let (latents, values) = codes.row(position);
            latents.binary_search(&(feature as u32)).map_or(0.0, |i| values[i])
        };
        for (i, mut x) in patched.outer_iter_mut().enumerate() {
            for position in 1..=self.ends[i] {
                let change = code(&self.codes[1][i], position) - code(&self.codes[0][i], position);
                x.row_mut(position).scaled_add(change, &direction);
            }
        }
        let top = HookPoint::new(self.model.n_layers() - 1, Site::ResidPost);
        let mut last = None;
        let mut hook = |point: HookPoint, mut x: ndarray::ArrayViewMut3<'_, f32>| {
            if point == self.hook && !from_hook {
                x.assign(&patched);
            }
            if point != top {
                return ControlFlow::Continue(());
            }
            last = Some(Array3::from_shape_fn((self.ends.len(), 1, x.dim().2), |(i, _, k)| x[[i, self.ends[i], k]]));
            ControlFlow::Break(())
        };
        if from_hook && self.hook.layer + 1 < self.model.n_layers() {
            let _ = self.model.forward_from(self.hook.layer + 1, patched.clone(), &mut hook);
        } else {
            let _ = self.model.forward(self.tokens.view(), &mut hook);
        }
        let last = last.expect("a pass visits the last block");
        let logits = self.model.forward_from(self.model.n_layers(), last, &mut |_, _| ControlFlow::Continue(()));
        let logits = logits.continue_value().expect("nothing ends the pass");
        let of = |(logits, q): (ndarray::ArrayView2<'_, f32>, &Vec<f64>)| {
            let p = log_softmax(logits.index_axis(Axis(0), 0));
            p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        };
        logits.outer_iter().zip(&self.target).map(of).sum::<f64>() / self.ends.len() as f64
    }
}

fn log_softmax(logits: ArrayView1<'_, f32>) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| f64::from(l - top).exp()).sum();
    logits.iter().map(|l| f64::from(l - top) - total.ln()).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
