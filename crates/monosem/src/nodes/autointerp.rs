//! `autointerp-HOOK`: features explained and scored by a language model, with explanations dealt to other features, random directions and a model of random
//! weights as controls.

use std::ops::ControlFlow;

use anyhow::{Context as _, Error, Result, ensure};
use monosem_activations::Store;
use monosem_assets::Assets;
use monosem_autointerp::{Budget, FeatureRecord, Fragments, Interpreter, Prompts, Vocabulary, write_records};
use monosem_corpus::Contexts;
use monosem_dictionary::LinearDictionary;
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_llm::LlmError;
use monosem_lm::Tokenizer;
use monosem_report::{FeatureExample, ResultRow, write_features};
use serde_json::json;

use super::interp::{self, Subject};
use super::{FEATURES, Label, capture, corpus, model_inputs, sae, sae_setting, save_rows};
use crate::asking::{self, Asker, Explains, with_record};
use crate::endpoint::Llm;
use crate::fetch;
use crate::interpretation::{Cut, Explained, Part, Settings, stored, vocabulary};
use crate::profile::{Asked, Interp, Language};

/// The records in the node's folder.
const RECORDS: &str = "explanations.jsonl";

/// The paper's autoencoder, of which a profile may train several.
const TIED: &str = "sae-tied";

pub(super) fn node<'a>(
    language: &'a Language,
    interp: &'a Interp,
    hook: HookPoint,
    assets: &'a Assets,
) -> Option<Node<'a>> {
    let asked = interp.llm.as_ref()?;
    let params = json!({ "interp": interp::params(language, interp, hook), "llm": asked, "prompts": hashes() });
    let code = [
        "autointerp",
        "llm",
        "dictionary",
        "activations",
        "lm",
        "monosem/nodes/autointerp",
        "monosem/nodes/interp",
        "monosem/asking",
        "monosem/local",
        "monosem/endpoint",
        "monosem/nodes/sae",
        "monosem/evaluation",
        "monosem/interpretation",
    ];
    let weight = 60.0 + (asked.features * asked.methods.len() * asked.scorers.len()) as f64;
    let deps = interp::deps(language, interp, hook);
    let mut node = super::node(format!("autointerp-{hook}"), deps, params, &code, weight, move |ctx| {
        Run { language, interp, asked, hook, assets, ctx }.run()
    });
    node.inputs = model_inputs(&language.model);
    if let Llm::Local(model) = &asked.who {
        node.inputs.extend(model_inputs(model));
    }
    Some(node)
}

/// The prompts by the hashes of their files.
fn hashes() -> Vec<String> {
    Prompts::default().hashes()
}

struct Run<'a, 'c> {
    language: &'a Language,
    interp: &'a Interp,
    asked: &'a Asked,
    hook: HookPoint,
    assets: &'a Assets,
    ctx: &'a Ctx<'c>,
}

/// A dictionary whose features are gathered and explained by patterns.
struct LookedAt {
    subject: Subject,
    features: Vec<Explained>,
    control: Option<&'static str>,
}

/// What a node collects.
#[derive(Default)]
struct Collected {
    rows: Vec<ResultRow>,
    features: Vec<FeatureExample>,
    records: Vec<FeatureRecord>,
}

impl Run<'_, '_> {
    fn run(&self) -> Result<()> {
        let Self { language, interp, asked, hook, assets, ctx } = *self;
        let model = fetch::load(assets, &language.model, language.center_writing_weights, ctx)?;
        let tokenizer = Tokenizer::load(&fetch::model(assets, &language.model, ctx)?)?;
        let vocabulary = vocabulary(model.config().d_vocab, &tokenizer);
        drop(model);
        let contexts = Contexts::load(&ctx.dep(corpus::NAME)?.join("interpretation.safetensors"))?;
        let cut = Cut::new(&contexts, interp.fragment, interp.fragments, &language.capture.drop_positions)?;

        let stands = sae_setting(interp.ratio, interp.alpha);
        let wanted = |subject: &Subject| {
            asked.methods.contains(&subject.method) && (subject.method != TIED || subject.setting == stands)
        };
        let subjects: Vec<Subject> = interp::subjects(language, hook, ctx)?.into_iter().filter(wanted).collect();
        let missing = asked.methods.iter().find(|method| subjects.iter().all(|subject| subject.method != **method));
        ensure!(
            missing.is_none(),
            "language.interp.llm.methods has {:?}, of which there is no dictionary at {hook}",
            missing.map_or("", String::as_str)
        );
        let settings = self.settings(&vocabulary);
        let features = self.gather(&cut, &settings, &subjects, capture::INTERPRETATION, capture::TRAIN)?;
        let as_it_is = |(subject, features)| LookedAt { subject, features, control: None };
        let mut all: Vec<LookedAt> = subjects.into_iter().zip(features).map(as_it_is).collect();
        if interp.random_model.is_some() {
            let dictionary = LinearDictionary::load(&ctx.dep(&sae::random_name(hook))?.join(sae::DICTIONARY))?;
            let control = [Subject { method: TIED.into(), setting: stands, dictionary }];
            let stores = (capture::RANDOM_INTERPRETATION, capture::RANDOM_TRAIN);
            let features = self.gather(&cut, &settings, &control, stores.0, stores.1)?;
            let as_control = |(subject, features)| LookedAt { subject, features, control: Some("random-weights") };
            all.extend(control.into_iter().zip(features).map(as_control));
        }

        let cache = assets.cache().join("llm");
        let opened = asked.who.open(assets, &cache, &mut |progress| fetch::tell(&progress, ctx))?;
        let prompts = Prompts::default();
        let collected = opened.ask(&cache, |endpoint| {
            let interpreter =
                Interpreter { endpoint, prompts: &prompts, vocabulary: &vocabulary, config: &asked.asking };
            let asker = Asker {
                interpreter: Some(interpreter),
                settings: &settings,
                explains: asked.explainer.map_or(Explains::Patterns, Explains::Model),
                scorers: &asked.scorers,
                workers: asked.who.workers(),
            };
            let mut collected = Collected::default();
            for (i, looked_at) in all.iter().enumerate() {
                let Subject { method, setting, .. } = &looked_at.subject;
                ctx.message(&format!("dictionary {} of {}: {method} {setting}", i + 1, all.len()));
                self.dictionary(&asker, &cut.fragments, looked_at, &mut collected)?;
            }
            Ok(collected)
        })?;
        if let Some(spent) = opened.spent() {
            ctx.message(&spent);
        }
        write_records(&ctx.out().join(RECORDS), &collected.records)?;
        write_features(&ctx.out().join(FEATURES), &collected.features)?;
        save_rows(ctx, &collected.rows)
    }

    fn settings<'v>(&self, vocabulary: &'v Vocabulary) -> Settings<'v> {
        let headline = self.interp.headline;
        Settings {
            vocabulary,
            patterns: self.interp.patterns,
            budgets: vec![Budget::Patterns(headline)],
            headline,
            seed: self.interp.seed,
        }
    }

    /// The features of each dictionary, explained by patterns.
    fn gather(
        &self,
        cut: &Cut,
        settings: &Settings<'_>,
        subjects: &[Subject],
        store: &str,
        norms: &str,
    ) -> Result<Vec<Vec<Explained>>> {
        let Self { language, interp, asked, hook, ctx, .. } = *self;
        let n_fragments = cut.fragments.documents.len();
        let parts: Vec<Part<'_>> = subjects.iter().map(|s| Part::first(&s.dictionary, interp.pool)).collect();
        let store = Store::open(&ctx.dep(store)?.join(capture::STORE))?.hook(hook)?;
        let norm_limit = sae::rows(language, hook, norms, ctx)?.norm_limit();
        let mut step = |done: usize| {
            ctx.check()?;
            ctx.progress(done as u64, n_fragments as u64, "fragments");
            Ok(())
        };
        let config = interp.gather_for(asked);
        let gathered = cut.gather(&mut stored(&store, cut), norm_limit, &parts, &config, &mut step)?;
        let explain = |features| settings.explain(&cut.fragments, interp::up_to_scored(features, asked.features));
        Ok(gathered.into_iter().map(explain).collect())
    }

    /// Has a dictionary's features explained and scored, and the control of explanations dealt to others.
    fn dictionary(
        &self,
        asker: &Asker<'_>,
        fragments: &Fragments,
        LookedAt { subject, features, control }: &LookedAt,
        collected: &mut Collected,
    ) -> Result<()> {
        let Self { asked, hook, ctx, .. } = *self;
        let settings = asker.settings;
        let named = asking::Subject {
            dictionary: format!("{} {}", subject.method, subject.setting).trim().to_owned(),
            hook: hook.to_string(),
            control: *control,
        };
        let mut done = |done: usize| {
            ctx.progress(done as u64, features.len() as u64, "features");
            if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let ended = |ended: Option<LlmError>| match ended {
            None => Ok(()),
            Some(error) => {
                ctx.check()?;
                Err(Error::new(error)).context("every reply is kept; the same command goes on from there")
            }
        };
        let found = asker.run(&named, fragments, features, &mut done);
        ended(found.ended)?;
        let label = Label::new("autointerp", &subject.method, hook, subject.setting.clone());
        let label = label.with_setting(&format!("explainer={}", asker.explains.name()));
        let rows = |label: &Label, records: &[FeatureRecord]| {
            asking::rows(label, &asked.scorers, records, asked.asking.resamples, settings.seed)
        };
        if let Some(control) = control {
            collected.rows.extend(rows(&label.with_setting(&format!("control={control}")), &found.records));
            collected.records.extend(found.records);
            return Ok(());
        }
        collected.rows.extend(rows(&label, &found.records));
        let shuffled = asker.shuffled(&named, fragments, features, &found.records, &mut done);
        ended(shuffled.ended)?;
        collected.rows.extend(rows(&label.with_setting("control=shuffled"), &shuffled.records));
        for feature in features.iter().filter(|feature| feature.examples.enough).take(self.interp.examples) {
            let shown = settings.example(&label, fragments, feature);
            let record = found.records.iter().find(|record| record.feature == shown.feature);
            collected.features.extend(record.map(|record| with_record(shown, record)));
        }
        collected.records.extend(found.records);
        collected.records.extend(shuffled.records);
        Ok(())
    }
}
