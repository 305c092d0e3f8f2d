//! `monosem eval`.

use anyhow::{Result, ensure};
use monosem_activations::Store;
use monosem_assets::Assets;
use monosem_corpus::{CorpusConfig, FileOrder, SplitFractions};
use monosem_dictionary::{Dictionary as _, LinearDictionary};
use monosem_hooks::{HookPoint, HookedModel as _};
use monosem_lm::{LanguageModel, LoadOptions, Tokenizer};
use monosem_report::ResultRow;

use super::capture::contexts;
use super::{Bar, check_autoencoder, check_context, open_hook};
use crate::cli;
use crate::evaluation::{Rows, evaluate};
use crate::nodes::{Label, of_losses};
use crate::output::say;
use crate::splicing::{Edit, Splicer};
use crate::{exit, interrupt};

/// Contexts in one forward pass.
const BATCH: usize = 8;

/// Measures a dictionary on activations and, with a model, in the model.
pub(crate) fn eval(args: &cli::Eval) -> Result<u8> {
    interrupt::listen()?;
    let dictionary = LinearDictionary::load_any(&args.dictionary)?;
    check_autoencoder(&args.dictionary, &dictionary)?;
    let store = Store::open(&args.activations)?;
    let (hook, store_rows) = open_hook(&store, args.hook)?;
    ensure!(
        dictionary.d_in() == store_rows.width(),
        "the dictionary in {} reads activations {} wide, those at {hook} in {} are {} wide",
        args.dictionary.display(),
        dictionary.d_in(),
        args.activations.display(),
        store_rows.width()
    );
    let store_rows = Rows::new(store_rows, args.max_norm)?;
    let (x, groups) = store_rows.sample(args.rows)?;
    let evaluation = evaluate(&dictionary, x.view(), &groups);
    ensure!(
        evaluation.fvu.value.is_finite(),
        "the reconstruction of the dictionary in {} is not finite: its weights are too large for these activations",
        args.dictionary.display()
    );
    let label = Label::new("dictionary", "sae", hook, "");
    let n = evaluation.n;
    let mut rows = vec![
        label.estimate("fvu", evaluation.fvu, n, "1"),
        label.estimate("l0", evaluation.l0, n, "latents"),
        label.row("dead_latents", evaluation.dead_latents() as f64, n, "latents"),
        label.row("alive_latents", evaluation.alive_latents() as f64, n, "latents"),
        label.row("n_latents", dictionary.n_latents() as f64, n, "latents"),
    ];
    if args.model.is_some() {
        rows.extend(splice(args, &store, hook, store_rows.norm_limit(), &dictionary)?);
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        rows.iter().try_for_each(print)?;
    }
    Ok(exit::OK)
}

fn splice(
    args: &cli::Eval,
    store: &Store,
    hook: HookPoint,
    norm_limit: f32,
    dictionary: &LinearDictionary,
) -> Result<Vec<ResultRow>> {
    let (Some(model), false) = (&args.model, args.text.is_empty()) else { return Ok(Vec::new()) };
    let assets = Assets::from_env()?;
    let files = model.obtain(&assets, &mut |progress| Bar::new("model").fetch(&progress))?;
    let model = LanguageModel::load(&files, &LoadOptions::default())?;
    let tokenizer = Tokenizer::load(&files)?;
    let manifest = store.manifest();
    let context = args.context.or(manifest.context_length).unwrap_or(128);
    check_context(context, &model)?;
    let config = CorpusConfig {
        file_order: FileOrder::Seeded,
        context,
        max_tokens: Some(args.contexts * context),
        field: "text".into(),
        seed: 0,
        splits: SplitFractions { held_out: 0.0, interpretation: 0.0 },
    };
    let from = cli::TokenSource { text: args.text.clone(), ids: None };
    let (contexts, _) = contexts(&assets, &from, &config, Some(&tokenizer), model.d_vocab())?;
    let splicer = Splicer { model: &model, hook, drop_positions: &manifest.dropped_positions, norm_limit };
    let edits = [Edit::None, Edit::Zero, Edit::Reconstruction(dictionary)];
    let mut bar = Bar::new("splice");
    let total = (contexts.tokens.nrows().div_ceil(BATCH) * (edits.len() + 1)) as u64;
    let mut done = 0;
    let mut step = || {
        done += 1;
        ensure!(bar.show(done, total, "passes").is_continue(), "stopped");
        Ok(())
    };
    let losses = splicer.losses(contexts.tokens.view(), &edits, BATCH, &mut step)?;
    let labels = [("identity", "ablation=none"), ("identity", "ablation=zero"), ("sae", "")];
    let rows = labels.iter().zip(&losses).flat_map(|((method, setting), of_edit)| {
        of_losses(&Label::new("splice", method, hook, *setting), of_edit, &losses[0], &losses[1])
    });
    Ok(rows.collect())
}

fn print(row: &ResultRow) -> Result<()> {
    let interval =
        row.ci_low.zip(row.ci_high).map_or_else(String::new, |(low, high)| format!("  [{low:.4}, {high:.4}]"));
    let name = [&row.experiment, &row.method, &row.setting].map(String::as_str).join(" ");
    say!("{name:32} {:16} {:>12.4} {}{interval}", row.metric, row.value, row.unit);
    Ok(())
}
