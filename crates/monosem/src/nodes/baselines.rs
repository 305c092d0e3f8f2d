//! `pca-HOOK`, `ica-HOOK` and `nmf-HOOK`: the decompositions that autoencoders are compared with, as dictionaries; and all baselines of a hook point.

use std::ops::ControlFlow;

use anyhow::{Result, bail};
use monosem_decompose::{Ica, IcaConfig, Moments, Nmf, NonNegative, Pca};
use monosem_dictionary::{Activation, Dictionary, LinearDictionary};
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use ndarray::{Array2, ArrayView2, s};
use serde_json::json;

use super::sae::rows;
use super::{capture, node, write_json};
use crate::profile::{self, Language};

/// All components with their signs, in the node's folder.
pub(super) const SIGNED: &str = "signed";
/// Every component and its opposite under top-k; whoever reads it sets k.
pub(super) const TOP_K: &str = "top-k";

/// Principal components and their opposites, centred, under ReLU.
pub(super) const NON_NEGATIVE: &str = "non-negative";

/// Non-negative components and the minimum they are added to.
const COMPONENTS: &str = "components";

/// To which the codes of an NMF are solved: squared errors within a hundredth of the least, in half of the time.
const NMF_TOLERANCE: f32 = 1e-5;

/// Training rows behind the decoder gain of random directions.
pub(super) const GAIN_ROWS: usize = 8192;

const CHUNK: usize = 8192;

pub(super) fn pca_name(hook: HookPoint) -> String {
    format!("pca-{hook}")
}

pub(super) fn ica_name(hook: HookPoint) -> String {
    format!("ica-{hook}")
}

fn nmf_name(hook: HookPoint) -> String {
    format!("nmf-{hook}")
}

/// The nodes that [`all`] reads.
pub(super) fn names(language: &Language, hook: HookPoint) -> Vec<String> {
    let nmf = language.baselines.nmf.as_ref().map(|_| nmf_name(hook));
    [pca_name(hook), ica_name(hook)].into_iter().chain(nmf).collect()
}

/// What [`all`] depends on besides those.
pub(super) fn params(language: &Language) -> serde_json::Value {
    let baselines = &language.baselines;
    json!({ "random_ratio": baselines.random_ratio, "seed": baselines.seed, "nmf": baselines.nmf })
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
    let mut nodes = vec![
        node(pca_name(hook), deps(), pca_params, &code, 5.0, move |ctx| pca(language, hook, ctx)),
        node(ica_name(hook), deps(), ica_params, &code, 60.0, move |ctx| fit_ica(language, hook, &ica, ctx)),
    ];
    if let Some(settings) = &baselines.nmf {
        let params = json!({ "hook": hook, "max_norm": max_norm, "nmf": settings, "seed": baselines.seed });
        let fit = move |ctx: &Ctx<'_>| fit_nmf(language, settings, hook, ctx);
        nodes.push(node(nmf_name(hook), deps(), params, &code, 60.0, fit));
    }
    nodes
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

fn fit_nmf(language: &Language, settings: &profile::Nmf, hook: HookPoint, ctx: &Ctx<'_>) -> Result<()> {
    let (x, _) = rows(language, hook, capture::TRAIN, ctx)?.sample(settings.rows)?;
    let config = settings.config(x.ncols(), language.baselines.seed);
    let mut progress = |iteration: usize, _error: f64| {
        ctx.progress(iteration as u64, config.max_iter as u64, "iterations");
        if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let fitted = Nmf::fit(x.view(), &config, &mut progress);
    let Some(nmf) = fitted? else {
        ctx.check()?;
        bail!("NMF stopped although nothing asked it to");
    };
    let converged = if nmf.converged { "converged" } else { "not converged" };
    let (iterations, error) = (nmf.iterations, nmf.error);
    ctx.message(&format!("{converged} after {iterations} iterations on {} rows, relative error {error:.3}", x.nrows()));
    nmf.dictionary().save(&ctx.out().join(COMPONENTS), json!({ "method": "nmf", "hook": hook }))?;
    let facts = json!({ "converged": nmf.converged, "iterations": iterations, "rows": x.nrows(), "error": error });
    write_json(&ctx.out().join("nmf.json"), &facts)
}

/// A dictionary that is no autoencoder's, by its method and what tells it from others of that method.
pub(super) struct Baseline {
    pub(super) method: &'static str,
    pub(super) setting: String,
    pub(super) dictionary: Box<dyn Dictionary>,
}

/// Every baseline of a hook point: whole, and with the `ks` largest codes. Random directions get the decoder gain that fits `gain_rows` best.
pub(super) fn all(
    language: &Language,
    hook: HookPoint,
    ks: &[usize],
    gain_rows: ArrayView2<'_, f32>,
    ctx: &Ctx<'_>,
) -> Result<Vec<Baseline>> {
    let d_in = gain_rows.ncols();
    let of = |node: String, folder: &str| -> Result<LinearDictionary> {
        Ok(LinearDictionary::load(&ctx.dep(&node)?.join(folder))?)
    };
    let mut all: Vec<Baseline> = Vec::new();
    let mut push = |method, setting: String, dictionary: Box<dyn Dictionary>| {
        all.push(Baseline { method, setting, dictionary });
    };
    push("identity", String::new(), Box::new(LinearDictionary::identity(d_in)));
    push("identity-relu", String::new(), Box::new(LinearDictionary::identity_relu(d_in)));
    push("pca", String::new(), Box::new(of(pca_name(hook), SIGNED)?));
    push("ica", String::new(), Box::new(of(ica_name(hook), SIGNED)?));
    let fitted = |activation| {
        let mut dictionary = random(language, d_in, activation);
        dictionary.fit_decoder_gain(gain_rows);
        dictionary
    };
    push("random-relu", String::new(), Box::new(fitted(Activation::Relu)));
    let (pca, ica) = (of(pca_name(hook), TOP_K)?, of(ica_name(hook), TOP_K)?);
    let nmf = language.baselines.nmf.as_ref().map(|_| of(nmf_name(hook), COMPONENTS)).transpose()?;
    let solved = |nmf: &LinearDictionary, k| {
        let mut codes = NonNegative::new(nmf.clone(), k);
        codes.tolerance = NMF_TOLERANCE;
        codes
    };
    if let Some(nmf) = &nmf {
        push("nmf", String::new(), Box::new(solved(nmf, None)));
    }
    for &k in ks {
        let (setting, activation) = (|| format!("k={k}"), Activation::TopK { k });
        push("pca-topk", setting(), Box::new(LinearDictionary { activation, ..pca.clone() }));
        push("ica-topk", setting(), Box::new(LinearDictionary { activation, ..ica.clone() }));
        push("random-topk", setting(), Box::new(fitted(activation)));
        if let Some(nmf) = &nmf {
            push("nmf-topk", setting(), Box::new(solved(nmf, Some(k))));
        }
    }
    Ok(all)
}

/// Random directions as a profile asks for.
pub(super) fn random(language: &Language, d_in: usize, activation: Activation) -> LinearDictionary {
    let n_latents = profile::latents(language.baselines.random_ratio, d_in);
    LinearDictionary::random(n_latents, d_in, activation, language.baselines.seed)
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
