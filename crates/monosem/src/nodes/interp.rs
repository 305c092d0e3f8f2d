//! `interp-HOOK`: features of every dictionary explained by short lists of patterns, and the explanations scored on other documents.

use anyhow::Result;
use monosem_activations::Store;
use monosem_assets::Assets;
use monosem_autointerp::{
    Budget, Comparison, FeatureExamples, Fragments, Score, Summary, correlation, difference, mean, paired_difference,
};
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
use crate::claims::{self, Claim, RESAMPLES};
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
        "monosem/claims",
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
    let mut rows = fragment_rows(interp, hook, &cut.fragments);
    let mut features = Vec::new();
    let mut scored = Vec::new();
    for (i, (subject, examples)) in subjects.iter().zip(gathered).enumerate() {
        ctx.check()?;
        ctx.progress(i as u64, subjects.len() as u64, "dictionaries explained");
        let explained = settings.explain(&cut.fragments, up_to_scored(examples, interp.features));
        let label = Label::new("interp", &subject.method, hook, subject.setting.clone());
        let own = rows_of(&label, interp, &explained, &mut rows);
        let shuffled = combined(&settings.shuffled(&cut.fragments, &explained));
        control_row(&label.with_setting("control=shuffled"), interp, &shuffled, &mut rows);
        let shown = headline_scores(interp, &explained).take(interp.examples);
        features.extend(shown.map(|(feature, _)| settings.example(&label, &cut.fragments, feature)));
        scored.push(Scored { subject, own, shuffled });
    }
    let stands = sae_setting(interp.ratio, interp.alpha);
    let mut random_weights = Vec::new();
    if interp.random_model.is_some() {
        let folder = ctx.dep(&sae::random_name(hook))?.join(sae::DICTIONARY);
        let dictionary = LinearDictionary::load(&folder)?;
        let control = [Subject { method: "sae-tied".into(), setting: stands.clone(), dictionary }];
        let gathered = gather(capture::RANDOM_INTERPRETATION, capture::RANDOM_TRAIN, &control)?;
        let explained: Vec<Explained> = gathered
            .into_iter()
            .flat_map(|examples| settings.explain(&cut.fragments, up_to_scored(examples, interp.features)))
            .collect();
        random_weights = headline_scores(interp, &explained).map(|(_, score)| score.combined).collect();
        let label = Label::new("interp", "sae-tied", hook, format!("{stands},control=random-weights"));
        control_row(&label, interp, &random_weights, &mut rows);
        count_rows(&at_headline(&label, interp), random_weights.len(), explained.len(), &mut rows);
    }
    rows.extend(claims::family(&claims(&scored, &random_weights, &stands, hook, interp.seed)));
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

fn combined(scores: &[Score]) -> Vec<f64> {
    scores.iter().map(|score| score.combined).collect()
}

fn at_headline(label: &Label, interp: &Interp) -> Label {
    label.with_setting(&format!("patterns={}", interp.headline))
}

/// What features were gathered on: how many fragments of how many tokens, from how many documents, and how many of them each feature is
/// scored on and explained from at most.
fn fragment_rows(interp: &Interp, hook: HookPoint, fragments: &Fragments) -> Vec<ResultRow> {
    let (n, length) = fragments.tokens.dim();
    let mut documents = fragments.documents.clone();
    documents.sort_unstable();
    documents.dedup();
    let (explain, top, random) = interp.gather().asked();
    let label = Label::new("interp", "model", hook, "");
    let row = |metric: &str, value: usize, unit: &str| label.row(metric, value as f64, n as u64, unit);
    vec![
        row("fragments", n, "fragments"),
        row("fragment_tokens", length, "tokens"),
        row("documents", documents.len(), "documents"),
        row("explain_fragments", explain, "fragments"),
        row("score_fragments_top", top, "fragments"),
        row("score_fragments_random", random, "fragments"),
    ]
}

fn count_rows(label: &Label, scored: usize, looked_at: usize, rows: &mut Vec<ResultRow>) {
    let n = looked_at as u64;
    rows.push(label.row("scored_features", scored as f64, n, "features"));
    rows.push(label.row("unscored_features", (looked_at - scored) as f64, n, "features"));
}

/// The rows of one dictionary; returns the headline scores of its scored features.
fn rows_of(label: &Label, interp: &Interp, explained: &[Explained], rows: &mut Vec<ResultRow>) -> Vec<f64> {
    let n = explained.len();
    let mut headline = Vec::new();
    for budget in budgets(interp) {
        let scores: Vec<Score> = explained.iter().filter_map(|f| f.scored.as_ref()?.at(budget)).collect();
        let (label, is_headline) = match budget {
            Budget::Patterns(k) => (label.with_setting(&format!("patterns={k}")), k == interp.headline),
            Budget::Bits(bits) => (label.with_setting(&format!("bits={bits}")), false),
        };
        let mut push = |metric: &str, values: &[f64]| {
            let row = |summary| label.estimate(metric, estimate(&summary), values.len() as u64, "correlation");
            rows.extend(mean(values).map(row));
        };
        let combined = combined(&scores);
        push("interp_score", &combined);
        if is_headline {
            let (top, random): (Vec<f64>, Vec<f64>) = scores.iter().map(|score| (score.top, score.random)).unzip();
            push("interp_score_top", &top);
            push("interp_score_random", &random);
            push("interp_score_all", &[&combined[..], &vec![0.0; n - scores.len()]].concat());
            // The same features on both kinds of fragments.
            if let Some(found) = paired_difference(&top, &random, RESAMPLES, interp.seed) {
                let estimate = Estimate { value: found.value, interval: found.interval };
                rows.push(label.estimate("interp_score_top_less_random", estimate, found.n as u64, "correlation"));
            }
            headline = combined;
            count_rows(&label, scores.len(), n, rows);
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

fn control_row(label: &Label, interp: &Interp, scores: &[f64], rows: &mut Vec<ResultRow>) {
    let row = |summary| {
        at_headline(label, interp).estimate("interp_score", estimate(&summary), scores.len() as u64, "correlation")
    };
    rows.extend(mean(scores).map(row));
}

/// A dictionary with the headline scores of its features, by their own explanations and by those of others.
struct Scored<'s> {
    subject: &'s Subject,
    own: Vec<f64>,
    shuffled: Vec<f64>,
}

/// What the paper says of interpretability, as differences of mean scores: of the autoencoder and each other method, and of the residual basis
/// and random directions.
///
/// Features of different dictionaries are not paired: feature 3 of the one has nothing to do with feature 3 of the other, so each set of
/// features is resampled by itself. A feature and its own score by the explanation of another are a pair.
fn claims(scored: &[Scored<'_>], random_weights: &[f64], stands: &str, hook: HookPoint, seed: u64) -> Vec<Claim> {
    let find = |method: &str| {
        let is = |scored: &&Scored<'_>| {
            scored.subject.method == method && (method != "sae-tied" || scored.subject.setting == stands)
        };
        scored.iter().find(is)
    };
    let scores = |method: &str| find(method).map_or(&[][..], |scored| &scored.own[..]);
    let ours = scores("sae-tied");
    let mut claims = Vec::new();
    let mut push = |method: &str, setting: String, comparison: Option<Comparison>| {
        let claim = |comparison| Claim {
            label: Label::new("claims", method, hook, setting),
            metric: "interp_score_difference",
            unit: "correlation",
            comparison,
        };
        claims.extend(comparison.map(claim));
    };
    for other in ["pca", "pca-oriented", "ica", "ica-oriented", "identity-relu", "random-relu"] {
        let found = difference(ours, scores(other), RESAMPLES, seed);
        push("sae-tied", format!("{stands},above={other}"), found);
    }
    let found = difference(ours, random_weights, RESAMPLES, seed);
    push("sae-tied", format!("{stands},above=random-weights"), found);
    // A single feature has no other to be scored by.
    if let Some(scored) = find("sae-tied").filter(|scored| scored.own.len() == scored.shuffled.len()) {
        let found = paired_difference(&scored.own, &scored.shuffled, RESAMPLES, seed);
        push("sae-tied", format!("{stands},above=shuffled"), found);
    }
    let found = difference(scores("identity-relu"), scores("random-relu"), RESAMPLES, seed);
    push("identity-relu", "above=random-relu".into(), found);
    claims
}
