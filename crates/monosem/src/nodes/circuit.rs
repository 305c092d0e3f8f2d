//! `circuits`: features of the last of several dictionaries traced back through the earlier ones.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use anyhow::{Context as _, Result, ensure};
use monosem_activations::Store;
use monosem_assets::Assets;
use monosem_autointerp::{Budget, Moments, rank_correlation};
use monosem_corpus::Contexts;
use monosem_dictionary::{Dictionary as _, Estimate, LinearDictionary};
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_lm::Tokenizer;
use monosem_patching::{Circuit, CircuitConfig, CircuitLayer, Occurrence};
use monosem_report::{ResultRow, write_circuits};
use ndarray::Array2;
use serde_json::json;

use super::{CIRCUITS, Label, capture, corpus, model_inputs, model_params, sae, sae_name, sae_setting, save_rows};
use crate::causal::over_prompts;
use crate::fetch;
use crate::interpretation::{Cut, Part, Settings, stored, vocabulary};
use crate::profile::{Circuits, Language};

/// Contexts encoded at once.
const BATCH: usize = 32;

pub(super) fn node<'a>(language: &'a Language, circuits: &'a Circuits, assets: &'a Assets) -> Node<'a> {
    let mut deps: Vec<String> =
        circuits.hooks.iter().map(|hook| sae_name(*hook, circuits.ratio, circuits.alpha)).collect();
    deps.extend([super::fetch::MODEL.into(), corpus::NAME.into()]);
    deps.extend([capture::TRAIN.into(), capture::INTERPRETATION.into()]);
    let params = json!({
        "circuits": circuits,
        "model": model_params(&language.model, language.center_writing_weights),
        "interp": language.interp,
        "max_norm": language.max_norm,
        "drop_positions": language.capture.drop_positions,
    });
    let code = [
        "patching",
        "autointerp",
        "lm",
        "activations",
        "monosem/nodes/circuit",
        "monosem/nodes/sae",
        "monosem/causal",
        "monosem/interpretation",
    ];
    let weight = 20.0 * (circuits.targets.len() + circuits.automatic) as f64;
    let mut node =
        super::node("circuits".into(), deps, params, &code, weight, move |ctx| run(language, circuits, assets, ctx));
    node.inputs = model_inputs(&language.model);
    node
}

/// A dictionary, and where each of its latents is most active.
struct Layer {
    hook: HookPoint,
    dictionary: LinearDictionary,
    /// For each latent its largest activation in each of a few contexts: the activation, the context, the position.
    strongest: Vec<Vec<(f32, usize, usize)>>,
    moments: Vec<Moments>,
}

fn run(language: &Language, circuits: &Circuits, assets: &Assets, ctx: &Ctx<'_>) -> Result<()> {
    let model = fetch::load(assets, &language.model, language.center_writing_weights, ctx)?;
    let contexts = Contexts::load(&ctx.dep(corpus::NAME)?.join("interpretation.safetensors"))?;
    let layers: Vec<Layer> = circuits
        .hooks
        .iter()
        .map(|hook| Layer::read(language, circuits, *hook, &contexts, ctx))
        .collect::<Result<_>>()?;
    let last = layers.last().context("circuits have hook points")?;
    let traced: Vec<CircuitLayer<'_>> =
        layers.iter().map(|layer| CircuitLayer { hook: layer.hook, dictionary: &layer.dictionary }).collect();
    let config = CircuitConfig {
        drop_positions: language.capture.drop_positions.clone(),
        edges_per_node: circuits.edges_per_node,
        least_effect: circuits.least_effect,
        max_ablations: (circuits.max_ablations > 0).then_some(circuits.max_ablations),
    };
    let mut targets = circuits.targets.clone();
    targets
        .extend(last.by_skew(circuits.occurrences).filter(|t| !circuits.targets.contains(t)).take(circuits.automatic));
    ensure!(
        !targets.is_empty(),
        "no feature of {} is active in {} contexts: lower language.circuits.occurrences, or name targets",
        last.hook,
        circuits.occurrences
    );
    let mut found = Vec::new();
    for (i, &target) in targets.iter().enumerate() {
        let mut occurrences = |layer: usize, feature: usize| layers[layer].occurrences(feature, &contexts);
        let mut progress = |done: usize, known: usize| {
            let known = known.max(1) as u64;
            ctx.progress(i as u64 * known + done as u64, targets.len() as u64 * known, "ablations");
            if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let circuit = Circuit::trace(&model, &traced, target, &mut occurrences, &config, &mut progress);
        if circuit.is_err() {
            ctx.check()?;
        }
        found.push((target, circuit?));
    }
    let explanations = explanations(language, &layers, &found, &contexts, model.config().d_vocab, assets, ctx)?;
    let explained = |hook: HookPoint, feature: usize| {
        let found = explanations.iter().find(|(h, f, _)| (*h, *f) == (hook, feature));
        found.map(|(_, _, text)| text.clone()).unwrap_or_default()
    };
    let mut rows = Vec::new();
    let mut shown = Vec::new();
    for (target, circuit) in &found {
        let setting = format!("{},target={target}", sae_setting(circuits.ratio, circuits.alpha));
        let label = Label::new("circuit", "sae-tied", last.hook, setting);
        rows.extend(rows_of(&label, circuit));
        let dot = circuit.to_dot(&explained);
        let path = ctx.out().join(format!("circuit-{target}.dot"));
        std::fs::write(&path, dot).with_context(|| format!("cannot write {}", path.display()))?;
        shown.push(for_report(&label, circuit, &explained));
    }
    write_circuits(&ctx.out().join(CIRCUITS), &shown)?;
    save_rows(ctx, &rows)
}

impl Layer {
    /// Reads the dictionary, and looks for where its latents are active in the text to interpret by.
    fn read(
        language: &Language,
        circuits: &Circuits,
        hook: HookPoint,
        contexts: &Contexts,
        ctx: &Ctx<'_>,
    ) -> Result<Self> {
        let node = sae_name(hook, circuits.ratio, circuits.alpha);
        let dictionary = LinearDictionary::load(&ctx.dep(&node)?.join(sae::DICTIONARY))?;
        let store = Store::open(&ctx.dep(capture::INTERPRETATION)?.join(capture::STORE))?.hook(hook)?;
        let norm_limit = sae::rows(language, hook, capture::TRAIN, ctx)?.norm_limit();
        let dropped = &language.capture.drop_positions;
        let (n, length) = contexts.tokens.dim();
        let kept: Vec<usize> = (0..length).filter(|position| !dropped.contains(position)).collect();
        let n_latents = dictionary.n_latents();
        let mut strongest: Vec<Vec<(f32, usize, usize)>> = vec![Vec::new(); n_latents];
        let mut moments = vec![Moments::default(); n_latents];
        let mut tokens = 0;
        for first in (0..n).step_by(BATCH) {
            ctx.check()?;
            ctx.progress(first as u64, n as u64, "contexts");
            let of_batch = BATCH.min(n - first);
            let mut rows = Array2::zeros((of_batch * kept.len(), store.width()));
            store.rows(first * kept.len(), rows.view_mut())?;
            let codes = dictionary.encode(rows.view());
            for context in 0..of_batch {
                let mut best: Vec<(u32, f32, usize)> = Vec::new();
                for (place, position) in kept.iter().enumerate() {
                    let row = context * kept.len() + place;
                    if rows.row(row).dot(&rows.row(row)).sqrt() > norm_limit {
                        continue;
                    }
                    tokens += 1;
                    let (latents, values) = codes.row(row);
                    for (&latent, &value) in latents.iter().zip(values) {
                        moments[latent as usize].add(&[value]);
                        best.push((latent, value, *position));
                    }
                }
                best.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
                best.dedup_by_key(|(latent, _, _)| *latent);
                for (latent, value, position) in best {
                    let of_latent = &mut strongest[latent as usize];
                    let at = of_latent.partition_point(|(other, _, _)| *other >= value);
                    of_latent.insert(at, (value, first + context, position));
                    of_latent.truncate(circuits.occurrences);
                }
            }
        }
        for of_latent in &mut moments {
            of_latent.add_silent(tokens - of_latent.n);
        }
        Ok(Self { hook, dictionary, strongest, moments })
    }

    /// Texts that end where a latent is strongly active, the strongest first.
    fn occurrences(&self, feature: usize, contexts: &Contexts) -> Vec<Occurrence> {
        let text = |&(_, context, position): &(f32, usize, usize)| {
            let row = contexts.tokens.row(context);
            Occurrence { tokens: row.iter().take(position + 1).copied().collect() }
        };
        self.strongest[feature].iter().map(text).collect()
    }

    /// Latents active in `n` contexts or more, the largest skew first: centred, for the uncentred one is largest for what is always active.
    fn by_skew(&self, n: usize) -> impl Iterator<Item = usize> {
        let mut latents: Vec<(usize, f64)> = (0..self.strongest.len())
            .filter(|&latent| self.strongest[latent].len() >= n)
            .filter_map(|latent| Some((latent, self.moments[latent].centred_skew()?)))
            .collect();
        latents.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        latents.into_iter().map(|(latent, _)| latent)
    }
}

/// What the features of the circuits fire on, in words, where the profile says how features are explained.
fn explanations(
    language: &Language,
    layers: &[Layer],
    circuits: &[(usize, Circuit)],
    contexts: &Contexts,
    d_vocab: usize,
    assets: &Assets,
    ctx: &Ctx<'_>,
) -> Result<Vec<(HookPoint, usize, String)>> {
    let Some(interp) = &language.interp else { return Ok(Vec::new()) };
    let tokenizer = Tokenizer::load(&fetch::model(assets, &language.model, ctx)?)?;
    let vocabulary = vocabulary(d_vocab, &tokenizer);
    let settings = Settings {
        vocabulary: &vocabulary,
        patterns: interp.patterns,
        budgets: vec![Budget::Patterns(interp.headline)],
        headline: interp.headline,
        seed: interp.seed,
    };
    let cut = Cut::new(contexts, interp.fragment, interp.fragments, &language.capture.drop_positions)?;
    let mut all = Vec::new();
    for layer in layers {
        let nodes = circuits.iter().flat_map(|(_, circuit)| &circuit.nodes);
        let features: BTreeSet<usize> = nodes.filter(|node| node.hook == layer.hook).map(|node| node.feature).collect();
        let store = Store::open(&ctx.dep(capture::INTERPRETATION)?.join(capture::STORE))?.hook(layer.hook)?;
        let norm_limit = sae::rows(language, layer.hook, capture::TRAIN, ctx)?.norm_limit();
        let part = Part { dictionary: &layer.dictionary, latents: features.into_iter().collect() };
        let mut step = |_| Ok(ctx.check()?);
        let gathered = cut.gather(&mut stored(&store, &cut), norm_limit, &[part], &interp.gather(), &mut step)?;
        for feature in gathered.into_iter().flat_map(|examples| settings.explain(&cut.fragments, examples)) {
            let text = settings.sentence(&feature).unwrap_or_default();
            all.push((layer.hook, feature.examples.feature, text));
        }
    }
    Ok(all)
}

fn rows_of(label: &Label, circuit: &Circuit) -> Vec<ResultRow> {
    let target = &circuit.nodes[0];
    let n = target.n_occurrences as u64;
    let [nodes, edges] = [circuit.nodes.len(), circuit.edges.len()];
    let mut rows = vec![
        label.row("circuit_nodes", nodes as f64, n, "features"),
        label.row("circuit_edges", edges as f64, n, "edges"),
        label.row("target_activation", target.mean_activation, n, "1"),
    ];
    let largest = circuit.edges.iter().max_by(|a, b| a.effect().abs().total_cmp(&b.effect().abs()));
    rows.extend(largest.map(|edge| label.estimate("largest_edge", over_prompts(&edge.effects), n, "1")));
    let pairs = |of: fn(&monosem_patching::Candidate) -> f64| circuit.candidates.iter().map(of).collect::<Vec<f64>>();
    let agreement = rank_correlation(&pairs(|c| c.effect), &pairs(|c| c.attribution));
    rows.extend(agreement.map(|found| {
        let estimate = Estimate { value: found.value, interval: found.interval };
        label.estimate("attribution_correlation", estimate, found.n as u64, "1")
    }));
    rows
}

/// The circuit as the report draws it.
fn for_report(
    label: &Label,
    circuit: &Circuit,
    explained: &dyn Fn(HookPoint, usize) -> String,
) -> monosem_report::Circuit {
    let node = |node: &monosem_patching::CircuitNode| monosem_report::CircuitNode {
        hook: node.hook.to_string(),
        feature: node.feature,
        explanation: explained(node.hook, node.feature),
        mean_activation: node.mean_activation,
        n_contexts: node.n_occurrences as u64,
    };
    let edge = |edge: &monosem_patching::CircuitEdge| {
        let effect = over_prompts(&edge.effects);
        let (ablation_low, ablation_high) = effect.interval.unzip();
        let (from, to, attribution) = (edge.from, edge.to, Some(edge.attribution));
        monosem_report::CircuitEdge { from, to, ablation: effect.value, ablation_low, ablation_high, attribution }
    };
    monosem_report::Circuit {
        method: label.method.clone(),
        setting: label.setting.clone(),
        target: 0,
        nodes: circuit.nodes.iter().map(node).collect(),
        edges: circuit.edges.iter().map(edge).collect(),
    }
}
