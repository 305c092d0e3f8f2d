//! `properties-HOOK`: how well the best single latent of each dictionary tells the known properties of the toy language: by how active it is
//! (AUROC), and by whether it is active at all (F1). Then, in `probing`, sparse probes and feature absorption.

use std::ops::ControlFlow;

use anyhow::{Context as _, Result, ensure};
use monosem_assets::Assets;
use monosem_corpus::toy::{Property, PropertySet, labelled_contexts};
use monosem_dictionary::{Activation, Dictionary as _, Estimate, LinearDictionary, Ranking};
use monosem_graph::{Ctx, Node};
use monosem_hooks::{HookPoint, HookedModel};
use monosem_lm::Tokenizer;
use monosem_report::ResultRow;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::baselines::{self, SIGNED};
use super::{Label, capture, measure, model_inputs, model_params, probing, sae, sae_name, save_rows};
use crate::fetch;
use crate::profile::{Language, Properties};

/// Contexts in one forward pass.
const BATCH: usize = 32;

/// A property counts as found by a latent, or by a probe, above this AUROC.
pub(super) const FOUND: f64 = 0.9;

/// A property that holds at fewer rows of a half is not measured.
pub(super) const LEAST: usize = 20;

const RESAMPLES: usize = 200;

pub(super) fn node<'a>(
    language: &'a Language,
    properties: &'a Properties,
    hook: HookPoint,
    assets: &'a Assets,
) -> Node<'a> {
    // The captured rows are not read; they say by their key what the dictionaries were made from.
    let mut deps = vec![capture::TRAIN.into(), baselines::pca_name(hook), baselines::ica_name(hook)];
    deps.extend(language.cases().into_iter().map(|(ratio, alpha)| sae_name(hook, ratio, alpha)));
    if !language.families.is_empty() {
        deps.push(sae::families_name(hook));
    }
    let params = json!({
        "hook": hook,
        "model": model_params(&language.model, language.center_writing_weights),
        "properties": properties,
        "context": language.corpus.context,
        "drop_positions": language.capture.drop_positions,
        "random_ratio": language.baselines.random_ratio,
        "seed": language.baselines.seed,
        "ratios": language.sae.ratios,
        "alphas": language.sae.alphas,
        "families": language.families,
    });
    let code = [
        "corpus",
        "dictionary",
        "lm",
        "monosem/nodes/properties",
        "monosem/nodes/probing",
        "monosem/nodes/measure",
        "monosem/nodes/sae",
    ];
    let run = move |ctx: &Ctx<'_>| run(language, properties, hook, assets, ctx);
    let mut node = super::node(format!("properties-{hook}"), deps, params, &code, 10.0, run);
    node.inputs = model_inputs(&language.model);
    node
}

/// Rows of activations, what is known about each, and the document it is from.
pub(super) struct Labelled {
    pub(super) x: Array2<f32>,
    pub(super) properties: Vec<PropertySet>,
    documents: Vec<u32>,
}

/// A property to be told, and where it holds: in the first half of the rows, where everything is chosen and fitted, and in the second, where it is
/// measured.
pub(super) struct Task {
    pub(super) property: Property,
    pub(super) choose: Vec<bool>,
    pub(super) report: Vec<bool>,
}

fn run(language: &Language, properties: &Properties, hook: HookPoint, assets: &Assets, ctx: &Ctx<'_>) -> Result<()> {
    let rows = labelled_rows(language, properties, hook, assets, ctx)?;
    // Latents are chosen on the one half and reported on the other; a context is on one side.
    let half = rows.x.nrows() / 2;
    let tasks = tasks(&rows.properties, half);
    let bootstrap = Bootstrap::new(&rows.documents[half..]);
    let label = |method: &str, setting: &str| Label::new("properties", method, hook, setting);
    ctx.check()?;
    let (dense, mut results) = probing::dense(&label("identity", ""), &rows, half, &tasks, &bootstrap);
    let mut measure = |method: &str, setting: &str, dictionary: &LinearDictionary| -> Result<()> {
        ctx.check()?;
        let codes = dictionary.encode(rows.x.view());
        let values = codes.to_dense();
        let label = label(method, setting);
        results.extend(best_latents(&label, values.view(), &tasks, half, &bootstrap));
        results.extend(probing::sparse(&label, values.view(), &tasks, half, &bootstrap));
        // A latent that is almost never silent, or signed, has no rows to lose.
        if method.starts_with("sae-") || method == "random-relu" {
            let first = values.slice(s![..half, ..]);
            results.extend(probing::absorption(&label, dictionary, &codes, first, &rows, &tasks, &dense, &bootstrap));
        }
        Ok(())
    };
    for sae in measure::autoencoders(language, hook, ctx)? {
        measure("sae-tied", &sae.setting(), &sae.dictionary)?;
    }
    for (case, dictionary) in language.families.iter().zip(sae::families(language, hook, ctx)?) {
        measure(&case.method(), &case.setting(), &dictionary)?;
    }
    let signed = |node: String| -> Result<_> { Ok(LinearDictionary::load(&ctx.dep(&node)?.join(SIGNED))?) };
    measure("pca", "", &signed(baselines::pca_name(hook))?)?;
    measure("ica", "", &signed(baselines::ica_name(hook))?)?;
    measure("identity-relu", "", &LinearDictionary::identity_relu(rows.x.ncols()))?;
    measure("random-relu", "", &measure::random(language, rows.x.ncols(), Activation::Relu))?;
    save_rows(ctx, &results)
}

/// The properties that hold often enough in both halves.
fn tasks(properties: &[PropertySet], half: usize) -> Vec<Task> {
    let (choose, report) = properties.split_at(half);
    let holds = |sets: &[PropertySet], property: Property| -> Vec<bool> {
        sets.iter().map(|set| set.contains(property)).collect()
    };
    let task = |property| Task { property, choose: holds(choose, property), report: holds(report, property) };
    let often = |labels: &[bool]| labels.iter().filter(|label| **label).count() >= LEAST;
    Property::ALL.into_iter().map(task).filter(|task| often(&task.choose) && often(&task.report)).collect()
}

fn labelled_rows(
    language: &Language,
    properties: &Properties,
    hook: HookPoint,
    assets: &Assets,
    ctx: &Ctx<'_>,
) -> Result<Labelled> {
    let model = fetch::load(assets, &language.model, language.center_writing_weights, ctx)?;
    let tokenizer = Tokenizer::load(&fetch::model(assets, &language.model, ctx)?)?;
    let eos = tokenizer.eos().context("the tokenizer names no end-of-text token")?;
    let encode = |text: &str| Ok(tokenizer.encode(text)?);
    let context = language.corpus.context;
    let labelled = labelled_contexts(properties.documents, properties.seed, context, eos, &encode)?;
    let dropped = &language.capture.drop_positions;
    let kept: Vec<usize> = (0..context).filter(|position| !dropped.contains(position)).collect();
    let mut x = Vec::new();
    let mut sets = Vec::new();
    let mut documents = Vec::new();
    for (i, tokens) in labelled.tokens.axis_chunks_iter(Axis(0), BATCH).enumerate() {
        ctx.check()?;
        let mut found = false;
        let _ = model.forward(tokens, &mut |point, activations| {
            if point != hook {
                return ControlFlow::Continue(());
            }
            found = true;
            for context in activations.outer_iter() {
                kept.iter().for_each(|position| x.extend(context.row(*position)));
            }
            ControlFlow::Break(())
        });
        ensure!(found, "the model has no hook point {hook}");
        for at in i * BATCH..i * BATCH + tokens.nrows() {
            sets.extend(kept.iter().map(|position| PropertySet::from_bits(labelled.properties[[at, *position]])));
            documents.extend(kept.iter().map(|position| labelled.documents[[at, *position]]));
        }
    }
    let x = Array2::from_shape_vec((sets.len(), x.len() / sets.len().max(1)), x)?;
    Ok(Labelled { x, properties: sets, documents })
}

/// For each property the AUROC of the latent that told it best on the first half, measured on the second; and how many were found.
fn best_latents(
    label: &Label,
    codes: ArrayView2<'_, f32>,
    tasks: &[Task],
    half: usize,
    bootstrap: &Bootstrap,
) -> Vec<ResultRow> {
    // [latent][property]
    let areas: Vec<Vec<f64>> = (0..codes.ncols())
        .into_par_iter()
        .map(|latent| {
            let ranking = Ranking::new(&codes.slice(s![..half, latent]).to_vec());
            tasks.iter().map(|task| ranking.auroc(&task.choose).unwrap_or(0.5)).collect()
        })
        .collect();
    let mut results = Vec::new();
    let mut found = 0_u64;
    for (i, task) in tasks.iter().enumerate() {
        let strength = |area: f64| (area - 0.5).abs();
        let best = (0..areas.len()).max_by(|a, b| strength(areas[*a][i]).total_cmp(&strength(areas[*b][i])));
        let Some(best) = best else { continue };
        // A latent that falls silent where the property holds tells it as well.
        let sign = if areas[best][i] < 0.5 { -1.0 } else { 1.0 };
        let values: Vec<f32> = codes.slice(s![half.., best]).iter().map(|code| sign * code).collect();
        let labels = &task.report;
        let Some(estimate) = bootstrap.auroc(&values, labels) else { continue };
        let label = label.with_setting(&format!("property={}", task.property.name()));
        results.push(label.estimate("best_auroc", estimate, labels.len() as u64, "1"));
        results.push(label.row("best_latent", best as f64, labels.len() as u64, "index"));
        found += u64::from(estimate.value >= FOUND);
        let once = vec![1; half];
        let f1_here = |latent: usize| f1(codes.slice(s![..half, latent]), &task.choose, &once);
        let by_f1 = (0..codes.ncols()).into_par_iter().map(|latent| (latent, f1_here(latent)));
        let best = by_f1.reduce(|| (0, -1.0), |a, b| if (b.1, a.0) > (a.1, b.0) { b } else { a }).0;
        let reported = codes.slice(s![half.., best]);
        let value = f1(reported, labels, &vec![1; labels.len()]);
        let interval = bootstrap.interval(|times| Some(f1(reported, labels, times)));
        results.push(label.estimate("f1", Estimate { value, interval }, labels.len() as u64, "1"));
    }
    let n = tasks.len() as f64;
    let interval = Estimate::of_share(found, tasks.len() as u64).interval.map(|(low, high)| (n * low, n * high));
    let found = Estimate { value: found as f64, interval };
    results.push(label.estimate("properties_found", found, tasks.len() as u64, "properties"));
    results
}

/// Harmonic mean of precision and recall where "active" is taken for "the property holds", each row counted so many `times`.
fn f1(codes: ArrayView1<'_, f32>, labels: &[bool], times: &[u32]) -> f64 {
    let (mut hits, mut active, mut holds) = (0, 0, 0);
    for ((code, label), times) in codes.iter().zip(labels).zip(times) {
        let is_active = *code > 0.0;
        hits += if is_active && *label { *times } else { 0 };
        active += if is_active { *times } else { 0 };
        holds += if *label { *times } else { 0 };
    }
    2.0 * f64::from(hits) / f64::from(active + holds).max(1.0)
}

/// Documents drawn with replacement: how often each row then counts.
pub(super) struct Bootstrap(Vec<Vec<u32>>);

impl Bootstrap {
    /// For rows of these documents, which follow one another.
    pub(super) fn new(documents: &[u32]) -> Self {
        let runs: Vec<usize> = documents.chunk_by(|a, b| a == b).map(<[u32]>::len).collect();
        let draw = |seed: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
            let mut times = vec![0; runs.len()];
            (0..runs.len()).for_each(|_| times[rng.random_range(0..runs.len())] += 1);
            runs.iter().zip(times).flat_map(|(rows, times)| std::iter::repeat_n(times, *rows)).collect()
        };
        Self((0..RESAMPLES).into_par_iter().map(draw).collect())
    }

    /// The percentile interval of a statistic of how often each row counts.
    pub(super) fn interval(&self, statistic: impl Fn(&[u32]) -> Option<f64> + Sync) -> Option<(f64, f64)> {
        let mut values: Vec<f64> = self.0.par_iter().filter_map(|times| statistic(times)).collect();
        values.sort_by(f64::total_cmp);
        let outside = values.len() / 40;
        (values.len() > 40).then(|| (values[outside], values[values.len() - 1 - outside]))
    }

    /// The AUROC of values; `None` where the labels are all the same.
    pub(super) fn auroc(&self, values: &[f32], labels: &[bool]) -> Option<Estimate> {
        let ranking = Ranking::new(values);
        let value = ranking.auroc(labels)?;
        Some(Estimate { value, interval: self.interval(|times| ranking.auroc_of_draw(labels, times)) })
    }
}
