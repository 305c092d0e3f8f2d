//! `measure-HOOK`: every dictionary of a hook point on the same held-out rows.

use std::path::Path;

use anyhow::{Context as _, Result};
use monosem_dictionary::{Dictionary, Evaluation, LinearDictionary, mmcs};
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_report::ResultRow;
use serde_json::json;

use super::baselines::{self, GAIN_ROWS};
use super::{Label, capture, read_json, sae, sae_name, sae_setting, save_rows, write_json};
use crate::evaluation::evaluate;
use crate::profile::Language;

pub(super) use super::baselines::random;

/// The k that the paper gives its top-k baselines, for the nodes that follow.
const PAPER_K: &str = "paper_k.json";

pub(super) fn name(hook: HookPoint) -> String {
    format!("measure-{hook}")
}

pub(super) fn node(language: &Language, hook: HookPoint) -> Node<'_> {
    let mut deps = vec![capture::TRAIN.into(), capture::HELD_OUT.into()];
    deps.extend(baselines::names(language, hook));
    deps.extend(language.cases().into_iter().map(|(ratio, alpha)| sae_name(hook, ratio, alpha)));
    if !language.families.is_empty() {
        deps.push(sae::families_name(hook));
    }
    let params = json!({
        "hook": hook,
        "families": language.families,
        "max_norm": language.max_norm,
        "evaluate": language.evaluate,
        "top_k": language.baselines.top_k,
        "match_alpha": language.baselines.match_alpha,
        "baselines": baselines::params(language),
        "ratios": language.sae.ratios,
        "alphas": language.sae.alphas,
    });
    let code = [
        "dictionary",
        "decompose",
        "activations",
        "monosem/nodes/measure",
        "monosem/nodes/baselines",
        "monosem/nodes/sae",
        "monosem/evaluation",
    ];
    super::node(name(hook), deps, params, &code, 30.0, move |ctx| run(language, hook, ctx))
}

fn run(language: &Language, hook: HookPoint, ctx: &Ctx<'_>) -> Result<()> {
    let (x, groups) = sae::rows(language, hook, capture::HELD_OUT, ctx)?.sample(language.evaluate.rows)?;
    let saes = autoencoders(language, hook, ctx)?;
    let mut rows = Vec::new();
    let mut measure = |label: &Label, dictionary: &dyn Dictionary| -> Result<f64> {
        ctx.check()?;
        let evaluation = evaluate(dictionary, x.view(), &groups);
        rows.extend(evaluation_rows(label, &evaluation));
        Ok(evaluation.l0.value)
    };

    // The paper's k is the mean L0 of the autoencoder of the smallest ratio at least 1 whose alpha is nearest to the one it names.
    let mut paper_k = None;
    let of_each_k = if language.baselines.nmf.is_some() { 4 } else { 3 };
    let total = (saes.len() + language.families.len() + 6 + of_each_k * (language.baselines.top_k.len() + 1)) as u64;
    let mut done = 0;
    let mut progress = || {
        done += 1;
        ctx.progress(done, total, "dictionaries");
    };
    for sae in &saes {
        let l0 = measure(&label("sae-tied", hook, &sae.setting()), &sae.dictionary)?;
        let rank = rank_for_paper_k(language, sae);
        if paper_k.as_ref().is_none_or(|(best, _)| rank < *best) {
            paper_k = Some((rank, l0));
        }
        progress();
    }
    for (case, dictionary) in language.families.iter().zip(sae::families(language, hook, ctx)?) {
        measure(&label(&case.method(), hook, &case.setting()), &dictionary)?;
        progress();
    }
    let paper_k = paper_k.map_or(1, |(_, l0)| (l0.round() as usize).max(1));
    write_json(&ctx.out().join(PAPER_K), &json!(paper_k))?;

    let mut top_k: Vec<usize> = language.baselines.top_k.clone();
    top_k.push(paper_k);
    top_k.sort_unstable();
    top_k.dedup();
    let (gain_rows, _) = sae::rows(language, hook, capture::TRAIN, ctx)?.sample(GAIN_ROWS)?;
    for baseline in baselines::all(language, hook, &top_k, gain_rows.view(), ctx)? {
        measure(&label(baseline.method, hook, &baseline.setting), &*baseline.dictionary)?;
        progress();
    }
    rows.extend(similarities(&saes, hook));
    save_rows(ctx, &rows)
}

/// Reconstruction, sparsity, and how many latents are alive.
pub(super) fn evaluation_rows(label: &Label, evaluation: &Evaluation) -> [ResultRow; 5] {
    let n = evaluation.n;
    [
        label.estimate("fvu", evaluation.fvu, n, "1"),
        label.estimate("l0", evaluation.l0, n, "latents"),
        label.row("dead_latents", evaluation.dead_latents() as f64, n, "latents"),
        label.row("alive_latents", evaluation.alive_latents() as f64, n, "latents"),
        label.row("n_latents", evaluation.active_rows.len() as f64, n, "latents"),
    ]
}

fn label(method: &str, hook: HookPoint, setting: &str) -> Label {
    Label::new("dictionary", method, hook, setting)
}

/// The autoencoder of the lowest rank gives the paper's k.
pub(super) fn rank_for_paper_k(language: &Language, sae: &Trained) -> ((bool, f64), f32) {
    let distance = (sae.alpha.ln() - language.baselines.match_alpha.ln()).abs();
    ((sae.ratio < 1.0, sae.ratio), distance)
}

/// The paper's k as `measure-HOOK` found it.
pub(super) fn paper_k(hook: HookPoint, ctx: &Ctx<'_>) -> Result<usize> {
    let file = ctx.dep(&name(hook))?.join(PAPER_K);
    let k = read_json(&file)?.as_u64().with_context(|| format!("{} holds no number", file.display()))?;
    Ok(usize::try_from(k)?)
}

/// A trained autoencoder with the settings that name it.
pub(super) struct Trained {
    pub(super) ratio: f64,
    pub(super) alpha: f32,
    pub(super) dictionary: LinearDictionary,
}

impl Trained {
    pub(super) fn setting(&self) -> String {
        sae_setting(self.ratio, self.alpha)
    }
}

/// The autoencoders of a hook point, from the nodes that trained them.
pub(super) fn autoencoders(language: &Language, hook: HookPoint, ctx: &Ctx<'_>) -> Result<Vec<Trained>> {
    let load_case = |(ratio, alpha)| {
        let dictionary = load(&ctx.dep(&sae_name(hook, ratio, alpha))?.join(sae::DICTIONARY))?;
        Ok(Trained { ratio, alpha, dictionary })
    };
    language.cases().into_iter().map(load_case).collect()
}

fn load(folder: &Path) -> Result<LinearDictionary> {
    Ok(LinearDictionary::load(folder)?)
}

/// How far the directions of each autoencoder are found again by the next larger one of the same alpha.
fn similarities(saes: &[Trained], hook: HookPoint) -> Vec<ResultRow> {
    let mut rows = Vec::new();
    for small in saes {
        let larger = saes.iter().filter(|sae| sae.alpha == small.alpha && sae.ratio > small.ratio);
        let Some(large) = larger.min_by(|a, b| a.ratio.total_cmp(&b.ratio)) else { continue };
        let value = mmcs(small.dictionary.w_dec.view(), large.dictionary.w_dec.view());
        let label = label("sae-tied", hook, &small.setting()).with_setting(&format!("to=ratio {}", large.ratio));
        rows.push(label.estimate("mmcs", value, small.dictionary.n_latents() as u64, "cosine"));
    }
    rows
}
