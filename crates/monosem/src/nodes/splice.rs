//! `splice-HOOK`: the model's loss on held-out text with each dictionary's reconstruction in place of the activations.

use anyhow::{Result, ensure};
use monosem_assets::Assets;
use monosem_autointerp::paired_difference;
use monosem_corpus::Contexts;
use monosem_dictionary::{Dictionary, Estimate, column_mean};
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_report::ResultRow;
use ndarray::s;
use serde_json::json;

use super::{Label, baselines, capture, corpus, measure, model_inputs, model_params, sae, sae_name, save_rows};
use crate::claims::{self, Claim, RESAMPLES};
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
        "autointerp",
        "lm",
        "activations",
        "monosem/nodes/splice",
        "monosem/claims",
        "monosem/nodes/sae",
        "monosem/nodes/baselines",
        "monosem/evaluation",
        "monosem/splicing",
    ];
    let passes = language.cases().len() + language.families.len() + 7 + 4 * (language.splice.top_k.len() + 1);
    let weight = passes as f64 * language.splice.contexts as f64 * language.corpus.context as f64 / 900.0;
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
    let saes = measure::autoencoders(language, hook, ctx)?;
    let rank = |sae: &measure::Trained| measure::rank_for_paper_k(language, sae);
    let of_paper_k = saes.iter().reduce(|best, sae| if rank(sae) < rank(best) { sae } else { best });
    let of_paper_k = of_paper_k.map(measure::Trained::setting).unwrap_or_default();
    for sae in saes {
        push(label("sae-tied", hook, &sae.setting()), Box::new(sae.dictionary) as Box<dyn Dictionary>);
    }
    for (case, dictionary) in language.families.iter().zip(sae::families(language, hook, ctx)?) {
        push(label(&case.method(), hook, &case.setting()), Box::new(dictionary));
    }
    let mut top_k = language.splice.top_k.clone();
    let paper_k = measure::paper_k(hook, ctx)?;
    top_k.push(paper_k);
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
    let mut rows: Vec<ResultRow> =
        labels.iter().zip(&losses).flat_map(|(label, losses)| of_losses(label, losses, clean, zero)).collect();
    rows.extend(claims::family(&claims(&labels, &losses, &of_paper_k, paper_k, language.baselines.seed)));
    save_rows(ctx, &rows)
}

/// That less is lost with the autoencoder's reconstruction than with as many of the largest components as it has active latents on average, from which
/// k comes: dictionaries of other sizes keep more or less of the activation, and their losses say nothing of which describes it better.
/// Both read the same contexts, so that these are pairs. Every context has as many predictions, so that the mean over contexts of the
/// loss per token is that over tokens.
fn claims(labels: &[Label], losses: &[Vec<ContextLoss>], of_paper_k: &str, k: usize, seed: u64) -> Vec<Claim> {
    let per_token = |method: &str, setting: &str| -> Option<Vec<f64>> {
        let i = labels.iter().position(|label| label.method == method && label.setting == setting)?;
        Some(losses[i].iter().map(|loss| loss.sum / loss.predictions).collect())
    };
    let claim = |other: &str| {
        let (ours, theirs) = (per_token("sae-tied", of_paper_k)?, per_token(other, &format!("k={k}"))?);
        let comparison = paired_difference(&ours, &theirs, RESAMPLES, seed)?;
        let label = Label {
            experiment: "claims",
            setting: format!("{of_paper_k},below={other},k={k}"),
            ..labels.iter().find(|label| label.method == "sae-tied")?.clone()
        };
        Some(Claim { label, metric: "ce_loss_difference", unit: "nats/token", comparison })
    };
    ["pca-topk", "ica-topk", "random-topk"].into_iter().filter_map(claim).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_compared_context_by_context_at_the_paper_s_k() {
        let hook: HookPoint = "blocks.1.hook_resid_post".parse().unwrap();
        let settings = [
            ("sae-tied", "ratio=2,alpha=0.004"),
            ("sae-tied", "ratio=2,alpha=0.001"),
            ("pca-topk", "k=7"),
            ("pca-topk", "k=8"),
        ];
        let labels: Vec<Label> = settings.iter().map(|(method, setting)| label(method, hook, setting)).collect();
        // Contexts differ by more than the dictionaries do.
        let losses = |more: f64| -> Vec<ContextLoss> {
            (0..20).map(|i| ContextLoss { sum: 60.0 * (f64::from(i) + more), predictions: 60.0 }).collect()
        };
        let losses = [losses(0.0), losses(1.0), losses(0.5), losses(9.0)];
        let claims = claims(&labels, &losses, "ratio=2,alpha=0.004", 7, 0);
        let [claim] = &claims[..] else { panic!("{} claims", claims.len()) };
        assert_eq!(claim.label.setting, "ratio=2,alpha=0.004,below=pca-topk,k=7");
        let found = claim.comparison;
        assert_eq!((found.value, found.interval, found.p_value, found.n), (-0.5, Some((-0.5, -0.5)), Some(1e-4), 20));
    }
}
