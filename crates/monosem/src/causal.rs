//! Causes of indirect object identification: what the `ioi` nodes and the `patch ioi` command share.

use std::path::Path;

use anyhow::{Context as _, Result};
use monosem_autointerp::{Comparison, centred_p_value, percentile_p_value};
use monosem_dictionary::Estimate;
use monosem_hooks::DifferentiableModel;
use monosem_lm::Tokenizer;
use monosem_patching::{
    Accepted, CountAxis, Curve, Encode, Evaluation, Half, Patching, PatchingError, Progress, Prompt, SelectionConfig,
    Start, Task, parse_task,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::profile::Screen;

/// The tasks that come with the program, by name.
const TASKS: [(&str, &str); 11] = [
    ("english", include_str!("../ioi/templates.toml")),
    ("toy", include_str!("../ioi/toy-familiar.toml")),
    ("toy-held-out", include_str!("../ioi/toy.toml")),
    ("pronoun", include_str!("../tasks/pronoun.toml")),
    ("gender", include_str!("../tasks/gender.toml")),
    ("agreement", include_str!("../tasks/agreement.toml")),
    ("greater-than", include_str!("../tasks/greater-than.toml")),
    ("closing", include_str!("../tasks/closing.toml")),
    ("toy-pronoun", include_str!("../tasks/toy-pronoun.toml")),
    ("toy-gender", include_str!("../tasks/toy-gender.toml")),
    ("toy-agreement", include_str!("../tasks/toy-agreement.toml")),
];

/// The share of KL that a set has to undo to count as the cause of half of it.
const HALF: f64 = 0.5;

/// The task called `name`, or that of a TOML file.
///
/// # Errors
/// If there is no such task or file, or it is not of the right form.
pub(crate) fn task(name: &str) -> Result<Box<dyn Task>> {
    if let Some(text) = built_in(name) {
        return Ok(parse_task(text, name)?);
    }
    let known: Vec<&str> = TASKS.iter().map(|(name, _)| *name).collect();
    let text = std::fs::read_to_string(Path::new(name))
        .with_context(|| format!("{name:?} is neither a task ({}) nor a file that can be read", known.join(", ")))?;
    Ok(parse_task(&text, name)?)
}

/// The text of a task that comes with the program.
pub(crate) fn built_in(name: &str) -> Option<&'static str> {
    TASKS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Two sets of prompts that share no name and no template. Layers, alphas and the like are chosen by what the one says, and claims are
/// reported on the other; the selection of features runs on each set by itself, since a feature may stand for a name.
pub(crate) struct Prompts {
    pub(crate) choose: Vec<Prompt>,
    pub(crate) report: Vec<Prompt>,
}

impl Prompts {
    /// Draws `n` prompts for choosing and for reporting, from `names` names each; 0 for all.
    pub(crate) fn draw(
        task: Box<dyn Task>,
        names: usize,
        n: [usize; 2],
        seed: u64,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let encode = encoder(tokenizer);
        let task = limited(task, names, seed, &encode)?;
        let [choose, report] = n;
        let half = |n, half| task.prompts(n, seed, half, &encode).with_context(|| format!("cannot make {n} prompts"));
        Ok(Self { choose: half(choose, Half::Choose)?, report: half(report, Half::Report)? })
    }
}

/// The task with as many names that each half of the prompts has `names`; 0 for all.
pub(crate) fn limited(task: Box<dyn Task>, names: usize, seed: u64, encode: &Encode<'_>) -> Result<Box<dyn Task>> {
    Ok(if names == 0 { task } else { task.with_names(names.saturating_mul(2), seed, encode)? })
}

/// The name of a task given by name or as a file, for results.
pub(crate) fn task_name(task: &str) -> &str {
    Path::new(task).file_stem().and_then(|stem| stem.to_str()).unwrap_or(task)
}

/// Tokens of a text; none where the vocabulary cannot express it, so that the task says that of a name.
pub(crate) fn encoder(tokenizer: &Tokenizer) -> impl Fn(&str) -> Vec<u32> + '_ {
    |text| {
        let tokens = tokenizer.encode(text).unwrap_or_default();
        let read: String = tokens.iter().filter_map(|token| tokenizer.token(*token)).collect();
        // A part of a character reads as U+FFFD, and some vocabularies put a space before the first word. Anything else that differs is an unknown
        // word, which has a token of its own.
        let known = read.contains('\u{FFFD}') || read.trim_start() == text.trim_start();
        if known { tokens } else { Vec::new() }
    }
}

/// Where a selection starts: all features, or so many by the screen.
pub(crate) fn screened(
    patching: &Patching<'_>,
    model: &dyn DifferentiableModel,
    most: Option<usize>,
    screen: Screen,
) -> Result<Start, PatchingError> {
    /// Points between a prompt and its counterfactual at which gradients are taken, on the residual stream.
    const STEPS: usize = 8;
    let Some(most) = most else { return Ok(Start::All) };
    if screen == Screen::Change {
        return Ok(Start::LargestChanges(most));
    }
    // Inside a block only the prompt itself can be differentiated at.
    let mut effects = patching.attribute(model, STEPS).or_else(|_| patching.attribute(model, 1))?;
    effects.sort_by(|a, b| b.kl_fall.abs().total_cmp(&a.kl_fall.abs()).then(a.feature.cmp(&b.feature)));
    Ok(Start::First(most, effects.into_iter().map(|effect| effect.feature).collect()))
}

/// A set of features: why it was recorded, and what patching it does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Set {
    /// `all`, `first-N` (the N that change most), `start`, `none`, or the threshold in nats.
    pub(crate) threshold: String,
    pub(crate) features: Vec<usize>,
    pub(crate) evaluation: Evaluation,
}

/// The sets that one order of visiting went through, from all features to none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Descent {
    pub(crate) half: Half,
    pub(crate) seed: u64,
    /// Features whose codes differ anywhere.
    pub(crate) candidates: usize,
    /// Candidates left out from the start.
    pub(crate) screened_out: usize,
    pub(crate) sets: Vec<Set>,
}

impl Descent {
    /// KL against the size of the set.
    pub(crate) fn curve(&self) -> Curve {
        let mut evaluations: Vec<Evaluation> = self.sets.iter().map(|set| set.evaluation.clone()).collect();
        let unpatched = evaluations.pop().expect("a descent ends with the empty set");
        Curve::new(unpatched, evaluations)
    }
}

/// Runs the paper's selection on the prompts of `patching`, which are those of `half`.
pub(crate) fn descend(
    patching: &Patching<'_>,
    half: Half,
    config: &SelectionConfig,
    progress: &mut Progress<'_>,
) -> Result<Descent, PatchingError> {
    let selection = patching.select(config, progress)?;
    let (candidates, screened_out) = (patching.candidates().len(), selection.screened_out);
    let named = |threshold: String, accepted: Accepted| Set {
        threshold,
        features: accepted.features,
        evaluation: accepted.evaluation,
    };
    let mut sets = vec![named("all".into(), selection.full)];
    sets.extend(selection.wider.into_iter().map(|set| named(format!("first-{}", set.features.len()), set)));
    if screened_out > 0 {
        sets.push(named("start".into(), selection.start));
    }
    for (threshold, accepted) in selection.steps {
        let new = sets.last().is_none_or(|set| set.features != accepted.features);
        if new && !accepted.features.is_empty() {
            sets.push(named(format!("{threshold:.3e}"), accepted));
        }
    }
    sets.push(Set { threshold: "none".into(), features: Vec::new(), evaluation: selection.empty });
    Ok(Descent { half, seed: config.seed, candidates, screened_out, sets })
}

/// A mean over prompts.
pub(crate) fn over_prompts(values: &[f64]) -> Estimate {
    Estimate::of_ratio(&values.iter().map(|value| (*value, 1.0)).collect::<Vec<_>>())
}

/// What is read off a curve, and compared between dictionaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Area under the share of KL left, against the logarithm of the number of features up to the width of the activations.
    Area {
        /// That width.
        up_to: usize,
    },
    /// The fewest features that undo half of the KL.
    Features,
    /// The size of that edit, `||x' - x||` per token.
    Edit,
    /// KL with every feature patched.
    Floor,
}

impl Reading {
    /// The value; `None` where the curve never reaches half of the KL and that is asked for.
    pub(crate) fn of(self, curve: &Curve) -> Option<f64> {
        match self {
            Self::Area { up_to } => Some(curve.area(CountAxis::Log, up_to)),
            Self::Features => curve.features_for(HALF).map(|n| n as f64),
            Self::Edit => {
                let n = curve.features_for(HALF)?;
                curve.points().iter().find(|point| point.n_features == n).map(Evaluation::mean_edit_norm)
            }
            Self::Floor => curve.points().last().map(Evaluation::mean_kl),
        }
    }

    /// The mean over the curves (one for each seed).
    fn mean(self, curves: &[Curve]) -> Option<f64> {
        let values: Option<Vec<f64>> = curves.iter().map(|curve| self.of(curve)).collect();
        values.map(|values| values.iter().sum::<f64>() / values.len().max(1) as f64)
    }
}

/// Draws prompts with replacement, the same ones for every method: what is compared is paired. Orders of visiting are drawn as well.
pub(crate) struct Bootstrap {
    pub(crate) resamples: usize,
    pub(crate) seed: u64,
}

/// Share of the resamples inside an interval.
const LEVEL: f64 = 0.95;

impl Bootstrap {
    /// A reading with its percentile interval over prompts.
    pub(crate) fn reading(&self, reading: Reading, curves: &[Curve]) -> Option<Estimate> {
        let (value, draws) = self.statistic(&[curves], &|curves| reading.mean(&curves[0]))?;
        Some(Estimate { value, interval: interval(draws.into_iter().flatten().collect()) })
    }

    /// `a / b` for counts and norms, `a - b` for areas and KL, with its interval and the p-value of no difference. A resample in which only one
    /// of the two reaches half of the KL is at the end of the scale.
    ///
    /// The p-value of a difference is that of the centred statistic. A ratio, which may be 0 or without bound and then cannot be centred, has
    /// the p-value of its percentile interval, for which resamples in which neither reaches half of the KL count as no difference.
    pub(crate) fn comparison(&self, reading: Reading, a: &[Curve], b: &[Curve]) -> Option<Comparison> {
        let ratio = matches!(reading, Reading::Features | Reading::Edit);
        let compare = |curves: &[Vec<Curve>]| match (reading.mean(&curves[0]), reading.mean(&curves[1])) {
            (Some(a), Some(b)) if ratio => Some(a / b.max(f64::MIN_POSITIVE)),
            (Some(a), Some(b)) => Some(a - b),
            (Some(_), None) => Some(0.0),
            (None, Some(_)) => Some(f64::MAX),
            (None, None) => None,
        };
        let (value, draws) = self.statistic(&[a, b], &compare)?;
        let p_value = if ratio {
            percentile_p_value(1.0, &draws.iter().map(|draw| draw.unwrap_or(1.0)).collect::<Vec<_>>())
        } else {
            centred_p_value(value, 0.0, &draws.iter().map(|draw| draw.unwrap_or(0.0)).collect::<Vec<_>>())
        };
        let interval = interval(draws.into_iter().flatten().collect());
        Some(Comparison { value, interval, p_value: interval.map(|_| p_value), n: a[0].points()[0].kl.len() })
    }

    /// A statistic of the prompts and orders as they are, and of each resample of both where it is defined.
    fn statistic(
        &self,
        methods: &[&[Curve]],
        statistic: &dyn Fn(&[Vec<Curve>]) -> Option<f64>,
    ) -> Option<(f64, Vec<Option<f64>>)> {
        let whole: Vec<Vec<Curve>> = methods.iter().map(|curves| curves.to_vec()).collect();
        let value = statistic(&whole)?;
        let n = methods.first()?.first()?.points()[0].kl.len();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut draw = || {
            let drawn: Vec<usize> = (0..n).map(|_| rng.random_range(0..n)).collect();
            // Orders of visiting are drawn too: those of different methods have nothing to do with each other.
            let of_method = |curves: &&[Curve]| -> Vec<Curve> {
                (0..curves.len()).map(|_| resampled(&curves[rng.random_range(0..curves.len())], &drawn)).collect()
            };
            let resampled: Vec<Vec<Curve>> = methods.iter().map(of_method).collect();
            statistic(&resampled)
        };
        Some((value, (0..self.resamples).map(|_| draw()).collect()))
    }
}

/// The percentile interval.
fn interval(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let outside = ((1.0 - LEVEL) / 2.0 * values.len() as f64) as usize;
    (values.len() > 2 * outside).then(|| (values[outside], values[values.len() - 1 - outside]))
}

/// The curve over the prompts drawn.
fn resampled(curve: &Curve, drawn: &[usize]) -> Curve {
    let draw = |values: &[f64]| drawn.iter().map(|i| values[*i]).collect();
    let point = |point: &Evaluation| Evaluation {
        n_features: point.n_features,
        kl: draw(&point.kl),
        logit_diff: draw(&point.logit_diff),
        edit_norm: draw(&point.edit_norm),
    };
    let mut points = curve.points().iter().map(point);
    let unpatched = points.next().expect("a curve begins with the unpatched prompts");
    Curve::new(unpatched, points)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(n_features: usize, kl: [f64; 4]) -> Evaluation {
        Evaluation { n_features, kl: kl.to_vec(), logit_diff: vec![0.0; 4], edit_norm: vec![n_features as f64; 4] }
    }

    fn curve(halves_at: usize) -> Vec<Curve> {
        let sets = [evaluation(halves_at, [0.9, 1.0, 1.0, 0.8]), evaluation(64, [0.1; 4])];
        vec![Curve::new(evaluation(0, [2.0, 2.1, 2.2, 1.9]), sets)]
    }

    #[test]
    fn comparisons_are_paired() {
        let bootstrap = Bootstrap { resamples: 100, seed: 0 };
        let (few, many) = (curve(4), curve(16));
        let features = bootstrap.comparison(Reading::Features, &few, &many).unwrap();
        assert_eq!((features.value, features.interval), (0.25, Some((0.25, 0.25))));
        let area = bootstrap.comparison(Reading::Area { up_to: 64 }, &few, &many).unwrap();
        let (low, high) = area.interval.unwrap();
        assert!(low <= area.value && area.value <= high && high < 0.0, "{area:?}");
        // No draw contradicts either, and a hundred draws cannot show more; the p-value of an interval has two sides.
        assert_eq!((area.p_value, features.p_value), (Some(1.0 / 101.0), Some(2.0 / 101.0)));
        assert_eq!(area.n, 4);
        assert_eq!(bootstrap.reading(Reading::Edit, &few).unwrap().value, 4.0);
        // The same curve against itself, on the same draws.
        let same = bootstrap.comparison(Reading::Area { up_to: 64 }, &few, &few).unwrap();
        assert_eq!((same.value, same.interval, same.p_value), (0.0, Some((0.0, 0.0)), Some(1.0)));
        let same = bootstrap.comparison(Reading::Edit, &few, &few).unwrap();
        assert_eq!((same.value, same.p_value), (1.0, Some(1.0)));
    }

    #[test]
    fn a_curve_that_never_gets_there_loses() {
        let bootstrap = Bootstrap { resamples: 50, seed: 0 };
        let never = vec![Curve::new(evaluation(0, [2.0; 4]), [evaluation(8, [1.9; 4])])];
        assert!(bootstrap.reading(Reading::Features, &never).is_none());
        let against = bootstrap.comparison(Reading::Features, &curve(4), &never).unwrap();
        assert_eq!((against.value, against.p_value), (0.0, Some(2.0 / 51.0)));
        let turned = bootstrap.comparison(Reading::Features, &never, &curve(4)).unwrap();
        assert_eq!((turned.value, turned.p_value), (f64::MAX, Some(2.0 / 51.0)));
        assert!(bootstrap.comparison(Reading::Features, &never, &never).is_none());
    }

    #[test]
    fn tasks_are_found_by_name() {
        assert!(TASKS.iter().all(|(name, _)| task(name).is_ok()));
        let error = format!("{:#}", task("englisch").unwrap_err());
        assert!(error.contains("english, toy"), "{error}");
    }
}
