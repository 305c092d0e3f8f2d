//! `splice-HOOK`: the model's loss on held-out text with each dictionary's reconstruction in place of the activations.

use anyhow::{Result, ensure};
use monosem_assets::Assets;
use monosem_corpus::Contexts;
use monosem_dictionary::{Dictionary, Estimate, column_mean};
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_report::ResultRow;
use ndarray::s;
use serde_json::json;

use super::{Label, baselines, capture, corpus, measure, model_inputs, model_params, sae, sae_name, save_rows};
use crate::fetch;
use crate::profile::Language;
use crate::splicing::{ContextLoss, Edit, Splicer};

/// Training rows behind the mean and the decoder gain of random directions.
const MEAN_ROWS: usize = 8192;

pub(super) fn node<'a>(language: &'a Language, hook: HookPoint, assets: &'a Assets) -> Node<'a> {
    let mut deps = vec![corpus::NAME.into(), capture::TRAIN.into(), measure::name(hook)];
    deps.extend(baselines::names(language, hook));
    if !language.families.is_empty() {
        deps.push(sae::families_name(hook));
    }
    deps.extend(language.cases().into_iter().map(|(ratio, alpha)| sae_name(hook, ratio, alpha)));
    let params = json!({
        "hook": hook,
        "model": model_params(&language.model, language.center_writing_weights),
        "max_norm": language.max_norm,
        "splice": language.splice,
        "drop_positions": language.capture.drop_positions,
        "baselines": baselines::params(language),
        "families": language.families,
        "ratios": language.sae.ratios,
        "alphas": language.sae.alphas,
    });
    let code = [
        "dictionary",
        "decompose",
        "lm",
        "activations",
        "monosem/nodes/splice",
        "monosem/nodes/sae",
        "monosem/nodes/baselines",
        "monosem/evaluation",
        "monosem/splicing",
    ];
    let passes = language.cases().len() + language.families.len() + 7 + 4 * (language.splice.top_k.len() + 1);
    let weight = (passes * language.splice.contexts * language.corpus.context) as f64 / 900.0;
    let mut node =
        super::node(format!("splice-{hook}"), deps, params, &code, weight, move |ctx| run(language, hook, assets, ctx));
    node.inputs = model_inputs(&language.model);
    node
}

fn run(language: &Language, hook: HookPoint, assets: &Assets, ctx: &Ctx<'_>) -> Result<()> {
    let model = fetch::load(assets, &language.model, language.center_writing_weights, ctx)?;
    let contexts = Contexts::load(&ctx.dep(corpus::NAME)?.join("held_out.safetensors"))?;
    let n = language.splice.contexts.min(contexts.tokens.nrows());
    ensure!(n > 0, "the held-out split has no whole context");
    let train = sae::rows(language, hook, capture::TRAIN, ctx)?;
    let (rows, _) = train.sample(MEAN_ROWS)?;
    let mean = column_mean(rows.view()).mapv(|m| m as f32);

    let mut labels = vec![label("identity", hook, "ablation=none"), label("identity", hook, "ablation=mean")];
    labels.push(label("identity", hook, "ablation=zero"));
    let mut dictionaries: Vec<Box<dyn Dictionary>> = Vec::new();
    let mut push = |label: Label, dictionary| {
        labels.push(label);
        dictionaries.push(dictionary);
    };
    for sae in measure::autoencoders(language, hook, ctx)? {
        push(label("sae-tied", hook, &sae.setting()), Box::new(sae.dictionary) as Box<dyn Dictionary>);
    }
    for (case, dictionary) in language.families.iter().zip(sae::families(language, hook, ctx)?) {
        push(label(&case.method(), hook, &case.setting()), Box::new(dictionary));
    }
    let mut top_k = language.splice.top_k.clone();
    top_k.push(measure::paper_k(hook, ctx)?);
    top_k.sort_unstable();
    top_k.dedup();
    for baseline in baselines::all(language, hook, &top_k, rows.view(), ctx)? {
        // The identity replaces activations by themselves.
        if !["identity", "random-relu"].contains(&baseline.method) {
            push(label(baseline.method, hook, &baseline.setting), baseline.dictionary);
        }
    }
    let mut edits = vec![Edit::None, Edit::Mean(&mean), Edit::Zero];
    edits.extend(dictionaries.iter().map(|dictionary| Edit::Reconstruction(&**dictionary)));

    let batch = language.splice.batch_contexts;
    let total = (n.div_ceil(batch) * (edits.len() + 1)) as u64;
    let mut done = 0;
    let mut step = || {
        ctx.check()?;
        done += 1;
        ctx.progress(done, total, "passes");
        Ok(())
    };
    let splicer = Splicer {
        model: &model,
        hook,
        drop_positions: &language.capture.drop_positions,
        norm_limit: train.norm_limit(),
    };
    let losses = splicer.losses(contexts.tokens.slice(s![..n, ..]), &edits, batch, &mut step)?;
    let (clean, zero) = (&losses[0], &losses[2]);
    let rows: Vec<ResultRow> =
        labels.iter().zip(&losses).flat_map(|(label, losses)| of_losses(label, losses, clean, zero)).collect();
    save_rows(ctx, &rows)
}

fn label(method: &str, hook: HookPoint, setting: &str) -> Label {
    Label::new("splice", method, hook, setting)
}

/// Mean loss, perplexity, and the share of what zero ablation costs that is recovered:
/// `(zero - spliced) / (zero - clean)`. Contexts are the groups of the intervals.
pub(crate) fn of_losses(
    label: &Label,
    losses: &[ContextLoss],
    clean: &[ContextLoss],
    zero: &[ContextLoss],
) -> Vec<ResultRow> {
    let groups: Vec<(f64, f64)> = losses.iter().map(|loss| (loss.sum, loss.predictions)).collect();
    let loss = Estimate::of_ratio(&groups);
    let n = losses.iter().map(|loss| loss.predictions).sum::<f64>() as u64;
    let perplexity =
        Estimate { value: loss.value.exp(), interval: loss.interval.map(|(low, high)| (low.exp(), high.exp())) };
    let recovered: Vec<(f64, f64)> = losses
        .iter()
        .zip(clean.iter().zip(zero))
        .map(|(loss, (clean, zero))| (zero.sum - loss.sum, zero.sum - clean.sum))
        .collect();
    vec![
        label.estimate("ce_loss", loss, n, "nats/token"),
        label.estimate("perplexity", perplexity, n, "1"),
        label.estimate("loss_recovered", Estimate::of_ratio(&recovered), n, "1"),
    ]
}
