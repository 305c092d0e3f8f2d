//! Attribution patching beside patching: what the `ioi` nodes measure of how far gradients find the same features.

use std::ops::ControlFlow;

use anyhow::Result;
use monosem_autointerp::{correlation, rank_correlation};
use monosem_dictionary::Estimate;
use monosem_graph::Ctx;
use monosem_hooks::{HookPoint, Site};
use monosem_lm::LanguageModel;
use monosem_patching::{Curve, Patching, SingleEffect};
use monosem_report::ResultRow;

use super::Label;
use crate::causal::{Bootstrap, Reading};

/// Points between a prompt and its counterfactual at which gradients are taken.
const ATTRIBUTION_STEPS: [usize; 2] = [1, 8];

/// How much is measured.
pub(super) struct Asked {
    /// So many features are patched one by one, those that change most.
    pub(super) features: usize,
    /// Areas are up to so many features.
    pub(super) width: usize,
    /// Intervals of areas.
    pub(super) bootstrap: Bootstrap,
}

/// How well the effects that gradients attribute agree with those of patching each feature alone, on the features that change most.
///
/// `label` is that of the dictionary; `told` ends every setting.
pub(super) fn rows(
    patching: &Patching<'_>,
    model: &LanguageModel,
    hook: HookPoint,
    (label, told): (&Label, &str),
    asked: &Asked,
    ctx: &Ctx<'_>,
) -> Result<Vec<ResultRow>> {
    let mut progress = |done: usize, total: usize| {
        ctx.progress(done as u64, total as u64, "features");
        if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let exact = patching.rank_by_single_effect(Some(asked.features), &mut progress);
    if exact.is_err() {
        ctx.check()?;
    }
    let exact = exact?;
    let on_stream = matches!(hook.site, Site::ResidPre | Site::ResidPost);
    let mut rows = Vec::new();
    for steps in ATTRIBUTION_STEPS.into_iter().filter(|steps| *steps == 1 || on_stream) {
        let label = Label { experiment: "attribution", ..label.with_setting(&format!("steps={steps}{told}")) };
        let all = patching.attribute(model, steps)?;
        let of = |feature: usize| {
            let found = all.binary_search_by_key(&feature, |effect| effect.feature);
            found.map_or(0.0, |i| all[i].kl_fall)
        };
        let attributed: Vec<SingleEffect> =
            exact.iter().map(|e| SingleEffect { kl_fall: of(e.feature), ..*e }).collect();
        rows.extend(agreement(&label, &exact, &attributed, patching.n_prompts() as u64));
        for (ranking, effects) in [("exact", &exact), ("attribution", &attributed)] {
            let order: Vec<usize> = by_effect(effects).iter().map(|e| e.feature).collect();
            let mut ks: Vec<usize> =
                std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|k| *k < order.len()).collect();
            ks.push(order.len());
            let curve = Curve::new(patching.unpatched(), patching.nested(&order, &ks));
            let area = asked.bootstrap.reading(Reading::Area { up_to: asked.width }, &[curve]);
            let label = label.with_setting(&format!("ranking={ranking}"));
            rows.extend(area.map(|area| label.estimate("kl_auc", area, patching.n_prompts() as u64, "1")));
        }
    }
    Ok(rows)
}

/// The most effective first; of equal ones the lower latent.
fn by_effect(effects: &[SingleEffect]) -> Vec<SingleEffect> {
    let mut sorted = effects.to_vec();
    sorted.sort_by(|a, b| b.kl_fall.total_cmp(&a.kl_fall).then(a.feature.cmp(&b.feature)));
    sorted
}

fn agreement(label: &Label, exact: &[SingleEffect], attributed: &[SingleEffect], n_prompts: u64) -> Vec<ResultRow> {
    /// Points of a scatter plot.
    const SHOWN: usize = 200;
    /// How many of the most effective features are looked for among the most attributed.
    const TOP: usize = 16;
    let falls = |effects: &[SingleEffect]| effects.iter().map(|e| e.kl_fall).collect::<Vec<f64>>();
    let (x, y) = (falls(exact), falls(attributed));
    let n = exact.len() as u64;
    let mut rows = Vec::new();
    for (metric, found) in [("rank_correlation", rank_correlation(&x, &y)), ("pearson", correlation(&x, &y))] {
        rows.extend(
            found
                .map(|found| label.estimate(metric, Estimate { value: found.value, interval: found.interval }, n, "1")),
        );
    }
    let k = TOP.min(exact.len());
    if k > 0 {
        let top = |effects: &[SingleEffect]| by_effect(effects)[..k].iter().map(|e| e.feature).collect::<Vec<usize>>();
        let (a, b) = (top(exact), top(attributed));
        let both = a.iter().filter(|feature| b.contains(feature)).count();
        rows.push(label.with_setting(&format!("k={k}")).row("top_overlap", both as f64 / k as f64, k as u64, "1"));
    }
    for (e, a) in exact.iter().zip(attributed).take(SHOWN) {
        let label = label.with_setting(&format!("feature={}", e.feature));
        rows.push(label.row("exact_effect", e.kl_fall, n_prompts, "nats"));
        rows.push(label.row("attributed_effect", a.kl_fall, n_prompts, "nats"));
    }
    rows
}
