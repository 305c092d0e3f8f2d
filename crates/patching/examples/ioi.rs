//! Which features of a dictionary carry the answer: `ioi MODEL TASK.toml HOOK [PROMPTS] [CANDIDATES] [THRESHOLDS]`, for the residual basis.
//!
//! `cargo run --release -p monosem-patching --example ioi -- model.gguf data/ioi/templates.toml blocks.17.hook_resid_post`

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use monosem_dictionary::LinearDictionary;
use monosem_hooks::HookedModel;
use monosem_lm::{LanguageModel, LoadOptions, Tokenizer};
use monosem_patching::{
    Bootstrap, CountAxis, Curve, Half, IoiTask, Patching, PatchingConfig, SelectionConfig, Start, accuracy,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, task, hook, numbers @ ..] = &arguments[..] else {
        return Err("expected MODEL TASK.toml HOOK [PROMPTS] [CANDIDATES] [THRESHOLDS]".into());
    };
    let number = |i: usize, default| numbers.get(i).map_or(Ok(default), |given| given.parse());
    let (n, max_candidates) = (number(0, 50)?, numbers.get(1).map(|given| given.parse()).transpose()?);
    let tokenizer = Tokenizer::load(Path::new(model))?;
    let model = LanguageModel::load(Path::new(model), &LoadOptions::default())?;
    let task = IoiTask::parse(&std::fs::read_to_string(task)?, task)?;
    let encode = |text: &str| tokenizer.encode(text).unwrap_or_default();
    println!("{} of {} names are single tokens", task.single_token_names(&encode)?.len(), task.names.len());
    let halves = [Half::Choose, Half::Report].map(|half| task.prompts(n, 0, half, &encode));
    let [choose, report] = halves;
    let (choose, report) = (choose?, report?);
    for (name, prompts) in [("choose", &choose), ("report", &report)] {
        let found = accuracy(&model, prompts)?;
        println!("{name}: {:.3} right, logit difference {:.2}", found.share(), found.mean_logit_diff());
    }
    let hook = hook.parse()?;
    let config = PatchingConfig { hook, drop_positions: vec![0], with_error_term: false };
    let dictionary = LinearDictionary::identity(model.d_model());
    let start = Instant::now();
    let patching = Patching::new(&model, &dictionary, &choose, &config)?;
    println!("{} candidates, set up in {:.1?}", patching.candidates().len(), start.elapsed());
    let began = Instant::now();
    let thresholds = SelectionConfig::log_spaced(number(2, 50)?);
    let start = max_candidates.map_or(Start::All, Start::LargestChanges);
    let config_of_selection = SelectionConfig { thresholds, seed: 0, start };
    let selection = patching.select(&config_of_selection, &mut |_, _| ControlFlow::Continue(()))?;
    println!("{} runs of a prompt in {:.1?}", selection.n_runs, began.elapsed());
    let other = Patching::new(&model, &dictionary, &report, &config)?;
    let curve = Curve::new(other.unpatched(), selection.sets().into_iter().map(|set| other.evaluate(set)));
    for point in curve.points() {
        println!("{:5} features: kl {:.4}, edit {:.2}", point.n_features, point.mean_kl(), point.mean_edit_norm());
    }
    let bootstrap = Bootstrap { resamples: 1000, level: 0.95, seed: 0 };
    println!("features for half: {:?}", curve.features_for_interval(0.5, &bootstrap));
    println!("area: {:?}", curve.area_interval(CountAxis::Log, model.d_model(), &bootstrap));
    Ok(())
}
