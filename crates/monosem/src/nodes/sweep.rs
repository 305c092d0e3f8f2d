//! `sweep-HOOK-rRATIO`: autoencoders of one size with every coefficient and seed, in one pass; `sweep-families-HOOK`: other families, likewise;
//! `sweep-measure-HOOK`: all of them and the baselines on the same held-out rows; `sweep-layers-SITE`: how alike the dictionaries of different layers are.

use std::ops::ControlFlow;

use anyhow::{Context as _, Result, anyhow};
use monosem_autointerp::{Moments, Summary, mean};
use monosem_dictionary::{ALIVE_MORE_THAN, Dictionary, Estimate, LinearDictionary, capacity, matching, mmcs};
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_report::ResultRow;
use monosem_sae::{Sae, StepStats, TrainConfig, Trainer};
use ndarray::{Array2, ArrayView2, Axis};
use serde_json::json;

use super::baselines::{self, GAIN_ROWS};
use super::curve::{self, Curve};
use super::measure::evaluation_rows;
use super::{Label, capture, node, read_json, sae, sae_setting, save_rows, write_json};
use crate::evaluation::evaluate_codes;
use crate::profile::{FamilyCase, Language, Sweep};

const EXPERIMENT: &str = "sweep";
const TRAINING: &str = "sweep-training";

/// Directions count as found again by a pair with a cosine above this.
const SAME: f64 = 0.9;

pub(super) fn nodes(language: &Language) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    for sweep in &language.sweep {
        for &hook in &sweep.hooks {
            nodes.extend(sweep.ratios.iter().map(|ratio| size_node(language, sweep, hook, *ratio)));
            nodes.extend(families_node(language, sweep, hook));
            nodes.push(measure_node(language, sweep, hook));
        }
        nodes.extend(layers_nodes(sweep));
    }
    nodes
}

fn size_name(hook: HookPoint, ratio: f64) -> String {
    format!("sweep-{hook}-r{ratio}")
}

fn families_name(hook: HookPoint) -> String {
    format!("sweep-families-{hook}")
}

fn measure_name(hook: HookPoint) -> String {
    format!("sweep-measure-{hook}")
}

/// The folder of one dictionary inside that of its node.
fn folder((alpha, seed): (f32, u64)) -> String {
    format!("a{alpha}-s{seed}")
}

fn family_folder(case: &FamilyCase) -> String {
    format!("{}-{}", case.method(), case.setting())
}

/// Setting of an autoencoder; seeds are named where there are several.
fn setting(sweep: &Sweep, ratio: f64, (alpha, seed): (f32, u64)) -> String {
    let setting = sae_setting(ratio, alpha);
    if sweep.seeds.len() > 1 { format!("{setting},seed={seed}") } else { setting }
}

fn size_node<'a>(language: &'a Language, sweep: &'a Sweep, hook: HookPoint, ratio: f64) -> Node<'a> {
    let configs = move |d_in| -> Vec<TrainConfig> {
        sweep.members().into_iter().map(|member| language.sweep_config(sweep, hook, ratio, member, d_in)).collect()
    };
    let params = train_params(language, sweep, hook, &[ratio], &configs(1));
    let weight = cost(sweep, language, ratio * sweep.members().len() as f64);
    let code = [&sae::CODE[..], &["monosem/nodes/sweep", "monosem/nodes/curve"]].concat();
    let deps = vec![capture::TRAIN.into(), capture::HELD_OUT.into()];
    node(size_name(hook, ratio), deps, params, &code, weight, move |ctx| {
        let label = Label::new(TRAINING, &sweep.method(), hook, "");
        // Curves of the first seed: the others would be drawn over them.
        let labels: Vec<Option<Label>> = sweep
            .members()
            .into_iter()
            .map(|member| (member.1 == sweep.seeds[0]).then(|| label.with_setting(&sae_setting(ratio, member.0))))
            .collect();
        let (trained, scale) = train(language, sweep, hook, &configs, &labels, ctx)?;
        for (member, (config, sae)) in sweep.members().into_iter().zip(trained) {
            let metadata = json!({
                "method": sweep.method(), "hook": hook, "ratio": ratio, "train": config, "input_scale": scale,
                "model": language.model.to_string(), "text": language.text.to_string(),
            });
            sae.dictionary().save(&ctx.out().join(folder(member)), metadata)?;
        }
        Ok(())
    })
}

fn families_node<'a>(language: &'a Language, sweep: &'a Sweep, hook: HookPoint) -> Option<Node<'a>> {
    let cases = sweep.family_cases();
    if cases.is_empty() {
        return None;
    }
    let ratios: Vec<f64> = cases.iter().map(|case| case.ratio).collect();
    let configs = move |d_in| -> Vec<TrainConfig> {
        sweep.family_cases().iter().map(|case| language.sweep_family_config(sweep, hook, case, d_in)).collect()
    };
    let params = train_params(language, sweep, hook, &ratios, &configs(1));
    let weight = cost(sweep, language, ratios.iter().sum());
    let code = [&sae::CODE[..], &["monosem/nodes/sweep", "monosem/nodes/curve"]].concat();
    let deps = vec![capture::TRAIN.into(), capture::HELD_OUT.into()];
    Some(node(families_name(hook), deps, params, &code, weight, move |ctx| {
        let label = |case: &FamilyCase| Some(Label::new(TRAINING, &case.method(), hook, case.setting()));
        let labels: Vec<Option<Label>> = cases.iter().map(label).collect();
        let (trained, scale) = train(language, sweep, hook, &configs, &labels, ctx)?;
        for (case, (config, sae)) in cases.iter().zip(trained) {
            let metadata = json!({
                "method": case.method(), "hook": hook, "ratio": case.ratio, "train": config, "input_scale": scale,
                "model": language.model.to_string(), "text": language.text.to_string(),
            });
            sae.dictionary().save(&ctx.out().join(family_folder(case)), metadata)?;
        }
        Ok(())
    }))
}

fn train_params(
    language: &Language,
    sweep: &Sweep,
    hook: HookPoint,
    ratios: &[f64],
    configs: &[TrainConfig],
) -> serde_json::Value {
    json!({
        "hook": hook, "ratios": ratios, "train": configs, "max_norm": language.max_norm,
        "scale_inputs": language.sae.scale_inputs, "curve_every": sweep.curve_every, "curve_rows": language.sae.curve_rows,
    })
}

/// Roughly the seconds that autoencoders take whose ratios add up to `size`.
fn cost(sweep: &Sweep, language: &Language, size: f64) -> f64 {
    sweep.steps as f64 * language.sae.batch as f64 * size / 160_000.0
}

/// Trains members on the same batches; their curves, where they have a label, become the node's rows.
fn train(
    language: &Language,
    sweep: &Sweep,
    hook: HookPoint,
    configs: &dyn Fn(usize) -> Vec<TrainConfig>,
    labels: &[Option<Label>],
    ctx: &Ctx<'_>,
) -> Result<(Vec<(TrainConfig, Sae)>, f32)> {
    let rows = sae::rows(language, hook, capture::TRAIN, ctx)?;
    let curve_rows = sae::rows(language, hook, capture::HELD_OUT, ctx)?.sample(language.sae.curve_rows)?;
    let configs = configs(rows.width());
    for config in &configs {
        config.validate(rows.width()).map_err(|e| anyhow!("[language.sweep] at {hook}: {e}"))?;
    }
    let mut curve = Curve::open(ctx)?;
    let mut failed = None;
    let mut on_step = |member: usize, step: u64, stats: &StepStats, trainer: &dyn Trainer| {
        if member == 0 {
            ctx.progress(step, sweep.steps, "steps");
        }
        let is_due = step.is_multiple_of(sweep.curve_every) || step == sweep.steps;
        if let Some(label) = labels[member].as_ref().filter(|_| is_due) {
            let dictionary = trainer.dictionary().map_err(anyhow::Error::from);
            let noted = dictionary.and_then(|d| curve.add(curve::point(label, step, stats, &d, &curve_rows)));
            if let Err(error) = noted {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let fitted = sae::fit_all(&rows, &configs, language.sae.scale_inputs, ctx, &mut on_step);
    if let Some(error) = failed {
        return Err(error);
    }
    let (trained, scale) = fitted?;
    save_rows(ctx, &curve.into_rows())?;
    Ok((configs.into_iter().zip(trained).collect(), scale))
}

fn measure_node<'a>(language: &'a Language, sweep: &'a Sweep, hook: HookPoint) -> Node<'a> {
    let mut deps = vec![capture::TRAIN.into(), capture::HELD_OUT.into()];
    deps.extend(baselines::names(language, hook));
    deps.extend(sweep.ratios.iter().map(|ratio| size_name(hook, *ratio)));
    if !sweep.families.is_empty() {
        deps.push(families_name(hook));
    }
    let params = json!({
        "hook": hook, "sweep": sweep, "max_norm": language.max_norm, "evaluate": language.evaluate,
        "top_k": language.baselines.top_k, "baselines": baselines::params(language),
    });
    let code = [
        "dictionary",
        "decompose",
        "activations",
        "autointerp",
        "monosem/nodes/sweep",
        "monosem/nodes/measure",
        "monosem/nodes/sae",
        "monosem/nodes/baselines",
        "monosem/evaluation",
    ];
    node(measure_name(hook), deps, params, &code, 60.0, move |ctx| measure(language, sweep, hook, ctx))
}

/// An autoencoder of the sweep with what is known of its latents.
struct Swept {
    ratio: f64,
    member: (f32, u64),
    /// Directions of the latents that are alive on the held-out rows.
    alive: Array2<f32>,
}

/// Which latents of each autoencoder of the first seed are alive, by [`alive_key`], for the nodes that follow.
const ALIVE: &str = "alive.json";

fn alive_key(ratio: f64, alpha: f32) -> String {
    format!("r{ratio}-a{alpha}")
}

fn measure(language: &Language, sweep: &Sweep, hook: HookPoint, ctx: &Ctx<'_>) -> Result<()> {
    let (x, groups) = sae::rows(language, hook, capture::HELD_OUT, ctx)?.sample(language.evaluate.rows)?;
    let mut results = Vec::new();
    let of_each_k = if language.baselines.nmf.is_some() { 4 } else { 3 };
    let of_baselines = 6 + of_each_k * language.baselines.top_k.len();
    let families = sweep.family_cases();
    let total = (sweep.ratios.len() * sweep.members().len() + families.len() + of_baselines) as u64;
    let mut done = 0;
    let mut step = || {
        done += 1;
        ctx.progress(done, total, "dictionaries");
        ctx.check()
    };
    let mut all = Vec::new();
    let mut of_first = serde_json::Map::new();
    for &ratio in &sweep.ratios {
        for member in sweep.members() {
            step()?;
            let dictionary = load(ctx, size_name(hook, ratio), &folder(member))?;
            let label = Label::new(EXPERIMENT, &sweep.method(), hook, setting(sweep, ratio, member));
            let alive = of_dictionary(&label, &dictionary, x.view(), &groups, &mut results);
            all.push(Swept { ratio, member, alive: select(&dictionary.w_dec, &alive) });
            if member.1 == sweep.seeds[0] {
                of_first.insert(alive_key(ratio, member.0), json!(alive));
            }
        }
    }
    for case in &families {
        step()?;
        let dictionary = load(ctx, families_name(hook), &family_folder(case))?;
        let label = Label::new(EXPERIMENT, &case.method(), hook, case.setting());
        of_dictionary(&label, &dictionary, x.view(), &groups, &mut results);
    }
    let (gain_rows, _) = sae::rows(language, hook, capture::TRAIN, ctx)?.sample(GAIN_ROWS)?;
    for baseline in baselines::all(language, hook, &language.baselines.top_k, gain_rows.view(), ctx)? {
        step()?;
        let label = Label::new(EXPERIMENT, baseline.method, hook, baseline.setting.clone());
        of_codes(&label, &*baseline.dictionary, x.view(), &groups, &mut results);
    }
    results.extend(similarities(sweep, hook, &all, ctx)?);
    write_json(&ctx.out().join(ALIVE), &of_first.into())?;
    save_rows(ctx, &results)
}

fn load(ctx: &Ctx<'_>, node: String, folder: &str) -> Result<LinearDictionary> {
    Ok(LinearDictionary::load(&ctx.dep(&node)?.join(folder))?)
}

fn select(rows: &Array2<f32>, indices: &[usize]) -> Array2<f32> {
    rows.select(Axis(0), indices)
}

/// Reconstruction, sparsity, and the moments of the codes; the latents that are alive.
fn of_codes(
    label: &Label,
    dictionary: &dyn Dictionary,
    x: ArrayView2<'_, f32>,
    groups: &[u32],
    results: &mut Vec<ResultRow>,
) -> Vec<usize> {
    let mut moments = vec![Moments::default(); dictionary.n_latents()];
    let mut signed = false;
    let evaluation = evaluate_codes(dictionary, x, groups, &mut |codes| {
        for (latents, values) in codes.rows() {
            for (latent, value) in latents.iter().zip(values) {
                moments[*latent as usize].add(&[*value]);
                signed |= *value < 0.0;
            }
        }
    });
    let n = evaluation.n;
    results.extend(evaluation_rows(label, &evaluation));
    let alive: Vec<usize> =
        (0..moments.len()).filter(|latent| evaluation.active_rows[*latent] > ALIVE_MORE_THAN).collect();
    // The moments are those of non-negative activations; a signed component has two tails.
    if !signed {
        for latent in &alive {
            moments[*latent].add_silent(n - evaluation.active_rows[*latent]);
        }
        let of = |moment: fn(&Moments) -> Option<f64>| alive.iter().filter_map(|j| moment(&moments[*j])).collect();
        push_mean(label, "skew", of(Moments::skew), results);
        push_mean(label, "kurtosis", of(Moments::kurtosis), results);
    }
    alive
}

/// The same, and how much of a dimension each direction that is alive has for itself.
fn of_dictionary(
    label: &Label,
    dictionary: &LinearDictionary,
    x: ArrayView2<'_, f32>,
    groups: &[u32],
    results: &mut Vec<ResultRow>,
) -> Vec<usize> {
    let alive = of_codes(label, dictionary, x, groups, results);
    if !alive.is_empty() {
        push_mean(label, "capacity", capacity(select(&dictionary.w_dec, &alive).view()), results);
    }
    alive
}

/// The mean over latents that are alive, with Student's interval over them.
fn push_mean(label: &Label, metric: &str, values: Vec<f64>, results: &mut Vec<ResultRow>) {
    if let Some(Summary { value, interval, n }) = mean(&values) {
        results.push(label.estimate(metric, Estimate { value, interval }, n as u64, "1"));
    }
}

/// How far the directions of an autoencoder come again from another seed, and in the next larger one.
fn similarities(sweep: &Sweep, hook: HookPoint, all: &[Swept], ctx: &Ctx<'_>) -> Result<Vec<ResultRow>> {
    let mut results = Vec::new();
    let first = sweep.seeds[0];
    let find = |ratio: f64, member: (f32, u64)| all.iter().find(|swept| swept.ratio == ratio && swept.member == member);
    for swept in all.iter().filter(|swept| swept.member.1 == first) {
        ctx.check()?;
        let alpha = swept.member.0;
        let label = Label::new(EXPERIMENT, &sweep.method(), hook, sae_setting(swept.ratio, alpha));
        for &seed in &sweep.seeds[1..] {
            if let Some(again) = find(swept.ratio, (alpha, seed)) {
                let label = label.with_setting(&format!("to=seed {seed}"));
                results.extend(compared(&label, &swept.alive, &again.alive));
            }
        }
        let larger = sweep.ratios.iter().find(|ratio| **ratio > swept.ratio);
        if let Some((larger, next)) = larger.and_then(|larger| Some((larger, find(*larger, (alpha, first))?))) {
            let label = label.with_setting(&format!("to=ratio {larger}"));
            results.extend(compared(&label, &swept.alive, &next.alive));
        }
    }
    Ok(results)
}

/// MMCS from the one set of directions to the other, and both paired off so that each has a partner of its own.
fn compared(label: &Label, a: &Array2<f32>, b: &Array2<f32>) -> Vec<ResultRow> {
    if a.is_empty() || b.is_empty() {
        return Vec::new();
    }
    let matching = matching(a.view(), b.view());
    let (n, pairs) = (a.nrows() as u64, matching.pairs.len() as u64);
    vec![
        label.estimate("mmcs", mmcs(a.view(), b.view()), n, "cosine"),
        label.estimate("matched_cosine", matching.mean_cosine(), pairs, "cosine"),
        label.estimate("matched_same", matching.share_above(SAME), pairs, "share"),
    ]
}

/// The dictionaries of each site against those of the next layer in which it was swept.
fn layers_nodes(sweep: &Sweep) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    let mut hooks = sweep.hooks.clone();
    hooks.sort_by_key(|hook| (hook.site.name(), hook.layer));
    for of_site in hooks.chunk_by(|a, b| a.site == b.site).filter(|of_site| of_site.len() > 1) {
        let of_site = of_site.to_vec();
        let deps: Vec<String> = of_site
            .iter()
            .flat_map(|hook| sweep.ratios.iter().map(|ratio| size_name(*hook, *ratio)).chain([measure_name(*hook)]))
            .collect();
        let params =
            json!({ "hooks": of_site, "ratios": sweep.ratios, "alphas": sweep.alphas, "seed": sweep.seeds[0] });
        let name = format!("sweep-layers-{}", of_site[0].site.name());
        nodes.push(node(name, deps, params, &["dictionary", "monosem/nodes/sweep"], 10.0, move |ctx| {
            layers(sweep, &of_site, ctx)
        }));
    }
    nodes
}

fn layers(sweep: &Sweep, hooks: &[HookPoint], ctx: &Ctx<'_>) -> Result<()> {
    let mut results = Vec::new();
    for pair in hooks.windows(2) {
        for &ratio in &sweep.ratios {
            for &alpha in &sweep.alphas {
                ctx.check()?;
                let of = |hook| -> Result<Array2<f32>> {
                    let file = ctx.dep(&measure_name(hook))?.join(ALIVE);
                    let alive = read_json(&file)?[alive_key(ratio, alpha)].take();
                    let alive: Vec<usize> =
                        serde_json::from_value(alive).with_context(|| file.display().to_string())?;
                    let dictionary = load(ctx, size_name(hook, ratio), &folder((alpha, sweep.seeds[0])))?;
                    Ok(select(&dictionary.w_dec, &alive))
                };
                let (here, there) = (of(pair[0])?, of(pair[1])?);
                let label = Label::new(EXPERIMENT, &sweep.method(), pair[0], sae_setting(ratio, alpha));
                let label = label.with_setting(&format!("to={}", pair[1]));
                results.extend(compared(&label, &here, &there));
            }
        }
    }
    save_rows(ctx, &results)
}
