//! Features explained and scored with the help of a language model, with the controls that a score needs: what the `autointerp` nodes and the `interp` command
//! share.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use monosem_autointerp::{
    Budget, Evidence, ExplainerKind, FeatureRecord, Fragments, Interpreter, ScorerKind, Unscored, Verdict,
    bootstrap_mean, correlation, derangement, rank_correlation, shown_examples,
};
use monosem_dictionary::Estimate;
use monosem_llm::{LlmError, each};
use monosem_report::{FeatureExample, ResultRow};

use crate::interpretation::{Explained, Settings};
use crate::nodes::Label;

/// Features that two scorers must both have scored before their agreement is reported.
const FEWEST_PAIRS: usize = 5;

/// Where explanations come from.
pub(crate) enum Explains<'a> {
    /// The list of patterns at the headline length, as a sentence.
    Patterns,
    /// A language model.
    Model(ExplainerKind),
    /// Made elsewhere.
    Imported(&'a BTreeMap<usize, String>),
}

impl Explains<'_> {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Patterns => "patterns",
            Self::Model(ExplainerKind::Integers) => "integers",
            Self::Model(ExplainerKind::Windows) => "windows",
            Self::Imported(_) => "imported",
        }
    }
}

/// Which dictionary a record is of.
pub(crate) struct Subject {
    pub(crate) dictionary: String,
    pub(crate) hook: String,
    pub(crate) control: Option<&'static str>,
}

/// Explains and scores features.
pub(crate) struct Asker<'a> {
    /// Who is asked; none where patterns explain and score.
    pub(crate) interpreter: Option<Interpreter<'a>>,
    pub(crate) settings: &'a Settings<'a>,
    pub(crate) explains: Explains<'a>,
    pub(crate) scorers: &'a [ScorerKind],
    /// Features that are worked on at once.
    pub(crate) workers: usize,
}

/// What came of some features: the records of those that were finished, and what ended the run before the others were.
pub(crate) struct Asked {
    pub(crate) records: Vec<FeatureRecord>,
    pub(crate) ended: Option<LlmError>,
}

type OnDone<'d> = dyn FnMut(usize) -> ControlFlow<()> + 'd;

impl Asker<'_> {
    /// A record for each feature, in order. `done` hears of finished features and may stop the run.
    pub(crate) fn run(
        &self,
        subject: &Subject,
        fragments: &Fragments,
        features: &[Explained],
        done: &mut OnDone<'_>,
    ) -> Asked {
        let results = each(features, self.workers, |_, feature| self.record(subject, fragments, feature), done);
        collect(results)
    }

    /// The control: features scored by the explanations of others. Scorers without an explanation have no such control.
    pub(crate) fn shuffled(
        &self,
        subject: &Subject,
        fragments: &Fragments,
        features: &[Explained],
        records: &[FeatureRecord],
        done: &mut OnDone<'_>,
    ) -> Asked {
        let explained: Vec<(&Explained, &FeatureRecord)> = (records.iter())
            .filter(|record| record.explanation.is_some())
            .filter_map(|record| Some((features.iter().find(|f| f.examples.feature == record.feature)?, record)))
            .filter(|(feature, _)| feature.examples.enough)
            .collect();
        let order = derangement(explained.len(), self.settings.seed).unwrap_or_default();
        let pairs: Vec<_> = explained.iter().zip(&order).collect();
        let results = each(
            &pairs,
            self.workers,
            |_, ((feature, record), other)| {
                let other = explained[**other].1;
                let verdicts = self.shuffled_verdicts(fragments, feature, other, explained_by(features, other))?;
                Ok(FeatureRecord {
                    dictionary: subject.dictionary.clone(),
                    hook: subject.hook.clone(),
                    control: Some("shuffled".into()),
                    explanation: other.explanation.clone(),
                    asked: None,
                    verdicts,
                    examples: Vec::new(),
                    ..(*record).clone()
                })
            },
            done,
        );
        collect(results)
    }

    fn shuffled_verdicts(
        &self,
        fragments: &Fragments,
        feature: &Explained,
        other: &FeatureRecord,
        patterns: Option<&Explained>,
    ) -> Result<Vec<Verdict>, LlmError> {
        let text = other.explanation.as_deref().unwrap_or_default();
        let evidence = Evidence::new(fragments, &feature.examples);
        let score = |kind: &ScorerKind| match (kind, &self.interpreter) {
            (ScorerKind::Intruder, _) => None,
            (ScorerKind::Patterns, _) => Some(Ok(match patterns.and_then(|other| other.scored.as_ref()) {
                Some(scored) => pattern_verdict(self.settings.score(fragments, &feature.examples, &scored.explanation)),
                None => self.unexplained(*kind, other),
            })),
            (kind, Some(interpreter)) => Some(interpreter.score(*kind, feature.examples.feature, text, &evidence)),
            (_, None) => None,
        };
        self.scorers.iter().filter_map(score).collect()
    }

    fn record(&self, subject: &Subject, fragments: &Fragments, feature: &Explained) -> Result<FeatureRecord, LlmError> {
        let number = feature.examples.feature;
        let mut record = FeatureRecord {
            dictionary: subject.dictionary.clone(),
            hook: subject.hook.clone(),
            control: subject.control.map(str::to_owned),
            feature: number,
            explanation: None,
            explainer: self.explains.name().to_owned(),
            model: self.interpreter.map(|interpreter| interpreter.endpoint.model().to_owned()),
            asked: None,
            verdicts: Vec::new(),
            examples: shown_examples(fragments, &feature.examples, self.settings.vocabulary),
        };
        if !feature.examples.enough {
            let unscored = |kind: &ScorerKind| Verdict::unscored(*kind, self.chance(*kind), Unscored::TooFewFragments);
            record.verdicts = self.scorers.iter().map(unscored).collect();
            return Ok(record);
        }
        record.explanation = match (&self.explains, self.interpreter) {
            (Explains::Model(kind), Some(interpreter)) => {
                let examples = fragments.examples(&feature.examples.explain);
                let written = interpreter.explain(*kind, number, &examples)?;
                record.asked = Some(written.exchange);
                written.text
            }
            (Explains::Imported(explanations), _) => explanations.get(&number).cloned(),
            _ => self.settings.sentence(feature),
        };
        let evidence = Evidence::new(fragments, &feature.examples);
        for kind in self.scorers {
            let verdict = match (kind, self.interpreter, &record.explanation) {
                (ScorerKind::Patterns, ..) => match &feature.scored {
                    Some(scored) => scored
                        .at(Budget::Patterns(self.settings.headline))
                        .map_or_else(|| self.unexplained(*kind, &record), pattern_verdict),
                    None => self.unexplained(*kind, &record),
                },
                // It needs no explanation.
                (ScorerKind::Intruder, Some(interpreter), _) => interpreter.score(*kind, number, "", &evidence)?,
                (_, Some(interpreter), Some(text)) => interpreter.score(*kind, number, text, &evidence)?,
                _ => self.unexplained(*kind, &record),
            };
            record.verdicts.push(verdict);
        }
        Ok(record)
    }
}

impl Asker<'_> {
    fn chance(&self, kind: ScorerKind) -> f64 {
        self.interpreter.map_or(0.0, |interpreter| kind.chance(interpreter.config))
    }

    fn unexplained(&self, kind: ScorerKind, record: &FeatureRecord) -> Verdict {
        let problem = record.asked.as_ref().and_then(|exchange| exchange.problem.clone());
        let why = problem.unwrap_or_else(|| "none was given".into());
        Verdict::unscored(kind, self.chance(kind), Unscored::NotExplained { why })
    }
}

fn explained_by<'f>(features: &'f [Explained], record: &FeatureRecord) -> Option<&'f Explained> {
    features.iter().find(|feature| feature.examples.feature == record.feature)
}

fn pattern_verdict(score: monosem_autointerp::Score) -> Verdict {
    Verdict {
        value: Some(score.combined),
        corrected: Some(score.combined),
        top: Some(score.top),
        random: Some(score.random),
        unscored: None,
        ..Verdict::unscored(ScorerKind::Patterns, 0.0, Unscored::TooFewFragments)
    }
}

/// What was finished, and the first error that ended the run.
fn collect(results: Vec<Option<Result<FeatureRecord, LlmError>>>) -> Asked {
    let mut asked = Asked { records: Vec::new(), ended: None };
    for result in results {
        match result {
            Some(Ok(record)) => asked.records.push(record),
            Some(Err(error)) => {
                asked.ended.get_or_insert(error);
            }
            None => {
                asked.ended.get_or_insert(LlmError::Stopped);
            }
        }
    }
    asked
}

/// The results of some features: for each scorer the mean score with its bootstrap interval, what was not scored and why replies were lost, and how far
/// scorers agree.
pub(crate) fn rows(
    label: &Label,
    scorers: &[ScorerKind],
    records: &[FeatureRecord],
    resamples: usize,
    seed: u64,
) -> Vec<ResultRow> {
    let mut rows = Vec::new();
    let of = |kind: ScorerKind| records.iter().filter_map(move |r| r.verdicts.iter().find(|v| v.scorer == kind));
    for kind in scorers {
        let label = label.with_setting(&format!("scorer={kind}"));
        if of(*kind).next().is_none() {
            continue;
        }
        let mut push = |metric: &str, unit: &str, value: fn(&Verdict) -> Option<f64>| {
            let values: Vec<f64> = of(*kind).filter_map(value).collect();
            if let Some(mean) = bootstrap_mean(&values, resamples, seed) {
                let estimate = Estimate { value: mean.value, interval: mean.interval };
                rows.push(label.estimate(metric, estimate, values.len() as u64, unit));
            }
        };
        push("score", kind.unit(), |v| v.value);
        push("corrected_score", "1", |v| v.corrected);
        push("score_top", kind.unit(), |v| v.value.and(v.top));
        push("score_random", kind.unit(), |v| v.value.and(v.random));
        push("auc", "1", |v| v.value.and(v.auc));
        let n = of(*kind).count() as u64;
        let unscored = of(*kind).filter(|v| v.value.is_none()).count();
        rows.push(label.row("unscored_features", unscored as f64, n, "features"));
        let sum = |count: fn(&Verdict) -> u32| of(*kind).map(|v| u64::from(count(v))).sum::<u64>();
        let asked = sum(|v| v.asked);
        if asked > 0 {
            rows.push(label.row("unparsed_replies", sum(|v| v.unparsed) as f64, asked, "replies"));
            rows.push(label.row("refused_replies", sum(|v| v.refused) as f64, asked, "replies"));
        }
    }
    for (i, a) in scorers.iter().enumerate() {
        for b in &scorers[i + 1..] {
            let corrected = |record: &FeatureRecord, kind: ScorerKind| {
                record.verdicts.iter().find(|v| v.scorer == kind).and_then(|v| v.corrected)
            };
            let pairs = records.iter().filter_map(|r| Some((corrected(r, *a)?, corrected(r, *b)?)));
            let (x, y): (Vec<f64>, Vec<f64>) = pairs.unzip();
            if x.len() < FEWEST_PAIRS {
                continue;
            }
            let label = label.with_setting(&format!("scorers={a}+{b}"));
            let found = [("agreement_rank", rank_correlation(&x, &y)), ("agreement", correlation(&x, &y))];
            for (metric, summary) in found {
                let Some(summary) = summary else { continue };
                let estimate = Estimate { value: summary.value, interval: summary.interval };
                rows.push(label.estimate(metric, estimate, summary.n as u64, "correlation"));
            }
        }
    }
    rows
}

/// A feature as the report shows it, with the explanation and the first score of its record; the others go into the note.
pub(crate) fn with_record(shown: FeatureExample, record: &FeatureRecord) -> FeatureExample {
    let score = |verdict: &Verdict| match (&verdict.value, &verdict.unscored) {
        (Some(value), _) => format!("{}: {value:.2}", verdict.scorer),
        (None, Some(why)) => format!("{}: unscored, {why}", verdict.scorer),
        (None, None) => format!("{}: unscored", verdict.scorer),
    };
    let mut shown = shown;
    if record.explainer != Explains::Patterns.name() {
        // What patterns predict is not what this explanation says.
        shown.fragments.iter_mut().for_each(|fragment| fragment.predicted.clear());
    }
    let rest: Vec<String> = record.verdicts.iter().skip(1).map(score).collect();
    FeatureExample {
        explanation: record.explanation.clone().unwrap_or_default(),
        score: record.verdicts.first().and_then(|verdict| verdict.corrected),
        note: rest.join("; "),
        ..shown
    }
}
