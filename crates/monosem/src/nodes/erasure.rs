//! `erasure-HOOK`: a concept with two classes erased from activations by single features, by single directions of a basis, and by what the classes say
//! linearly; what is left of it in the model's answers, and what else changes.

use std::ops::ControlFlow;

use anyhow::{Context as _, Result, ensure};
use monosem_assets::Assets;
use monosem_corpus::Contexts;
use monosem_decompose::Eraser;
use monosem_dictionary::{Codes, Dictionary as _, Estimate, LinearDictionary};
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_lm::{LanguageModel, Tokenizer};
use monosem_patching::{
    ActivationEdit, EditEvaluation, EditPlace, EditedPrompts, Half, PatchingError, Prompt, kl_of_edits,
};
use monosem_report::ResultRow;
use ndarray::{Array2, ArrayViewMut2, s};
use serde_json::json;

use super::baselines::{self, SIGNED};
use super::ioi::task_file;
use super::{Label, capture, corpus, model_inputs, model_params, sae, sae_name, sae_setting, save_rows};
use crate::causal::{self, over_prompts};
use crate::fetch;
use crate::profile::{Erasure, Language};

/// The classes of a concept.
const CLASSES: usize = 2;

pub(super) fn node<'a>(language: &'a Language, erasure: &'a Erasure, hook: HookPoint, assets: &'a Assets) -> Node<'a> {
    let mut deps =
        vec![super::fetch::MODEL.into(), corpus::NAME.into(), capture::TRAIN.into(), baselines::pca_name(hook)];
    deps.extend(erasure.alphas.iter().map(|alpha| sae_name(hook, erasure.ratio, *alpha)));
    let tasks = [&erasure.task, &erasure.transfer];
    let params = json!({
        "hook": hook,
        "model": model_params(&language.model, language.center_writing_weights),
        "max_norm": language.max_norm,
        "drop_positions": language.capture.drop_positions,
        "erasure": erasure,
        "tasks": tasks.map(|task| causal::built_in(task)),
    });
    let code = [
        "patching",
        "decompose",
        "dictionary",
        "lm",
        "monosem/nodes/erasure",
        "monosem/nodes/sae",
        "monosem/nodes/baselines",
        "monosem/causal",
        "monosem/evaluation",
    ];
    let dictionaries = erasure.alphas.len() + 2;
    let tried = dictionaries * erasure.candidates * erasure.prompts * 12;
    let texts = (dictionaries + 4 + erasure.random) * erasure.contexts * language.corpus.context;
    let weight = 5.0 + (tried + texts) as f64 / 900.0;
    let run = move |ctx: &Ctx<'_>| run(language, erasure, hook, assets, ctx);
    let mut node = super::node(format!("erasure-{hook}"), deps, params, &code, weight, run);
    node.inputs = model_inputs(&language.model);
    node.inputs.extend(tasks.into_iter().filter_map(|task| task_file(task)));
    node
}

/// One latent set to a value: `x' = x - (c - to) f`.
struct SetLatent {
    dictionary: LinearDictionary,
    latent: usize,
    to: f32,
}

impl SetLatent {
    fn apply(&self, mut x: ArrayViewMut2<'_, f32>) {
        let codes = self.dictionary.encode_latents(x.view(), &[self.latent]);
        for (mut row, code) in x.rows_mut().into_iter().zip(codes.column(0)) {
            row.scaled_add(self.to - code, &self.dictionary.w_dec.row(self.latent));
        }
    }
}

/// A way to erase the concept, or several of which the mean is reported.
struct Method {
    name: &'static str,
    setting: String,
    edits: Vec<Box<ActivationEdit<'static>>>,
}

fn run(language: &Language, erasure: &Erasure, hook: HookPoint, assets: &Assets, ctx: &Ctx<'_>) -> Result<()> {
    let model = fetch::load(assets, &language.model, language.center_writing_weights, ctx)?;
    let tokenizer = Tokenizer::load(&fetch::model(assets, &language.model, ctx)?)?;
    let place = EditPlace {
        hook,
        drop_positions: language.capture.drop_positions.clone(),
        norm_limit: sae::rows(language, hook, capture::TRAIN, ctx)?.norm_limit(),
    };
    let draw = |task: &str, n: usize, half: Half| draw(task, n, half, erasure.seed, &tokenizer, &place);
    let choose = draw(&erasure.task, erasure.prompts, Half::Choose)?;
    let methods = methods(erasure, &model, &choose, &place, ctx)?;

    let edits: Vec<&ActivationEdit<'_>> = methods.iter().flat_map(|method| &method.edits).map(|edit| &**edit).collect();
    let contexts = Contexts::load(&ctx.dep(corpus::NAME)?.join("held_out.safetensors"))?;
    let n = erasure.contexts.min(contexts.tokens.nrows());
    ensure!(n > 0, "the held-out split has no whole context");
    let kl = heard(ctx, "edits of contexts", &mut |progress| {
        kl_of_edits(&model, contexts.tokens.slice(s![..n, ..]), &place, &edits, progress)
    })?;
    let left = |prompts: &[Prompt]| -> Result<Vec<EditEvaluation>> {
        let prompts = EditedPrompts::new(&model, prompts, &place, erasure.positions)?;
        let evaluate = |edit: &&ActivationEdit<'_>| {
            ctx.check()?;
            Ok(prompts.evaluate(*edit)?)
        };
        edits.iter().map(evaluate).collect()
    };
    let fitted = left(&choose)?;
    let report = left(&draw(&erasure.task, erasure.report_prompts, Half::Report)?)?;
    let transfer = left(&draw(&erasure.transfer, erasure.report_prompts, Half::Report)?)?;

    let concept = format!("concept={}", causal::task_name(&erasure.task));
    let mut rows = Vec::new();
    let mut first = 0;
    for method in &methods {
        let own = first..first + method.edits.len();
        first = own.end;
        let label = Label::new("erasure", method.name, hook, method.setting.clone()).with_setting(&concept);
        rows.extend(rows_of(&label, &report[own.clone()], &kl[own.clone()]));
        rows.push(accuracy(&label, "fitted_accuracy", &fitted[own.clone()]));
        rows.push(accuracy(&label, "transfer_accuracy", &transfer[own]));
    }
    save_rows(ctx, &rows)
}

/// Prompts that begin with the end of a text, as documents do where activations were captured: it takes the place of the attention sink, so that a name may
/// stand first and still be edited.
fn draw(task: &str, n: usize, half: Half, seed: u64, tokenizer: &Tokenizer, place: &EditPlace) -> Result<Vec<Prompt>> {
    let eos = tokenizer.eos().context("the tokenizer names no end-of-text token")?;
    let encode = causal::encoder(tokenizer);
    let after_end = |text: &str| -> Vec<u32> {
        let tokens = encode(text);
        if tokens.is_empty() { tokens } else { std::iter::once(eos).chain(tokens).collect() }
    };
    let prompts = causal::task(task)?.prompts(n, seed, half, &after_end)?;
    for prompt in &prompts {
        let first = prompt.first_change();
        ensure!(
            !place.drop_positions.contains(&first),
            "language.capture.drop_positions has {first}, where {:?} says what is to be erased",
            prompt.text
        );
    }
    Ok(prompts)
}

/// The class of each prompt: prompts of one class have the same answers.
fn classes(task: &str, prompts: &[Prompt]) -> Result<Vec<usize>> {
    let mut answers: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.answers[..]).collect();
    answers.sort_unstable();
    answers.dedup();
    ensure!(
        answers.len() == CLASSES,
        "language.erasure.task = {task:?}: its {} prompts have {} different answers, expected those of {CLASSES} classes",
        prompts.len(),
        answers.len()
    );
    Ok(prompts.iter().map(|prompt| usize::from(prompt.answers != answers[0])).collect())
}

/// Every way to erase the concept, fitted to these prompts or chosen by them, at the positions where it will be used: elsewhere an eraser that was fitted moves
/// activations along directions in which those it knows hardly vary, and by much.
fn methods(
    erasure: &Erasure,
    model: &LanguageModel,
    choose: &[Prompt],
    place: &EditPlace,
    ctx: &Ctx<'_>,
) -> Result<Vec<Method>> {
    let hook = place.hook;
    let of_prompt = classes(&erasure.task, choose)?;
    let prompts = EditedPrompts::new(model, choose, place, erasure.positions)?;
    let (x, origins) = prompts.activations();
    let labels: Vec<usize> = origins.iter().map(|prompt| of_prompt[*prompt]).collect();
    let mut methods = vec![Method { name: "none", setting: String::new(), edits: vec![Box::new(|_| {})] }];

    let mut dictionaries = Vec::new();
    for &alpha in &erasure.alphas {
        let folder = ctx.dep(&sae_name(hook, erasure.ratio, alpha))?.join(sae::DICTIONARY);
        dictionaries.push(("sae-tied", sae_setting(erasure.ratio, alpha), LinearDictionary::load(&folder)?));
    }
    let pca = LinearDictionary::load(&ctx.dep(&baselines::pca_name(hook))?.join(SIGNED))?;
    dictionaries.push(("pca", String::new(), pca));
    dictionaries.push(("identity", String::new(), LinearDictionary::identity(x.ncols())));
    let total = dictionaries.len() as u64;
    for (i, (name, setting, dictionary)) in dictionaries.into_iter().enumerate() {
        let codes = dictionary.encode(x.view());
        // A feature that is not active stands for nothing; a direction of a basis always has some value, and loses what it tells at its mean.
        let is_sparse = name == "sae-tied";
        let means = means(&codes);
        let mut worst: Option<(f64, SetLatent)> = None;
        for latent in candidates(&codes, &labels, erasure.candidates) {
            ctx.check()?;
            ctx.progress(i as u64, total, "dictionaries tried");
            let to = if is_sparse { 0.0 } else { means[latent] as f32 };
            let edit = SetLatent { dictionary: dictionary.clone(), latent, to };
            let left = over_prompts(&prompts.evaluate(&|x| edit.apply(x))?.p_correct()).value;
            if worst.as_ref().is_none_or(|(least, _)| left < *least) {
                worst = Some((left, edit));
            }
        }
        let Some((_, edit)) = worst else {
            ctx.message(&format!("no feature of {name} {setting} tells the classes apart: it is left out"));
            continue;
        };
        let feature = format!("feature={}", edit.latent);
        let setting = Label::new("erasure", name, hook, setting).with_setting(&feature).setting;
        methods.push(Method { name, setting, edits: vec![Box::new(move |x| edit.apply(x))] });
    }

    let leace = Eraser::leace(x.view(), &labels, CLASSES)?;
    let class_means = Eraser::class_means(x.view(), &labels, CLASSES)?;
    let random = (0..erasure.random as u64)
        .map(|i| Ok(Eraser::random(leace.mean(), leace.rank(), erasure.seed.wrapping_add(i))?))
        .collect::<Result<Vec<_>>>()?;
    let of = |eraser: Eraser| -> Box<ActivationEdit<'static>> { Box::new(move |x| eraser.apply(x)) };
    let directions = format!("directions={}", erasure.random);
    methods.push(Method { name: "class-mean", setting: String::new(), edits: vec![of(class_means)] });
    methods.push(Method { name: "leace", setting: String::new(), edits: vec![of(leace)] });
    methods.push(Method { name: "random-direction", setting: directions, edits: random.into_iter().map(of).collect() });
    Ok(methods)
}

/// The mean code of each latent.
fn means(codes: &Codes) -> Vec<f64> {
    let mut sums = vec![0.0; codes.n_latents()];
    for (latents, values) in codes.rows() {
        latents.iter().zip(values).for_each(|(latent, value)| sums[*latent as usize] += f64::from(*value));
    }
    sums.iter().map(|sum| sum / codes.n_rows().max(1) as f64).collect()
}

/// The latents whose mean codes differ most between the two classes, at most so many, the most first; none whose means are the same.
fn candidates(codes: &Codes, labels: &[usize], most: usize) -> Vec<usize> {
    let mut sums = Array2::<f64>::zeros((CLASSES, codes.n_latents()));
    let mut rows = [0.0; CLASSES];
    for ((latents, values), label) in codes.rows().zip(labels) {
        rows[*label] += 1.0;
        latents.iter().zip(values).for_each(|(latent, value)| sums[[*label, *latent as usize]] += f64::from(*value));
    }
    let apart = |latent: usize| (sums[[0, latent]] / rows[0] - sums[[1, latent]] / rows[1]).abs();
    let mut latents: Vec<(usize, f64)> =
        (0..codes.n_latents()).map(|latent| (latent, apart(latent))).filter(|(_, apart)| *apart > 0.0).collect();
    latents.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    latents.truncate(most);
    latents.into_iter().map(|(latent, _)| latent).collect()
}

/// Work that tells the node how far it is and can be interrupted.
fn heard<T>(
    ctx: &Ctx<'_>,
    unit: &str,
    work: &mut dyn FnMut(&mut monosem_patching::Progress<'_>) -> Result<T, PatchingError>,
) -> Result<T> {
    let mut progress = |done: usize, total: usize| {
        ctx.progress(done as u64, total as u64, unit);
        if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let outcome = work(&mut progress);
    if outcome.is_err() {
        ctx.check()?;
    }
    Ok(outcome?)
}

/// What is left after an edit and what else changes, or on average after each of several.
fn rows_of(label: &Label, own: &[EditEvaluation], kl: &[Vec<f64>]) -> Vec<ResultRow> {
    let row = |metric: &str, lists: &[Vec<f64>], unit: &str| {
        let means = mean_of(lists);
        label.estimate(metric, over_prompts(&means), means.len() as u64, unit)
    };
    let p_correct: Vec<Vec<f64>> = own.iter().map(EditEvaluation::p_correct).collect();
    let edit_norm: Vec<Vec<f64>> = own.iter().map(|evaluation| evaluation.edit_norm.clone()).collect();
    vec![
        accuracy(label, "accuracy", own),
        row("p_correct", &p_correct, "1"),
        row("edit_norm", &edit_norm, "1"),
        row("kl", kl, "nats"),
    ]
}

/// The share of prompts that are right: of one edit that of independent trials, of several the mean over them by prompt.
fn accuracy(label: &Label, metric: &str, evaluations: &[EditEvaluation]) -> ResultRow {
    let n = evaluations[0].log_odds.len() as u64;
    let right = |e: &EditEvaluation| e.log_odds.iter().map(|odds| f64::from(u8::from(*odds > 0.0))).collect();
    let estimate = match evaluations {
        [one] => Estimate::of_share(one.right(), n),
        several => over_prompts(&mean_of(&several.iter().map(right).collect::<Vec<Vec<f64>>>())),
    };
    label.estimate(metric, estimate, n, "1")
}

/// The mean over the lists, item by item.
fn mean_of(lists: &[Vec<f64>]) -> Vec<f64> {
    let of = |i: usize| lists.iter().map(|list| list[i]).sum::<f64>() / lists.len() as f64;
    (0..lists.first().map_or(0, Vec::len)).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use monosem_dictionary::Activation;
    use ndarray::array;

    fn prompt(answers: &[u32]) -> Prompt {
        Prompt {
            text: String::new(),
            target_text: String::new(),
            tokens: vec![0],
            target_tokens: vec![1],
            answers: answers.to_vec(),
            target_answers: vec![9],
            wrong: vec![9],
            template: 0,
            marks: Vec::new(),
        }
    }

    #[test]
    fn classes_are_those_of_the_answers() {
        let prompts = [prompt(&[5, 6]), prompt(&[3]), prompt(&[5, 6])];
        assert_eq!(classes("gender", &prompts).unwrap(), [1, 0, 1]);
        let said = classes("years", &[prompt(&[1]), prompt(&[2]), prompt(&[3])]).unwrap_err().to_string();
        assert_eq!(
            said,
            "language.erasure.task = \"years\": its 3 prompts have 3 different answers, expected those of 2 classes"
        );
    }

    #[test]
    fn candidates_are_the_latents_that_differ_most() {
        // Differences of means: 0, 2, -3, 0 over rows of either class.
        let codes = Codes::from_dense(&array![
            [1.0_f32, 2.0, 0.0, 4.0],
            [1.0, 2.0, 1.0, 0.0],
            [1.0, 0.0, 3.0, 2.0],
            [1.0, 0.0, 4.0, 2.0]
        ]);
        assert_eq!(candidates(&codes, &[0, 0, 1, 1], 9), [2, 1]);
        assert_eq!(candidates(&codes, &[0, 0, 1, 1], 1), [2]);
        assert_eq!(means(&codes), [1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn a_latent_is_set_and_nothing_else_moves() {
        let mut dictionary = LinearDictionary::tied(array![[1.0_f32, 0.0, 0.0], [0.0, 0.6, 0.8]], Activation::Relu);
        dictionary.b_dec.fill(7.0);
        let mut x = array![[1.0_f32, 3.0, 4.0], [2.0, -3.0, -4.0]];
        SetLatent { dictionary: dictionary.clone(), latent: 1, to: 0.0 }.apply(x.view_mut());
        // The code is 5 in the first row and 0 in the second.
        let expected = array![[1.0_f32, 0.0, 0.0], [2.0, -3.0, -4.0]];
        assert!((&x - &expected).iter().all(|d| d.abs() < 1e-6), "{x}");
        SetLatent { dictionary, latent: 0, to: 1.5 }.apply(x.view_mut());
        assert!((&x.column(0) - &array![1.5_f32, 1.5]).iter().all(|d| d.abs() < 1e-6), "{x}");
    }

    #[test]
    fn several_edits_are_averaged_prompt_by_prompt() {
        let of =
            |log_odds: [f64; 4], norm: f64| EditEvaluation { log_odds: log_odds.to_vec(), edit_norm: vec![norm; 4] };
        let two = [of([1.0, -1.0, 1.0, 1.0], 1.0), of([1.0, -1.0, -1.0, 1.0], 3.0)];
        let label = Label::new("erasure", "random-direction", "blocks.0.hook_resid_post", "");
        let rows = rows_of(&label, &two, &[vec![0.1, 0.3], vec![0.3, 0.5]]);
        let value = |metric: &str| rows.iter().find(|row| row.metric == metric).map(|row| (row.value, row.n)).unwrap();
        assert_eq!(value("accuracy"), (0.625, 4));
        assert_eq!(value("edit_norm"), (2.0, 4));
        let (kl, n) = value("kl");
        assert!((kl - 0.3).abs() < 1e-12 && n == 2, "{kl} {n}");
        // One edit has the interval of a share.
        let one = accuracy(&label, "transfer_accuracy", &two[..1]);
        assert_eq!((one.value, one.ci_low.zip(one.ci_high)), (0.75, Estimate::of_share(3, 4).interval));
    }
}
