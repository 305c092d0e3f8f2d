//! `properties-HOOK`: how well the best single latent of each dictionary tells the known properties of the toy language: by how active it is
//! (AUROC), and by whether it is active at all (F1).

use std::ops::ControlFlow;

use anyhow::{Context as _, Result, ensure};
use monosem_assets::Assets;
use monosem_corpus::toy::{Property, PropertySet, labelled_contexts};
use monosem_dictionary::{Activation, Dictionary as _, Estimate, LinearDictionary, Ranking, auroc};
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
use super::{Label, capture, measure, model_inputs, model_params, sae_name, save_rows};
use crate::fetch;
use crate::profile::{Language, Properties};

/// Contexts in one forward pass.
const BATCH: usize = 32;

/// A property counts as found by a latent above this AUROC.
const FOUND: f64 = 0.9;

/// A property that holds at fewer rows of a half is not measured.
const LEAST: usize = 20;

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
    });
    let code = ["corpus", "dictionary", "lm", "monosem/nodes/properties", "monosem/nodes/measure"];
    let run = move |ctx: &Ctx<'_>| run(language, properties, hook, assets, ctx);
    let mut node = super::node(format!("properties-{hook}"), deps, params, &code, 10.0, run);
    node.inputs = model_inputs(&language.model);
    node
}

/// Rows of activations, what is known about each, and the document it is from.
struct Labelled {
    x: Array2<f32>,
    properties: Vec<PropertySet>,
    documents: Vec<u32>,
}

fn run(language: &Language, properties: &Properties, hook: HookPoint, assets: &Assets, ctx: &Ctx<'_>) -> Result<()> {
    let rows = labelled_rows(language, properties, hook, assets, ctx)?;
    // Latents are chosen on the one half and reported on the other; a context is on one side.
    let half = rows.x.nrows() / 2;
    let mut results = Vec::new();
    let mut measure = |method: &str, setting: &str, dictionary: &LinearDictionary| -> Result<()> {
        ctx.check()?;
        let codes = dictionary.encode(rows.x.view()).to_dense();
        let label = Label::new("properties", method, hook, setting);
        results.extend(best_latents(&label, codes.view(), &rows, half));
        Ok(())
    };
    for sae in measure::autoencoders(language, hook, ctx)? {
        measure("sae-tied", &sae.setting(), &sae.dictionary)?;
    }
    let signed = |node: String| -> Result<_> { Ok(LinearDictionary::load(&ctx.dep(&node)?.join(SIGNED))?) };
    measure("pca", "", &signed(baselines::pca_name(hook))?)?;
    measure("ica", "", &signed(baselines::ica_name(hook))?)?;
    measure("identity-relu", "", &LinearDictionary::identity_relu(rows.x.ncols()))?;
    measure("random-relu", "", &measure::random(language, rows.x.ncols(), Activation::Relu))?;
    save_rows(ctx, &results)
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
fn best_latents(label: &Label, codes: ArrayView2<'_, f32>, rows: &Labelled, half: usize) -> Vec<ResultRow> {
    let (choose, report) = rows.properties.split_at(half);
    let holds = |sets: &[PropertySet], property: Property| -> Vec<bool> {
        sets.iter().map(|set| set.contains(property)).collect()
    };
    let measured: Vec<(Property, Vec<bool>)> = Property::ALL
        .into_iter()
        .filter(|property| {
            [choose, report].iter().all(|half| half.iter().filter(|set| set.contains(*property)).count() >= LEAST)
        })
        .map(|property| (property, holds(choose, property)))
        .collect();
    // [latent][property]
    let areas: Vec<Vec<f64>> = (0..codes.ncols())
        .into_par_iter()
        .map(|latent| {
            let ranking = Ranking::new(&codes.slice(s![..half, latent]).to_vec());
            measured.iter().map(|(_, labels)| ranking.auroc(labels).unwrap_or(0.5)).collect()
        })
        .collect();
    let mut results = Vec::new();
    let mut found = 0;
    for (i, (property, _)) in measured.iter().enumerate() {
        let strength = |area: f64| (area - 0.5).abs();
        let best = (0..areas.len()).max_by(|a, b| strength(areas[*a][i]).total_cmp(&strength(areas[*b][i])));
        let Some(best) = best else { continue };
        // A latent that falls silent where the property holds tells it as well.
        let sign = if areas[best][i] < 0.5 { -1.0 } else { 1.0 };
        let values: Vec<f32> = codes.slice(s![half.., best]).iter().map(|code| sign * code).collect();
        let labels = holds(report, *property);
        let Some(value) = auroc(&values, &labels) else { continue };
        let interval = interval(&values, &labels, &rows.documents[half..]);
        let label = label.with_setting(&format!("property={}", property.name()));
        results.push(label.estimate("best_auroc", Estimate { value, interval }, labels.len() as u64, "1"));
        results.push(label.row("best_latent", best as f64, labels.len() as u64, "index"));
        found += usize::from(value >= FOUND);
        let f1_of =
            |latent: usize, rows: std::ops::Range<usize>, labels: &[bool]| f1(codes.slice(s![rows, latent]), labels);
        let chosen = &measured[i].1;
        let by_f1 = (0..codes.ncols()).into_par_iter().map(|latent| (latent, f1_of(latent, 0..half, chosen)));
        let best = by_f1.reduce(|| (0, -1.0), |a, b| if (b.1, a.0) > (a.1, b.0) { b } else { a }).0;
        results.push(label.row("f1", f1_of(best, half..rows.x.nrows(), &labels), labels.len() as u64, "1"));
    }
    results.push(label.row("properties_found", found as f64, measured.len() as u64, "properties"));
    results
}

/// Harmonic mean of precision and recall where "active" is taken for "the property holds".
fn f1(codes: ArrayView1<'_, f32>, labels: &[bool]) -> f64 {
    let (mut hits, mut active, mut holds) = (0u32, 0u32, 0u32);
    for (code, label) in codes.iter().zip(labels) {
        let is_active = *code > 0.0;
        hits += u32::from(is_active && *label);
        active += u32::from(is_active);
        holds += u32::from(*label);
    }
    2.0 * f64::from(hits) / f64::from(active + holds).max(1.0)
}

/// A percentile bootstrap over documents.
fn interval(values: &[f32], labels: &[bool], documents: &[u32]) -> Option<(f64, f64)> {
    let runs: Vec<std::ops::Range<usize>> = documents
        .chunk_by(|a, b| a == b)
        .scan(0, |start, run| {
            let range = *start..*start + run.len();
            *start = range.end;
            Some(range)
        })
        .collect();
    let resample = |seed: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
        let (mut drawn, mut held) = (Vec::with_capacity(values.len()), Vec::with_capacity(values.len()));
        for _ in 0..runs.len() {
            let run = runs[rng.random_range(0..runs.len())].clone();
            drawn.extend_from_slice(&values[run.clone()]);
            held.extend_from_slice(&labels[run]);
        }
        auroc(&drawn, &held)
    };
    let mut areas: Vec<f64> = (0..RESAMPLES).into_par_iter().filter_map(resample).collect();
    areas.sort_by(f64::total_cmp);
    let outside = areas.len() / 40;
    (areas.len() > 40).then(|| (areas[outside], areas[areas.len() - 1 - outside]))
}
