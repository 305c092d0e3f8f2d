//! `ioi-HOOK-DICTIONARY`: which features, patched from the counterfactual run, move the answer of indirect object identification; and
//! `ioi-claims-HOOK`: the dictionaries compared, prompt by prompt. `task-NAME-HOOK-DICTIONARY` and `task-NAME-claims-HOOK` are the same
//! of other tasks.

use std::ops::ControlFlow;

use anyhow::{Context as _, Result};
use monosem_activations::Store;
use monosem_assets::Assets;
use monosem_autointerp::{Budget, Comparison, Vocabulary};
use monosem_corpus::Contexts;
use monosem_dictionary::{Activation, Estimate, LinearDictionary};
use monosem_graph::{Ctx, Node};
use monosem_hooks::{HookPoint, HookedModel};
use monosem_lm::{LanguageModel, Tokenizer};
use monosem_patching::{Curve, Evaluation, FeatureChange, Half, Patching, PatchingConfig, SelectionConfig, accuracy};
use monosem_report::{FeatureExample, ResultRow, write_features};
use serde_json::json;

use super::baselines::{self, NON_NEGATIVE, SIGNED};
use super::{
    FEATURES, Label, attribution, capture, corpus, measure, model_inputs, model_params, sae, sae_name, sae_setting,
    save_rows,
};
use crate::causal::{self, Bootstrap, Descent, Prompts, Reading, descend, over_prompts};
use crate::claims::{self, Claim, RESAMPLES};
use crate::fetch;
use crate::interpretation::{Cut, Part, Settings, stored, vocabulary};
use crate::profile::{FamilyCase, Interp, Ioi, Language};

/// The descents of a dictionary, for the node that compares.
const DESCENTS: &str = "descents.json";

/// What is patched.
#[derive(Debug, Clone, PartialEq)]
enum Method {
    /// With `error_term` the change of the autoencoder's error is patched as well, whatever the set.
    Sae {
        ratio: f64,
        alpha: f32,
        error_term: bool,
    },
    /// An autoencoder of another family.
    Family(FamilyCase),
    Pca,
    PcaNonNegative,
    Ica,
    Identity,
    Random,
}

impl Method {
    fn name(&self) -> String {
        match self {
            Self::Sae { .. } => "sae-tied",
            Self::Family(case) => return case.method(),
            Self::Pca => "pca",
            Self::PcaNonNegative => "pca-non-negative",
            Self::Ica => "ica",
            Self::Identity => "identity",
            Self::Random => "random-relu",
        }
        .into()
    }

    fn setting(&self) -> String {
        match *self {
            Self::Sae { ratio, alpha, error_term: false } => sae_setting(ratio, alpha),
            Self::Sae { ratio, alpha, error_term: true } => format!("{},patched=error", sae_setting(ratio, alpha)),
            Self::Family(ref case) => case.setting(),
            _ => String::new(),
        }
    }

    /// The part of a node's name.
    fn slug(&self) -> String {
        match *self {
            Self::Sae { ratio, alpha, error_term } => {
                format!("sae-r{ratio}-a{alpha}{}", if error_term { "-error" } else { "" })
            }
            Self::Family(ref case) => format!("{}-{}", case.method(), case.setting().replace(['=', ','], "-")),
            _ => self.name(),
        }
    }

    fn with_error(&self) -> bool {
        matches!(self, Self::Sae { error_term: true, .. })
    }

    /// Whether the report shows what its chosen features fire on.
    fn shows_features(&self) -> bool {
        matches!(self, Self::Sae { error_term: false, .. } | Self::Family(_))
    }

    /// The node that made the dictionary, if one did.
    fn node(&self, hook: HookPoint) -> Option<String> {
        match *self {
            Self::Sae { ratio, alpha, .. } => Some(sae_name(hook, ratio, alpha)),
            Self::Family(_) => Some(sae::families_name(hook)),
            Self::Pca | Self::PcaNonNegative => Some(baselines::pca_name(hook)),
            Self::Ica => Some(baselines::ica_name(hook)),
            Self::Identity | Self::Random => None,
        }
    }

    fn dictionary(&self, language: &Language, hook: HookPoint, d_in: usize, ctx: &Ctx<'_>) -> Result<LinearDictionary> {
        let folder = match self {
            Self::Sae { .. } => sae::DICTIONARY.to_owned(),
            Self::Family(case) => sae::folder(case),
            Self::PcaNonNegative => NON_NEGATIVE.to_owned(),
            Self::Pca | Self::Ica => SIGNED.to_owned(),
            Self::Identity => return Ok(LinearDictionary::identity(d_in)),
            Self::Random => return Ok(measure::random(language, d_in, Activation::Relu)),
        };
        let node = self.node(hook).context("a dictionary that a node made")?;
        Ok(LinearDictionary::load(&ctx.dep(&node)?.join(folder))?)
    }
}

fn methods(language: &Language, ioi: &Ioi) -> Vec<Method> {
    let ratio = ioi.ratio;
    let saes = |error_term| ioi.alphas.iter().map(move |&alpha| Method::Sae { ratio, alpha, error_term });
    let families = language.families.iter().filter(|_| ioi.families).map(|case| Method::Family(case.clone()));
    let baselines = [Method::Pca, Method::PcaNonNegative, Method::Ica, Method::Identity, Method::Random];
    let with_error = saes(true).filter(|_| ioi.error_term);
    saes(false).chain(families).chain(baselines).chain(with_error).collect()
}

/// A task at one place, on prompts of so many names, 0 for all.
#[derive(Clone, Copy)]
struct Place<'a> {
    language: &'a Language,
    ioi: &'a Ioi,
    /// `ioi`, or `task` for other tasks.
    experiment: &'static str,
    hook: HookPoint,
    names: usize,
}

impl Place<'_> {
    /// What names of nodes begin with.
    fn prefix(self) -> String {
        if self.experiment == IOI { IOI.into() } else { format!("{}-{}", TASK, causal::task_name(&self.ioi.task)) }
    }

    /// The node that patches a dictionary.
    fn node(self, method: &Method) -> String {
        format!("{}-{}{}-{}", self.prefix(), self.hook, self.infix(), method.slug())
    }

    /// The part of a node's name that tells of the names.
    fn infix(self) -> String {
        if self.names == 0 { String::new() } else { format!("-{}names", self.names) }
    }

    /// The part of a setting that tells of the names and the task.
    fn told(self) -> String {
        let names = if self.names == 0 { String::new() } else { format!(",names={}", self.names) };
        if self.experiment == IOI { names } else { format!("{names},task={}", causal::task_name(&self.ioi.task)) }
    }
}

const IOI: &str = "ioi";
const TASK: &str = "task";

pub(super) fn nodes<'a>(language: &'a Language, assets: &'a Assets) -> Vec<Node<'a>> {
    let ioi = language.ioi.iter().map(|ioi| (IOI, ioi));
    let tasks = ioi.chain(language.tasks.iter().map(|task| (TASK, task)));
    let mut nodes = Vec::new();
    for (experiment, ioi) in tasks {
        for &hook in &ioi.hooks {
            for &names in &ioi.names {
                nodes.extend(nodes_of(Place { language, ioi, experiment, hook, names }, assets));
            }
        }
    }
    nodes
}

fn nodes_of<'a>(place: Place<'a>, assets: &'a Assets) -> Vec<Node<'a>> {
    let Place { language, ioi, hook, names, .. } = place;
    let of_method = |method: Method| {
        let shows_features = method.shows_features();
        let mut deps: Vec<String> = method.node(hook).into_iter().collect();
        deps.push(super::fetch::MODEL.into());
        if shows_features && language.interp.is_some() {
            deps.extend([corpus::NAME.into(), capture::TRAIN.into(), capture::INTERPRETATION.into()]);
        }
        let params = json!({
            "hook": hook,
            "names": names,
            "method": method.slug(),
            "model": model_params(&language.model, language.center_writing_weights),
            "ioi": ioi,
            "task": causal::built_in(&ioi.task),
            "interp": language.interp.as_ref().filter(|_| shows_features),
            "drop_positions": language.capture.drop_positions,
            "random_ratio": language.baselines.random_ratio,
            "seed": language.baselines.seed,
        });
        let code = [
            "patching",
            "autointerp",
            "lm",
            "activations",
            "monosem/nodes/ioi",
            "monosem/nodes/attribution",
            "monosem/nodes/sae",
            "monosem/nodes/baselines",
            "monosem/causal",
            "monosem/interpretation",
            "monosem/evaluation",
        ];
        // Sets shrink from threshold to threshold, so that their number matters little.
        let weight = 3.0 * ((ioi.prompts + ioi.report_prompts) * ioi.seeds.len()) as f64;
        let mut node = super::node(place.node(&method), deps, params, &code, weight, move |ctx| {
            Experiment { place, method: &method }.run(assets, ctx)
        });
        node.inputs = model_inputs(&language.model);
        node.inputs.extend(task_file(&ioi.task));
        node
    };
    let mut nodes: Vec<Node<'a>> = methods(language, ioi).into_iter().map(of_method).collect();
    let deps = methods(language, ioi).iter().map(|method| place.node(method)).collect();
    let params = json!({ "hook": hook, "names": names, "ioi": ioi });
    let code = ["patching", "dictionary", "autointerp", "monosem/nodes/ioi", "monosem/causal", "monosem/claims"];
    let claims = format!("{}-claims-{hook}{}", place.prefix(), place.infix());
    nodes.push(super::node(claims, deps, params, &code, 5.0, move |ctx| compare(place, ctx)));
    nodes
}

/// A task given as a path: its content belongs to the key.
pub(super) fn task_file(task: &str) -> Option<std::path::PathBuf> {
    let path = std::path::PathBuf::from(task);
    path.is_file().then_some(path)
}

/// One dictionary patched at one place.
#[derive(Clone, Copy)]
struct Experiment<'a> {
    place: Place<'a>,
    method: &'a Method,
}

impl Experiment<'_> {
    fn run(self, assets: &Assets, ctx: &Ctx<'_>) -> Result<()> {
        let Self { place, method } = self;
        let Place { language, ioi, hook, names, experiment } = place;
        let model = fetch::load_in(ioi.precision, assets, &language.model, language.center_writing_weights, ctx)?;
        let tokenizer = Tokenizer::load(&fetch::model(assets, &language.model, ctx)?)?;
        let task = causal::task(&ioi.task)?;
        let prompts = Prompts::draw(task, names, [ioi.prompts, ioi.report_prompts], ioi.seed, &tokenizer)
            .with_context(|| format!("language.{experiment}, task = {:?}", ioi.task))?;
        let width = model.width(hook.site).with_context(|| format!("the model has no hook point {hook}"))?;
        let dictionary = method.dictionary(language, hook, width, ctx)?;
        let with_error_term = method.with_error();
        let config = PatchingConfig { hook, drop_positions: language.capture.drop_positions.clone(), with_error_term };
        let label = Label::new(experiment, &method.name(), hook, method.setting());
        let mut drawn = vec![(Half::Choose, &prompts.choose), (Half::Report, &prompts.report)];
        drawn.retain(|(_, prompts)| !prompts.is_empty());
        let mut descents = Vec::new();
        let mut error_only = Vec::new();
        let mut rows = Vec::new();
        let mut changes = Vec::new();
        let runs = (drawn.len() * ioi.seeds.len()) as u64;
        for &(half, prompts) in &drawn {
            let patching = Patching::new(&model, &dictionary, prompts, &config)?;
            let start = causal::screened(&patching, &model, ioi.candidates(), ioi.screen)?;
            for &seed in &ioi.seeds {
                let selection = SelectionConfig { thresholds: ioi.grid(), seed, start: start.clone() };
                let before = descents.len() as u64;
                let mut progress = |done: usize, total: usize| {
                    ctx.progress(before * total as u64 + done as u64, runs * total as u64, "visits");
                    if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                let descent = descend(&patching, half, &selection, &mut progress);
                if descent.is_err() {
                    ctx.check()?;
                }
                descents.push(descent?);
            }
            if with_error_term {
                let setting = format!("prompts={},threshold=error-only{}", name_of(half), place.told());
                error_only.extend(evaluation_rows(&label.with_setting(&setting), &patching.evaluate(&[])));
            }
            if half == Half::Report && ioi.attribution > 0 && !with_error_term {
                let asked = attribution::Asked { features: ioi.attribution, width, bootstrap: bootstrap(ioi) };
                rows.extend(attribution::rows(&patching, &model, hook, (&label, &place.told()), &asked, ctx)?);
            }
            if half == Half::Report {
                changes = patching.feature_changes(&chosen(ioi, &descents));
            }
        }
        rows.extend(rows_of(&label, place, &descents));
        for (half, _) in drawn {
            let label = label.with_setting(&format!("prompts={}{}", name_of(half), place.told()));
            rows.extend(readings(&label, ioi, width, &curves_of(&descents, half)));
        }
        rows.extend(error_only);
        if *method == Method::Identity {
            let label = Label::new(experiment, "model", hook, format!("prompts=report{}", place.told()));
            rows.extend(model_rows(&label, &model, &prompts)?);
        }
        if method.shows_features() {
            let features = match &language.interp {
                Some(interp) => {
                    let vocabulary = vocabulary(model.config().d_vocab, &tokenizer);
                    self.what_they_fire_on(interp, &dictionary, &changes, &vocabulary, ctx)?
                }
                None => Vec::new(),
            };
            write_features(&ctx.out().join(FEATURES), &features)?;
        }
        let text = serde_json::to_string(&descents)? + "\n";
        std::fs::write(ctx.out().join(DESCENTS), text).context("cannot write the descents")?;
        save_rows(ctx, &rows)
    }

    /// What the features that change fire on, in text that has nothing to do with the prompts.
    fn what_they_fire_on(
        self,
        interp: &Interp,
        dictionary: &LinearDictionary,
        changes: &[FeatureChange],
        vocabulary: &Vocabulary,
        ctx: &Ctx<'_>,
    ) -> Result<Vec<FeatureExample>> {
        let Self { place, method } = self;
        let Place { language, ioi, hook, experiment, .. } = place;
        let contexts = Contexts::load(&ctx.dep(corpus::NAME)?.join("interpretation.safetensors"))?;
        let cut = Cut::new(&contexts, interp.fragment, interp.fragments, &language.capture.drop_positions)?;
        let store = Store::open(&ctx.dep(capture::INTERPRETATION)?.join(capture::STORE))?.hook(hook)?;
        let norm_limit = sae::rows(language, hook, capture::TRAIN, ctx)?.norm_limit();
        let part = Part { dictionary, latents: changes.iter().map(|change| change.feature).collect() };
        let mut step = |_| Ok(ctx.check()?);
        let gathered = cut.gather(&mut stored(&store, &cut), norm_limit, &[part], &interp.gather(), &mut step)?;
        let settings = Settings {
            vocabulary,
            patterns: interp.patterns,
            budgets: vec![Budget::Patterns(interp.headline)],
            headline: interp.headline,
            seed: interp.seed,
        };
        let label = Label::new(experiment, &method.name(), hook, method.setting() + &place.told());
        let explained = gathered.into_iter().flat_map(|examples| settings.explain(&cut.fragments, examples));
        let shown = explained.zip(changes).map(|(feature, change)| FeatureExample {
            note: note(change, ioi),
            ..settings.example(&label, &cut.fragments, &feature)
        });
        Ok(shown.collect())
    }
}

/// How well the model does the task at all.
fn model_rows(label: &Label, model: &LanguageModel, prompts: &Prompts) -> Result<Vec<ResultRow>> {
    let accuracy = accuracy(model, &prompts.report)?;
    let n = accuracy.logit_diff.len() as u64;
    let right = accuracy.logit_diff.iter().filter(|diff| **diff > 0.0).count() as u64;
    Ok(vec![
        label.estimate(&format!("{}_accuracy", label.experiment), Estimate::of_share(right, n), n, "1"),
        label.estimate("logit_diff", over_prompts(&accuracy.logit_diff), n, "logits"),
    ])
}

/// A set of prompts, as results name it.
fn name_of(half: Half) -> &'static str {
    match half {
        Half::Choose => "choose",
        Half::Report => "report",
    }
}

fn curves_of(descents: &[Descent], half: Half) -> Vec<Curve> {
    descents.iter().filter(|descent| descent.half == half).map(Descent::curve).collect()
}

fn rows_of(label: &Label, place: Place<'_>, descents: &[Descent]) -> Vec<ResultRow> {
    let mut rows = Vec::new();
    for descent in descents {
        let prompts = name_of(descent.half);
        for set in &descent.sets {
            let setting =
                format!("prompts={prompts},seed={},threshold={}{}", descent.seed, set.threshold, place.told());
            rows.extend(evaluation_rows(&label.with_setting(&setting), &set.evaluation));
        }
    }
    rows
}

fn evaluation_rows(label: &Label, evaluation: &Evaluation) -> Vec<ResultRow> {
    let n = evaluation.kl.len() as u64;
    vec![
        label.row("patched_features", evaluation.n_features as f64, n, "features"),
        label.estimate("kl", over_prompts(&evaluation.kl), n, "nats"),
        label.estimate("logit_diff", over_prompts(&evaluation.logit_diff), n, "logits"),
        label.estimate("edit_norm", over_prompts(&evaluation.edit_norm), n, "1"),
    ]
}

const READINGS: [(&str, &str); 4] =
    [("kl_auc", "1"), ("features_for_half_kl", "features"), ("edit_for_half_kl", "1"), ("kl_floor", "nats")];

/// What is read off the curves, named in [`READINGS`].
fn kinds(up_to: usize) -> [Reading; 4] {
    [Reading::Area { up_to }, Reading::Features, Reading::Edit, Reading::Floor]
}

fn bootstrap(ioi: &Ioi) -> Bootstrap {
    Bootstrap { resamples: ioi.resamples, seed: ioi.seed }
}

fn readings(label: &Label, ioi: &Ioi, up_to: usize, curves: &[Curve]) -> Vec<ResultRow> {
    let bootstrap = bootstrap(ioi);
    let mut rows = Vec::new();
    for ((metric, unit), reading) in READINGS.iter().zip(kinds(up_to)) {
        if let Some(estimate) = bootstrap.reading(reading, curves) {
            let n = curves.first().map_or(0, |curve| curve.points()[0].kl.len());
            rows.push(label.estimate(metric, estimate, n as u64, unit));
        }
    }
    rows
}

/// The features that are left last in the first descent on the prompts to report, the most persistent first.
fn chosen(ioi: &Ioi, descents: &[Descent]) -> Vec<usize> {
    let mut chosen: Vec<usize> = Vec::new();
    let first = descents.iter().find(|descent| descent.half == Half::Report);
    for set in first.map_or(&[][..], |descent| &descent.sets).iter().rev() {
        let new: Vec<usize> = set.features.iter().filter(|feature| !chosen.contains(feature)).copied().collect();
        chosen.extend(new);
        if chosen.len() >= ioi.examples {
            break;
        }
    }
    chosen.truncate(ioi.examples);
    chosen
}

/// Where the feature's code differs between a prompt and its counterfactual, in words.
fn note(change: &FeatureChange, ioi: &Ioi) -> String {
    let seen = change.at.iter().filter(|(_, change)| *change > 0.0);
    let named: Vec<String> = seen.map(|(name, change)| format!("{name} {change:.2}")).collect();
    let places = if named.is_empty() { "changes between the named positions".to_owned() } else { named.join(", ") };
    format!("mean change of its code: {places}; differs on {} of {} prompts", change.n_prompts, ioi.report_prompts)
}

/// The autoencoder against each other dictionary, and each alpha against the others' floor, on the same resamples of prompts: every method was
/// patched on the same prompts, so that what is compared is paired.
fn compare(place: Place<'_>, ctx: &Ctx<'_>) -> Result<()> {
    let Place { language, ioi, hook, .. } = place;
    let curves = |method: &Method| -> Result<Vec<Curve>> {
        let file = ctx.dep(&place.node(method))?.join(DESCENTS);
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let descents: Vec<Descent> =
            serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
        Ok(curves_of(&descents, Half::Report))
    };
    let bootstrap = Bootstrap { resamples: ioi.resamples.max(RESAMPLES), seed: ioi.seed };
    let stands = Method::Sae { ratio: ioi.ratio, alpha: ioi.alpha, error_term: false };
    let ours = curves(&stands)?;
    let mut theirs = Vec::new();
    for method in methods(language, ioi).into_iter().filter(|method| *method != stands && !method.with_error()) {
        let curves = curves(&method)?;
        theirs.push((method, curves));
    }
    let largest = |curves: &[Curve]| curves.iter().filter_map(|c| c.points().last()).map(|p| p.n_features).max();
    let mut rows = Vec::new();
    for (i, (metric, unit)) in COMPARED.into_iter().enumerate() {
        let mut measured = Vec::new();
        for (method, theirs) in &theirs {
            ctx.check()?;
            // The axis is the same for both, so any end serves; that of a curve's largest set covers it.
            let up_to = largest(&ours).max(largest(theirs)).unwrap_or(1).max(1);
            let Some(found) = bootstrap.comparison(kinds(up_to)[i], &ours, theirs) else { continue };
            let other = if method.setting().is_empty() { method.name() } else { method.slug() };
            let setting = format!("{},against={other}{}", stands.setting(), place.told());
            let label = Label::new("claims", &stands.name(), hook, setting);
            measured.push((method.clone(), Claim { label, metric, unit, comparison: finite(found) }));
        }
        // Of two penalties the floor is what the paper compares, and of other methods everything else; the rest is measured, and no claim.
        let claimed = |(method, _): &(Method, Claim)| matches!(method, Method::Sae { .. }) == (metric == FLOOR);
        let (claims, others): (Vec<_>, Vec<_>) = measured.into_iter().partition(claimed);
        rows.extend(claims::family(&claims.into_iter().map(|(_, claim)| claim).collect::<Vec<_>>()));
        rows.extend(others.into_iter().map(|(_, other)| other.row()));
    }
    save_rows(ctx, &rows)
}

const FLOOR: &str = "kl_floor_difference";

/// What comparisons of [`kinds`] are called, with their units.
const COMPARED: [(&str, &str); 4] =
    [("kl_auc_difference", "1"), ("features_for_half_kl_ratio", "1"), ("edit_for_half_kl_ratio", "1"), (FLOOR, "nats")];

/// A ratio without bound, where only the other dictionary gets to half of the KL, as a large number that a file can hold.
fn finite(found: Comparison) -> Comparison {
    const MOST: f64 = 1e6;
    let cut = |value: f64| value.min(MOST);
    Comparison { value: cut(found.value), interval: found.interval.map(|(low, high)| (cut(low), cut(high))), ..found }
}
