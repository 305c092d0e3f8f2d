//! `interp-HOOK`: features of every dictionary explained by short lists of patterns, and the explanations scored on other documents.

use anyhow::Result;
use monosem_activations::Store;
use monosem_assets::Assets;
use monosem_autointerp::{Budget, FeatureExamples, Score, Summary, correlation, mean};
use monosem_corpus::Contexts;
use monosem_dictionary::{Activation, Estimate, LinearDictionary};
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_lm::Tokenizer;
use monosem_report::{ResultRow, write_features};
use serde_json::json;

use super::baselines::{self, SIGNED};
use super::{
    FEATURES, Label, capture, corpus, measure, model_inputs, model_params, sae, sae_name, sae_setting, save_rows,
};
use crate::fetch;
use crate::interpretation::{Cut, Explained, Part, Settings, stored, vocabulary};
use crate::profile::{FamilyCase, Interp, Language};

/// Training rows behind the orientation of signed components.
const ORIENTATION_ROWS: usize = 16_384;

pub(super) fn name(hook: HookPoint) -> String {
    format!("interp-{hook}")
}

pub(super) fn node<'a>(language: &'a Language, interp: &'a Interp, hook: HookPoint, assets: &'a Assets) -> Node<'a> {
    let params = params(language, interp, hook);
    let code = [
        "autointerp",
        "dictionary",
        "activations",
        "lm",
        "monosem/nodes/interp",
        "monosem/nodes/sae",
        "monosem/interpretation",
        "monosem/evaluation",
    ];
    let weight = 10.0 + language.cases().len() as f64 * 5.0;
    let deps = deps(language, interp, hook);
    let mut node =
        super::node(name(hook), deps, params, &code, weight, move |ctx| run(language, interp, hook, assets, ctx));
    node.inputs = model_inputs(&language.model);
    node
}

/// The nodes that dictionaries and activations come from.
pub(super) fn deps(language: &Language, interp: &Interp, hook: HookPoint) -> Vec<String> {
    let mut deps = vec![corpus::NAME.into(), capture::TRAIN.into(), capture::INTERPRETATION.into()];
    deps.extend([baselines::pca_name(hook), baselines::ica_name(hook)]);
    deps.extend(language.cases().into_iter().map(|(ratio, alpha)| sae_name(hook, ratio, alpha)));
    if !language.families.is_empty() {
        deps.push(sae::families_name(hook));
    }
    if interp.random_model.is_some() {
        deps.extend([capture::RANDOM_TRAIN.into(), capture::RANDOM_INTERPRETATION.into(), sae::random_name(hook)]);
    }
    deps
}

/// What the outcome depends on besides those.
pub(super) fn params(language: &Language, interp: &Interp, hook: HookPoint) -> serde_json::Value {
    json!({
        "hook": hook,
        "families": language.families,
        "model": model_params(&language.model, language.center_writing_weights),
        "interp": interp,
        "max_norm": language.max_norm,
        "drop_positions": language.capture.drop_positions,
        "random_ratio": language.baselines.random_ratio,
        "seed": language.baselines.seed,
        "ratios": language.sae.ratios,
        "alphas": language.sae.alphas,
    })
}

/// A dictionary to be interpreted and where its results go.
pub(super) struct Subject {
    pub(super) method: String,
    pub(super) setting: String,
    pub(super) dictionary: LinearDictionary,
}

fn run(language: &Language, interp: &Interp, hook: HookPoint, assets: &Assets, ctx: &Ctx<'_>) -> Result<()> {
    let model = fetch::load(assets, &language.model, language.center_writing_weights, ctx)?;
    let tokenizer = Tokenizer::load(&fetch::model(assets, &language.model, ctx)?)?;
    let vocabulary = vocabulary(model.config().d_vocab, &tokenizer);
    let contexts = Contexts::load(&ctx.dep(corpus::NAME)?.join("interpretation.safetensors"))?;
    let cut = Cut::new(&contexts, interp.fragment, interp.fragments, &language.capture.drop_positions)?;
    let n_fragments = cut.fragments.documents.len();
    ctx.message(&format!("{n_fragments} fragments of {} tokens", interp.fragment));

    let subjects = subjects(language, hook, ctx)?;
    let gather = |store: &str, norms: &str, subjects: &[Subject]| -> Result<_> {
        let parts: Vec<Part<'_>> =
            subjects.iter().map(|subject| Part::first(&subject.dictionary, interp.pool)).collect();
        let store = Store::open(&ctx.dep(store)?.join(capture::STORE))?.hook(hook)?;
        let norm_limit = sae::rows(language, hook, norms, ctx)?.norm_limit();
        let mut step = |done: usize| {
            ctx.check()?;
            ctx.progress(done as u64, n_fragments as u64, "fragments");
            Ok(())
        };
        cut.gather(&mut stored(&store, &cut), norm_limit, &parts, &interp.gather(), &mut step)
    };
    let gathered = gather(capture::INTERPRETATION, capture::TRAIN, &subjects)?;

    let settings = Settings {
        vocabulary: &vocabulary,
        patterns: interp.patterns,
        budgets: budgets(interp),
        headline: interp.headline,
        seed: interp.seed,
    };
    let mut rows = Vec::new();
    let mut features = Vec::new();
    let mut headlines = Vec::new();
    for (i, (subject, examples)) in subjects.iter().zip(gathered).enumerate() {
        ctx.check()?;
        ctx.progress(i as u64, subjects.len() as u64, "dictionaries explained");
        let explained = settings.explain(&cut.fragments, up_to_scored(examples, interp.features));
        let label = Label::new("interp", &subject.method, hook, subject.setting.clone());
        let headline = rows_of(&label, interp, &explained, &mut rows);
        let shuffled = settings.shuffled(&cut.fragments, &explained);
        control_rows(&label.with_setting("control=shuffled"), interp, &shuffled, &mut rows);
        let shown = headline_scores(interp, &explained).take(interp.examples);
        features.extend(shown.map(|(feature, _)| settings.example(&label, &cut.fragments, feature)));
        headlines.push((i, headline));
    }
    let stands = sae_setting(interp.ratio, interp.alpha);
    if interp.random_model.is_some() {
        let folder = ctx.dep(&sae::random_name(hook))?.join(sae::DICTIONARY);
        let dictionary = LinearDictionary::load(&folder)?;
        let control = [Subject { method: "sae-tied".into(), setting: stands.clone(), dictionary }];
        let gathered = gather(capture::RANDOM_INTERPRETATION, capture::RANDOM_TRAIN, &control)?;
        let explained: Vec<Explained> = gathered
            .into_iter()
            .flat_map(|examples| settings.explain(&cut.fragments, up_to_scored(examples, interp.features)))
            .collect();
        let scores: Vec<Score> = headline_scores(interp, &explained).map(|(_, score)| score).collect();
        let label = Label::new("interp", "sae-tied", hook, format!("{stands},control=random-weights"));
        let control = control_rows(&label, interp, &scores, &mut rows);
        claims(&subjects, &headlines, &stands, hook, Some(("random-weights", control)), &mut rows);
    } else {
        claims(&subjects, &headlines, &stands, hook, None, &mut rows);
    }
    write_features(&ctx.out().join(FEATURES), &features)?;
    save_rows(ctx, &rows)
}

/// The latents up to the last one needed for as many scored features as asked for; all, where there are not that many.
pub(super) fn up_to_scored(mut examples: Vec<FeatureExamples>, features: usize) -> Vec<FeatureExamples> {
    let enough = examples.iter().enumerate().filter(|(_, feature)| feature.enough);
    if let Some(last) = enough.map(|(i, _)| i).nth(features - 1) {
        examples.truncate(last + 1);
    }
    examples
}

/// The dictionaries of a hook point.
pub(super) fn subjects(language: &Language, hook: HookPoint, ctx: &Ctx<'_>) -> Result<Vec<Subject>> {
    let mut subjects: Vec<Subject> = measure::autoencoders(language, hook, ctx)?
        .into_iter()
        .map(|sae| Subject { method: "sae-tied".into(), setting: sae.setting(), dictionary: sae.dictionary })
        .collect();
    let families = language.families.iter().zip(sae::families(language, hook, ctx)?);
    let family = |(case, dictionary): (&FamilyCase, _)| {
        let (method, setting) = (case.method(), case.setting());
        Subject { method, setting, dictionary }
    };
    subjects.extend(families.map(family));
    let signed =
        |node: String| -> Result<LinearDictionary> { Ok(LinearDictionary::load(&ctx.dep(&node)?.join(SIGNED))?) };
    let (x, _) = sae::rows(language, hook, capture::TRAIN, ctx)?.sample(ORIENTATION_ROWS)?;
    let mut push =
        |method: &str, dictionary| subjects.push(Subject { method: method.into(), setting: String::new(), dictionary });
    let (pca, ica) = (signed(baselines::pca_name(hook))?, signed(baselines::ica_name(hook))?);
    push("pca-oriented", pca.oriented(x.view()));
    push("ica-oriented", ica.oriented(x.view()));
    push("pca", pca);
    push("ica", ica);
    push("identity-relu", LinearDictionary::identity_relu(x.ncols()));
    push("random-relu", measure::random(language, x.ncols(), Activation::Relu));
    Ok(subjects)
}

fn budgets(interp: &Interp) -> Vec<Budget> {
    let patterns = interp.lengths.iter().map(|length| Budget::Patterns(*length));
    patterns.chain(interp.bits.iter().map(|bits| Budget::Bits(*bits as f64))).collect()
}

/// Scored features with their headline scores.
fn headline_scores<'e>(
    interp: &Interp,
    explained: &'e [Explained],
) -> impl Iterator<Item = (&'e Explained, Score)> + use<'e> {
    let headline = Budget::Patterns(interp.headline);
    explained.iter().filter_map(move |feature| Some((feature, feature.scored.as_ref()?.at(headline)?)))
}

fn estimate(summary: &Summary) -> Estimate {
    Estimate { value: summary.value, interval: summary.interval }
}

/// The rows of one dictionary; returns its headline.
fn rows_of(label: &Label, interp: &Interp, explained: &[Explained], rows: &mut Vec<ResultRow>) -> Option<Summary> {
    let n = explained.len();
    let mut headline = None;
    for budget in budgets(interp) {
        let scores: Vec<Score> = explained.iter().filter_map(|f| f.scored.as_ref()?.at(budget)).collect();
        let (label, is_headline) = match budget {
            Budget::Patterns(k) => (label.with_setting(&format!("patterns={k}")), k == interp.headline),
            Budget::Bits(bits) => (label.with_setting(&format!("bits={bits}")), false),
        };
        let mut push = |metric: &str, values: Vec<f64>| -> Option<Summary> {
            let summary = mean(&values)?;
            rows.push(label.estimate(metric, estimate(&summary), values.len() as u64, "correlation"));
            Some(summary)
        };
        let combined = push("interp_score", scores.iter().map(|score| score.combined).collect());
        if is_headline {
            headline = combined;
            push("interp_score_top", scores.iter().map(|score| score.top).collect());
            push("interp_score_random", scores.iter().map(|score| score.random).collect());
            let unscored = std::iter::repeat_n(0.0, n - scores.len());
            push("interp_score_all", scores.iter().map(|score| score.combined).chain(unscored).collect());
            rows.push(label.row("scored_features", scores.len() as f64, n as u64, "features"));
            rows.push(label.row("unscored_features", (n - scores.len()) as f64, n as u64, "features"));
            moment_rows(&label, interp, explained, rows);
        }
    }
    headline
}

/// Correlation of the score with the skew and the kurtosis of the activations (table 2 of the paper), and their means.
fn moment_rows(label: &Label, interp: &Interp, explained: &[Explained], rows: &mut Vec<ResultRow>) {
    let of = |moment: fn(&monosem_autointerp::Moments) -> Option<f64>| -> (Vec<f64>, Vec<f64>) {
        let pair = |(feature, score): (&Explained, Score)| Some((moment(&feature.examples.moments)?, score.combined));
        headline_scores(interp, explained).filter_map(pair).unzip()
    };
    type Moment = fn(&monosem_autointerp::Moments) -> Option<f64>;
    let moments: [(&str, Moment); 2] = [
        ("skew_correlation", monosem_autointerp::Moments::skew),
        ("kurtosis_correlation", monosem_autointerp::Moments::kurtosis),
    ];
    for (metric, moment) in moments {
        let (moments, scores) = of(moment);
        if let Some(summary) = correlation(&moments, &scores) {
            rows.push(label.estimate(metric, estimate(&summary), scores.len() as u64, "correlation"));
        }
    }
}

fn control_rows(label: &Label, interp: &Interp, scores: &[Score], rows: &mut Vec<ResultRow>) -> Option<Summary> {
    let label = label.with_setting(&format!("patterns={}", interp.headline));
    let summary = mean(&scores.iter().map(|score| score.combined).collect::<Vec<_>>())?;
    rows.push(label.estimate("interp_score", estimate(&summary), scores.len() as u64, "correlation"));
    Some(summary)
}

/// What the paper says of interpretability, as differences of mean scores: of the autoencoder and each other method, and of the residual basis
/// and random directions. Features of different dictionaries are not paired, so the standard errors add up in squares.
fn claims(
    subjects: &[Subject],
    headlines: &[(usize, Option<Summary>)],
    stands: &str,
    hook: HookPoint,
    control: Option<(&str, Option<Summary>)>,
    rows: &mut Vec<ResultRow>,
) {
    let of = |method: &str| {
        let found = headlines
            .iter()
            .find(|(i, _)| subjects[*i].method == method && (method != "sae-tied" || subjects[*i].setting == stands));
        found.and_then(|(_, summary)| *summary)
    };
    let mut push = |method: &str, setting: String, a: Option<Summary>, b: Option<Summary>| {
        let (Some(a), Some(b)) = (a, b) else { return };
        let label = Label::new("claims", method, hook, setting);
        let estimate = Estimate { value: a.value - b.value, interval: difference_interval(&a, &b) };
        rows.push(label.estimate("interp_score_difference", estimate, (a.n + b.n) as u64, "correlation"));
    };
    let others = ["pca", "pca-oriented", "ica", "ica-oriented", "identity-relu", "random-relu"];
    for other in others {
        push("sae-tied", format!("{stands},above={other}"), of("sae-tied"), of(other));
    }
    if let Some((name, control)) = control {
        push("sae-tied", format!("{stands},above={name}"), of("sae-tied"), control);
    }
    push("identity-relu", "above=random-relu".into(), of("identity-relu"), of("random-relu"));
}

fn difference_interval(a: &Summary, b: &Summary) -> Option<(f64, f64)> {
    let half = |summary: &Summary| summary.interval.map(|(low, high)| (high - low) / 2.0);
    let half = half(a)?.hypot(half(b)?);
    Some((a.value - b.value - half, a.value - b.value + half))
}
