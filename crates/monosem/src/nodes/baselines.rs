//! `pca-HOOK` and `ica-HOOK`: the decompositions that autoencoders are compared with, as dictionaries.

use std::ops::ControlFlow;

use anyhow::{Result, bail};
use monosem_decompose::{Ica, IcaConfig, Moments, Pca};
use monosem_dictionary::LinearDictionary;
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use ndarray::{Array2, s};
use serde_json::json;

use super::sae::rows;
use super::{capture, node, write_json};
use crate::profile::Language;

/// All components with their signs, in the node's folder.
pub(super) const SIGNED: &str = "signed";
/// Every component and its opposite under top-k; whoever reads it sets k.
pub(super) const TOP_K: &str = "top-k";

/// Principal components and their opposites, centred, under ReLU.
pub(super) const NON_NEGATIVE: &str = "non-negative";

const CHUNK: usize = 8192;

pub(super) fn pca_name(hook: HookPoint) -> String {
    format!("pca-{hook}")
}

pub(super) fn ica_name(hook: HookPoint) -> String {
    format!("ica-{hook}")
}

pub(super) fn nodes(language: &Language, hook: HookPoint) -> Vec<Node<'_>> {
    let deps = || vec![capture::TRAIN.to_owned()];
    let code = ["decompose", "activations", "monosem/nodes/baselines", "monosem/nodes/sae", "monosem/evaluation"];
    let baselines = &language.baselines;
    let ica = IcaConfig {
        n_components: None,
        max_iter: baselines.ica_max_iter,
        tol: baselines.ica_tol,
        seed: baselines.seed,
    };
    let max_norm = language.max_norm;
    let pca_params = json!({ "hook": hook, "max_norm": max_norm });
    let ica_params = json!({ "hook": hook, "max_norm": max_norm, "rows": baselines.ica_rows, "ica": ica });
    vec![
        node(pca_name(hook), deps(), pca_params, &code, 5.0, move |ctx| pca(language, hook, ctx)),
        node(ica_name(hook), deps(), ica_params, &code, 60.0, move |ctx| fit_ica(language, hook, &ica, ctx)),
    ]
}

fn pca(language: &Language, hook: HookPoint, ctx: &Ctx<'_>) -> Result<()> {
    let rows = rows(language, hook, capture::TRAIN, ctx)?;
    let mut moments = Moments::new(rows.width());
    let mut chunk = Array2::zeros((CHUNK, rows.width()));
    for start in (0..rows.len()).step_by(CHUNK) {
        ctx.check()?;
        ctx.progress(start as u64, rows.len() as u64, "rows");
        let indices: Vec<usize> = (start..rows.len().min(start + CHUNK)).collect();
        let mut chunk = chunk.slice_mut(s![..indices.len(), ..]);
        rows.gather(&indices, chunk.view_mut())?;
        moments.add(chunk.view());
    }
    let pca = Pca::from_moments(&moments)?;
    save(ctx, hook, "pca", &pca.rotation(), &pca.top_k(1))?;
    pca.non_negative().save(&ctx.out().join(NON_NEGATIVE), json!({ "method": "pca-non-negative", "hook": hook }))?;
    write_json(&ctx.out().join("pca.json"), &json!({ "explained_variance": pca.explained_variance.to_vec() }))
}

fn fit_ica(language: &Language, hook: HookPoint, config: &IcaConfig, ctx: &Ctx<'_>) -> Result<()> {
    let (x, _) = rows(language, hook, capture::TRAIN, ctx)?.sample(language.baselines.ica_rows)?;
    let mut progress = |iteration: usize, _change: f64| {
        ctx.progress(iteration as u64, config.max_iter as u64, "iterations");
        if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let fitted = Ica::fit(x.view(), config, &mut progress);
    let Some(ica) = fitted? else {
        ctx.check()?;
        bail!("FastICA stopped although nothing asked it to");
    };
    let converged = if ica.converged { "converged" } else { "not converged" };
    ctx.message(&format!("{converged} after {} iterations on {} rows", ica.iterations, x.nrows()));
    save(ctx, hook, "ica", &ica.components(), &ica.top_k(1))?;
    let facts = json!({ "converged": ica.converged, "iterations": ica.iterations, "rows": x.nrows() });
    write_json(&ctx.out().join("ica.json"), &facts)
}

fn save(
    ctx: &Ctx<'_>,
    hook: HookPoint,
    method: &str,
    signed: &LinearDictionary,
    top_k: &LinearDictionary,
) -> Result<()> {
    for (folder, dictionary) in [(SIGNED, signed), (TOP_K, top_k)] {
        dictionary.save(&ctx.out().join(folder), json!({ "method": method, "hook": hook }))?;
    }
    Ok(())
}
