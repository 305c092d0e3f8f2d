//! `monosem patch`.

use anyhow::{Context as _, Result, ensure};
use monosem_assets::Assets;
use monosem_dictionary::{Dictionary as _, Estimate, LinearDictionary, metadata};
use monosem_hooks::{HookPoint, HookedModel as _};
use monosem_lm::{LanguageModel, LoadOptions, Precision, Tokenizer};
use monosem_patching::{
    Change, Half, Intervention, Patching, PatchingConfig, SelectionConfig, Steering, TokenChange, accuracy,
};
use serde_json::json;

use super::{Bar, check_autoencoder};
use crate::causal::{self, descend, over_prompts};
use crate::cli;
use crate::output::{note, say};
use crate::profile::{Screen, thresholds};
use crate::{exit, interrupt};

/// A dictionary, its model, and the hook point where they meet.
pub(crate) struct Site {
    pub(crate) dictionary: LinearDictionary,
    pub(crate) model: LanguageModel,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) hook: HookPoint,
    pub(crate) assets: Assets,
}

impl Site {
    pub(crate) fn open(at: &cli::Where, precision: Precision) -> Result<Self> {
        let dictionary = LinearDictionary::load_any(&at.dictionary)?;
        check_autoencoder(&at.dictionary, &dictionary)?;
        // Other formats say it in ways of their own, or not at all.
        let said = metadata(&at.dictionary).unwrap_or_default();
        let named = said["hook"].as_str();
        let hook = match at.hook {
            Some(hook) => hook,
            None => {
                let missing = "the dictionary does not say which hook point it reads: name it with --hook";
                let named = named.context(missing)?;
                named.parse().with_context(|| format!("the hook point in {}", at.dictionary.display()))?
            }
        };
        if let Some(named) = named.filter(|named| *named != hook.to_string()) {
            note!("the dictionary says that it reads {named}; it is used at {hook}, as --hook asks");
        }
        let model = at.model.to_string();
        if let Some(named) = said["model"].as_str().filter(|named| *named != model) {
            note!("the dictionary says that it reads {named}; it is used on {model}, as --model asks");
        }
        let assets = Assets::from_env()?;
        let files = at.model.obtain(&assets, &mut |progress| Bar::new("model").fetch(&progress))?;
        let model = LanguageModel::load(&files, &LoadOptions { center_writing_weights: at.centered, precision })?;
        let tokenizer = Tokenizer::load(&files)?;
        let width = model.width(hook.site).filter(|_| hook.layer < model.n_layers());
        let width = width.with_context(|| {
            let n = model.n_layers();
            format!("{} has no hook point {hook}: it has {n} blocks, counted from 0, and not every architecture has every site", at.model)
        })?;
        ensure!(
            dictionary.d_in() == width,
            "the dictionary in {} reads activations {} wide, those of {} at {hook} are {width} wide",
            at.dictionary.display(),
            dictionary.d_in(),
            at.model
        );
        Ok(Self { dictionary, model, tokenizer, hook, assets })
    }

    /// The text of a token.
    fn token(&self, id: u32) -> String {
        self.tokenizer.token(id).unwrap_or_default()
    }
}

/// Finds the features that cause the answer of a task, and prints the sets that the selection went through.
pub(crate) fn ioi(args: &cli::Ioi) -> Result<u8> {
    interrupt::listen()?;
    let site = Site::open(&args.at, args.precision)?;
    let task = causal::task(&args.task)?;
    ensure!(args.low <= args.high, "--low {} is above --high {}", args.low, args.high);
    let encode = causal::encoder(&site.tokenizer);
    let task = causal::limited(task, args.names, args.seed, &encode)?;
    let prompts = task.prompts(args.prompts, args.seed, Half::Report, &encode).with_context(|| {
        format!("cannot make {} prompts of the task {:?} for {}", args.prompts, args.task, args.at.model)
    })?;
    let before = accuracy(&site.model, &prompts)?;
    let config =
        PatchingConfig { hook: site.hook, drop_positions: args.at.drop_positions.0.clone(), with_error_term: false };
    let patching = Patching::new(&site.model, &site.dictionary, &prompts, &config)?;
    if patching.candidates().is_empty() {
        note!(
            "no feature of the dictionary differs between the prompts and their counterfactuals: there is nothing to patch"
        );
    }
    let selection = SelectionConfig {
        thresholds: thresholds(args.thresholds, args.low, args.high),
        seed: args.seed,
        start: {
            let most = (args.max_candidates > 0).then_some(args.max_candidates);
            causal::screened(&patching, &site.model, most, Screen::Attribution)?
        },
    };
    let mut bar = Bar::new("selection");
    let mut progress = |done: usize, total: usize| bar.show(done as u64, total as u64, "visits");
    let descent = descend(&patching, Half::Report, &selection, &mut progress);
    drop(bar);
    if descent.is_err() && interrupt::requested() {
        return Ok(exit::INTERRUPTED);
    }
    let descent = descent?;
    let n = before.logit_diff.len() as u64;
    let right = before.logit_diff.iter().filter(|diff| **diff > 0.0).count() as u64;
    let (share, logit_diff) = (Estimate::of_share(right, n), over_prompts(&before.logit_diff));
    if args.at.json {
        let texts: Vec<_> =
            prompts.iter().map(|p| json!({ "text": p.text, "counterfactual": p.target_text })).collect();
        let out = json!({
            "task": args.task, "model": args.at.model.to_string(), "hook": site.hook.to_string(),
            "accuracy": share.value, "accuracy_interval": share.interval,
            "logit_diff": logit_diff.value, "logit_diff_interval": logit_diff.interval,
            "prompts": texts, "descent": descent,
        });
        say!("{}", serde_json::to_string_pretty(&out)?);
        return Ok(exit::OK);
    }
    if let Some(first) = prompts.first() {
        let answers = |tokens: &[u32]| {
            tokens.iter().take(3).map(|id| format!("{:?}", site.token(*id))).collect::<Vec<_>>().join(", ")
        };
        say!("{n} prompts such as {:?}, to be followed by {}", first.text, answers(&first.answers));
        say!("with the counterfactual {:?}, to be followed by {}", first.target_text, answers(&first.target_answers));
    }
    say!(
        "the model prefers the right answer in {} % of them (mean log odds against the wrong one {} nats)",
        with_interval(&percent(&share), 0),
        with_interval(&logit_diff, 2)
    );
    say!("{} features differ between the prompts and their counterfactuals", descent.candidates);
    say!("{:>10} {:>9} {:>22} {:>22} {:>24}", "threshold", "features", "KL", "log odds", "edit norm");
    for set in &descent.sets {
        let evaluation = &set.evaluation;
        say!(
            "{:>10} {:>9} {:>22} {:>22} {:>24}",
            set.threshold,
            set.features.len(),
            with_interval(&over_prompts(&evaluation.kl), 3),
            with_interval(&over_prompts(&evaluation.logit_diff), 2),
            with_interval(&over_prompts(&evaluation.edit_norm), 3)
        );
    }
    say!("means over prompts; 95 % intervals in brackets");
    say!(
        "threshold: the rise of KL, in nats, up to which a feature was given up; thresholds that changed nothing are left out"
    );
    if descent.screened_out > 0 {
        say!(
            "all, first-N, start, none: every feature that differs, the N to which gradients attribute most, those begun with, no feature"
        );
    } else {
        say!("all, none: every feature that differs, no feature");
    }
    say!("KL: of the next token after the patched prompt from that after the counterfactual, in nats");
    say!(
        "log odds: of the counterfactual's answer against the prompt's, in nats; edit norm: size of the change of the activations, per token"
    );
    if let Some(last) = descent.sets.iter().rev().find(|set| !set.features.is_empty()) {
        say!("the features left last: {:?}", last.features);
    }
    Ok(exit::OK)
}

fn percent(share: &Estimate) -> Estimate {
    let times = |x: f64| 100.0 * x;
    Estimate { value: times(share.value), interval: share.interval.map(|(low, high)| (times(low), times(high))) }
}

/// `0.512 [0.431, 0.593]`; the value alone where there is no interval.
fn with_interval(estimate: &Estimate, decimals: usize) -> String {
    let value = format!("{:.decimals$}", estimate.value);
    estimate.interval.map_or(value.clone(), |(low, high)| format!("{value} [{low:.decimals$}, {high:.decimals$}]"))
}

/// Changes features while the model reads a text, and prints the continuation and the probabilities without and with that.
pub(crate) fn run(args: &cli::PatchRun) -> Result<u8> {
    interrupt::listen()?;
    let site = Site::open(&args.at, Precision::F32)?;
    let change = match (args.scale, args.set) {
        (Some(factor), _) => Change::Scale(factor),
        (None, Some(value)) => Change::Set(value),
        (None, None) => Change::Ablate,
    };
    let interventions = [Intervention { hook: site.hook, features: args.features.clone(), change }];
    let steering = Steering::new(&site.model, &site.dictionary, &interventions, &args.at.drop_positions.0)?;
    let tokens = site.tokenizer.encode(&args.text)?;
    if causal::encoder(&site.tokenizer)(&args.text).is_empty() && !tokens.is_empty() {
        note!("the vocabulary of {} lacks a word of the text, which the model reads as an unknown one", args.at.model);
    }
    let steered = steering.steer(&tokens)?;
    let continuation = |with: bool| -> Result<String> {
        Ok(site.tokenizer.decode(&steering.continue_greedily(&tokens, args.tokens, with)?)?)
    };
    let (without, with) = (continuation(false)?, continuation(true)?);
    if steered.base == steered.steered {
        note!(
            "nothing was changed: the features have the same values with the change, at every position of the text that may be patched"
        );
    }
    let mut changes = steered.changes(usize::MAX, 0.0);
    // A token as likely as not that becomes unlikely is more to a reader than one that becomes a hundred times as likely and stays rare.
    changes.retain(|change| change.base != change.steered);
    changes.sort_by(|a, b| moved(b).total_cmp(&moved(a)));
    changes.truncate(args.changes);
    if args.at.json {
        let changes: Vec<_> = changes
            .iter()
            .map(|c| json!({ "token": c.token, "text": site.token(c.token), "log_prob": c.base, "log_prob_patched": c.steered }))
            .collect();
        let out = json!({ "continuation": without, "continuation_patched": with, "next_token": changes });
        say!("{}", serde_json::to_string_pretty(&out)?);
        return Ok(exit::OK);
    }
    say!("without: {}{without}", args.text);
    say!("with:    {}{with}", args.text);
    if !changes.is_empty() {
        say!("{:>16} {:>9} {:>9} {:>9}", "next token", "without", "with", "change");
    }
    for c in &changes {
        let token = format!("{:?}", site.token(c.token));
        say!("{token:>16} {:>9.4} {:>9.4} {:>+9.3}", c.base.exp(), c.steered.exp(), c.steered - c.base);
    }
    if !changes.is_empty() {
        say!("probabilities, and the change of their logarithm (of the logit, up to what all tokens share), in nats");
    }
    Ok(exit::OK)
}

/// By how much a token's probability changes.
fn moved(change: &TokenChange) -> f64 {
    (change.steered.exp() - change.base.exp()).abs()
}
