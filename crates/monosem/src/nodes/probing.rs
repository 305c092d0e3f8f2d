//! What a few latents tell together of the known properties, and whose place is taken by more specific ones: sparse probes and feature absorption, for
//! `properties-HOOK`.

use monosem_corpus::toy::{Property, PropertySet};
use monosem_dictionary::{
    Absorption, AbsorptionRule, Codes, Estimate, LinearDictionary, MeanDifferences, Probe, main_latents,
};
use monosem_report::ResultRow;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, Axis, s};

use super::Label;
use super::properties::{Bootstrap, FOUND, LEAST, Labelled, Task};

/// How many latents a sparse probe reads. In results the key is `latents`, for `k` is that of top-k autoencoders.
const LATENTS: [usize; 3] = [1, 2, 5];

/// The weight of the data against the penalty on a probe's weights; scikit-learn's, and so SAEBench's.
const C: f64 = 1.0;

/// Another latent is a main one if it raises F1 by more than this, and there are at most so many (arXiv 2409.14507).
const RISE: f64 = 0.03;
const MOST_MAIN: usize = 10;

/// What a dense probe, one of whole activations, made of a property.
pub(super) struct Dense {
    probe: Probe,
    /// Log-odds on the second half.
    logits: Vec<f64>,
    auroc: f64,
}

/// The dense probe of each property, and its rows: the upper reference of the sparse ones.
pub(super) fn dense(
    label: &Label,
    rows: &Labelled,
    half: usize,
    tasks: &[Task],
    bootstrap: &Bootstrap,
) -> (Vec<Option<Dense>>, Vec<ResultRow>) {
    let (first, second) = rows.x.view().split_at(Axis(0), half);
    let fit = |task: &Task| {
        let probe = Probe::fit(first, &task.choose, C)?;
        let told = Told::new(probe.logits(second), &task.report, bootstrap)?;
        Some((probe, told))
    };
    let fitted: Vec<Option<(Probe, Told)>> = tasks.par_iter().map(fit).collect();
    let told: Vec<Option<&Told>> = fitted.iter().map(|fitted| fitted.as_ref().map(|(_, told)| told)).collect();
    let results = probe_rows(label, "latents=all", tasks, &told);
    let dense = |(probe, told): (Probe, Told)| Dense { probe, logits: told.logits, auroc: told.auroc.value };
    (fitted.into_iter().map(|fitted| fitted.map(dense)).collect(), results)
}

/// Probes of a few latents each, chosen by the difference of their means on the first half.
pub(super) fn sparse(
    label: &Label,
    codes: ArrayView2<'_, f32>,
    tasks: &[Task],
    half: usize,
    bootstrap: &Bootstrap,
) -> Vec<ResultRow> {
    let (first, second) = codes.split_at(Axis(0), half);
    let differences = MeanDifferences::new(first);
    let told_by = |task: &Task| -> Vec<Option<Told>> {
        let differences = differences.of(&task.choose);
        let mut order: Vec<usize> = (0..differences.len()).collect();
        order.sort_by(|a, b| differences[*b].abs().total_cmp(&differences[*a].abs()));
        let told = |k: &usize| {
            let chosen = order.get(..*k)?;
            let probe = Probe::fit(first.select(Axis(1), chosen).view(), &task.choose, C)?;
            Told::new(probe.logits(second.select(Axis(1), chosen).view()), &task.report, bootstrap)
        };
        LATENTS.iter().map(told).collect()
    };
    // [property][number of latents]
    let told: Vec<Vec<Option<Told>>> = tasks.par_iter().map(told_by).collect();
    let of_number = |(i, k): (usize, usize)| {
        let told: Vec<Option<&Told>> = told.iter().map(|told| told[i].as_ref()).collect();
        probe_rows(label, &format!("latents={k}"), tasks, &told)
    };
    LATENTS.into_iter().enumerate().flat_map(of_number).collect()
}

/// What a probe said on the second half, and how well.
struct Told {
    logits: Vec<f64>,
    auroc: Estimate,
    balanced_accuracy: Estimate,
}

impl Told {
    fn new(logits: Vec<f64>, labels: &[bool], bootstrap: &Bootstrap) -> Option<Self> {
        let auroc = bootstrap.auroc(&logits.iter().map(|logit| *logit as f32).collect::<Vec<_>>(), labels)?;
        let accuracy = |times: &[u32]| balanced_accuracy(&logits, labels, times);
        let value = accuracy(&vec![1; labels.len()])?;
        let balanced_accuracy = Estimate { value, interval: bootstrap.interval(accuracy) };
        Some(Self { logits, auroc, balanced_accuracy })
    }
}

/// The mean of the shares that are told rightly where the label holds and where it does not; rows count so many times.
fn balanced_accuracy(logits: &[f64], labels: &[bool], times: &[u32]) -> Option<f64> {
    let share = |holds: bool| {
        let (mut right, mut all) = (0, 0);
        for ((logit, _), times) in logits.iter().zip(labels).zip(times).filter(|((_, label), _)| **label == holds) {
            right += if (*logit > 0.0) == holds { u64::from(*times) } else { 0 };
            all += u64::from(*times);
        }
        (all > 0).then(|| right as f64 / all as f64)
    };
    Some((share(true)? + share(false)?) / 2.0)
}

/// The rows of one kind of probe: by property, and the mean over properties with an interval over properties.
fn probe_rows(label: &Label, kind: &str, tasks: &[Task], told: &[Option<&Told>]) -> Vec<ResultRow> {
    let mut results = Vec::new();
    let mut areas = Vec::new();
    for (task, told) in tasks.iter().zip(told) {
        let Some(told) = told else { continue };
        let label = label.with_setting(&format!("property={},{kind}", task.property.name()));
        let n = task.report.len() as u64;
        results.push(label.estimate("probe_auroc", told.auroc, n, "1"));
        results.push(label.estimate("probe_balanced_accuracy", told.balanced_accuracy, n, "1"));
        areas.push(told.auroc.value);
    }
    results.extend(mean_row(&label.with_setting(kind), "probe_auroc_mean", &areas, "1"));
    results
}

fn mean_row(label: &Label, metric: &str, values: &[f64], unit: &str) -> Option<ResultRow> {
    let values: Vec<(f64, f64)> = values.iter().map(|value| (*value, 1.0)).collect();
    (!values.is_empty()).then(|| label.estimate(metric, Estimate::of_ratio(&values), values.len() as u64, unit))
}

/// Feature absorption by property: how often the main latents are silent where the dense probe rightly says that the property holds, and how often
/// another latent carries its direction there ([`Absorption`]). Of the properties whose direction the dense probe finds; one that does not lie in the
/// activations cannot be absorbed. `first` are the codes of the first half, dense.
#[expect(clippy::too_many_arguments, reason = "all that is known of the rows and of one dictionary")]
pub(super) fn absorption(
    label: &Label,
    dictionary: &LinearDictionary,
    codes: &Codes,
    first: ArrayView2<'_, f32>,
    rows: &Labelled,
    tasks: &[Task],
    dense: &[Option<Dense>],
    bootstrap: &Bootstrap,
) -> Vec<ResultRow> {
    let half = first.nrows();
    let mut first_codes = Codes::new(codes.n_latents());
    codes.rows().take(half).for_each(|(latents, values)| {
        first_codes.push_row(latents.iter().copied().zip(values.iter().copied()));
    });
    let x = rows.x.view();
    let differences = MeanDifferences::new(first);
    let of_task = |(task, dense): (&Task, &Option<Dense>)| -> Option<(Property, Absorbed)> {
        let dense = dense.as_ref().filter(|dense| dense.auroc >= FOUND)?;
        let main = main_latents(first, &task.choose, &differences.of(&task.choose), RISE, MOST_MAIN, C);
        if main.is_empty() {
            return None;
        }
        let rule = AbsorptionRule::default();
        let absorption =
            Absorption::new(dictionary, &dense.probe, x.slice(s![..half, ..]), &first_codes, &task.choose, rule);
        let told = |(holds, logit): (&bool, &f64)| *holds && *logit > 0.0;
        let state = |(i, asked): (usize, bool)| {
            let row = codes.row(half + i);
            let silent = || !main.iter().any(|main| row.0.iter().any(|latent| *latent as usize == *main));
            let absorbed = || absorption.absorber(x.row(half + i), row, &main).is_some();
            asked.then(|| State { silent: silent(), absorbed: absorbed() })
        };
        let states: Vec<Option<State>> =
            task.report.iter().zip(&dense.logits).map(told).enumerate().map(state).collect();
        let n = states.iter().flatten().count();
        (n >= LEAST).then_some((task.property, Absorbed { states, main: main.len() }))
    };
    let absorbed: Vec<(Property, Absorbed)> = tasks.par_iter().zip(dense).filter_map(of_task).collect();

    let mut results = Vec::new();
    let (mut rates, mut splits) = (Vec::new(), Vec::new());
    for (property, absorbed) in &absorbed {
        let setting = format!("property={}", property.name());
        let label = label.with_setting(&setting);
        let (rate, n) = absorbed.share(bootstrap, |_| true, |state| state.absorbed);
        results.push(label.estimate("absorption_rate", rate, n, "1"));
        let (silent, n) = absorbed.share(bootstrap, |_| true, |state| state.silent);
        results.push(label.estimate("main_silent_rate", silent, n, "1"));
        results.push(label.row("split_latents", absorbed.main as f64, n, "latents"));
        rates.push(rate.value);
        splits.push(absorbed.main as f64);
        // The rows of a property that implies this one, as a woman's name implies a name.
        for child in tasks.iter().filter(|child| implies(&rows.properties, child.property, *property)) {
            let (rate, n) = absorbed.share(bootstrap, |i| child.report[i], |state| state.absorbed);
            if n >= LEAST as u64 {
                let label = label.with_setting(&format!("within={}", child.property.name()));
                results.push(label.estimate("absorption_rate", rate, n, "1"));
            }
        }
    }
    results.extend(mean_row(label, "absorption_rate_mean", &rates, "1"));
    results.extend(mean_row(label, "split_latents_mean", &splits, "latents"));
    results
}

/// What happened in a row where the property holds and the dense probe says so.
struct State {
    /// No main latent is active.
    silent: bool,
    /// Another latent carries the property.
    absorbed: bool,
}

/// The rows of the second half for one property; `None` where it does not hold or the dense probe missed it.
struct Absorbed {
    states: Vec<Option<State>>,
    /// Number of main latents.
    main: usize,
}

impl Absorbed {
    /// The share of the rows looked at that are so, with its interval over documents, and how many were looked at.
    fn share(
        &self,
        bootstrap: &Bootstrap,
        looked_at: impl Fn(usize) -> bool + Sync,
        is_so: impl Fn(&State) -> bool + Sync,
    ) -> (Estimate, u64) {
        let share = |times: &[u32]| {
            let (mut so, mut all) = (0, 0);
            for (i, state) in self.states.iter().enumerate().filter(|(i, _)| looked_at(*i)) {
                let Some(state) = state else { continue };
                all += u64::from(times[i]);
                so += if is_so(state) { u64::from(times[i]) } else { 0 };
            }
            (all > 0).then(|| so as f64 / all as f64)
        };
        let n = self.states.iter().enumerate().filter(|(i, state)| looked_at(*i) && state.is_some()).count();
        let value = share(&vec![1; self.states.len()]).unwrap_or(0.0);
        (Estimate { value, interval: bootstrap.interval(share) }, n as u64)
    }
}

/// Whether `child` holds only where `parent` does, and not at all of those rows.
fn implies(rows: &[PropertySet], child: Property, parent: Property) -> bool {
    let is = |holds: fn(bool, bool) -> bool| rows.iter().any(|set| holds(set.contains(child), set.contains(parent)));
    is(|child, parent| !child && parent) && !is(|child, parent| child && !parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_labels_weigh_the_same_in_balanced_accuracy() {
        let (logits, labels) = ([1.0, -1.0, -1.0, -1.0, 1.0], [true, true, false, false, false]);
        let once = balanced_accuracy(&logits, &labels, &[1; 5]).unwrap();
        assert!((once - (0.5 + 2.0 / 3.0) / 2.0).abs() < 1e-12, "{once}");
        let drawn = balanced_accuracy(&logits, &labels, &[3, 1, 0, 0, 2]).unwrap();
        assert!((drawn - (0.75 + 0.0) / 2.0).abs() < 1e-12, "{drawn}");
        assert_eq!(balanced_accuracy(&logits, &labels, &[0, 0, 1, 1, 1]), None);
    }

    #[test]
    fn shares_are_of_the_rows_that_were_asked_about() {
        // Four documents of two rows each, of which the first is asked about; it is absorbed in one of them.
        let states = (0..8).map(|i| (i % 2 == 0).then_some(State { silent: i < 4, absorbed: i == 0 })).collect();
        let absorbed = Absorbed { states, main: 1 };
        let bootstrap = Bootstrap::new(&[0, 0, 1, 1, 2, 2, 3, 3]);
        let (silent, n) = absorbed.share(&bootstrap, |_| true, |state| state.silent);
        assert_eq!((silent.value, n), (0.5, 4));
        let (rate, n) = absorbed.share(&bootstrap, |i| i < 4, |state| state.absorbed);
        assert_eq!((rate.value, n), (0.5, 2));
        let (low, high) = silent.interval.unwrap();
        assert!(low < 0.5 && 0.5 < high && low >= 0.0 && high <= 1.0, "{low} {high}");
    }

    #[test]
    fn a_property_is_implied_by_one_that_never_holds_without_it() {
        let sets: [&[Property]; 3] = [&[Property::Name, Property::FemaleName], &[Property::Name], &[]];
        let rows = sets.map(|set| set.iter().copied().collect::<PropertySet>());
        assert!(implies(&rows, Property::FemaleName, Property::Name));
        assert!(!implies(&rows, Property::Name, Property::FemaleName));
        assert!(!implies(&rows, Property::Name, Property::Name));
    }
}
