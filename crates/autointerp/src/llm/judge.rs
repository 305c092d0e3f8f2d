use monosem_llm::{Finish, LlmError, Reply};
use rand::seq::{IteratorRandom, SliceRandom};
use rand::{Rng, RngExt};

use super::show::{Window, numbered, running};
use super::{Evidence, Interpreter, ScorerKind, Tally, Unscored, Verdict};
use crate::statistics::{auc, bootstrap};

/// Candidates asked for where the probabilities of two answers decide.
const CANDIDATES: u8 = 10;

/// Tokens that may be marked wrongly reach at most this share of the window's maximum.
pub(super) const SILENT: f32 = 0.1;

/// With less probability on the two answers together, a reply is read as text.
const LEAST: f64 = 0.05;

/// A window to be judged.
struct Case {
    text: String,
    truth: bool,
    /// Of a strong fragment, where it is an active one.
    top: bool,
}

/// A window as it was judged.
#[derive(Clone, Copy)]
struct Judged {
    truth: bool,
    top: bool,
    says: bool,
    /// How sure the model was of "yes".
    yes: Option<f64>,
}

impl Interpreter<'_> {
    pub(super) fn judged(
        &self,
        kind: ScorerKind,
        explanation: &str,
        evidence: &Evidence<'_>,
        rng: &mut impl Rng,
    ) -> Result<Verdict, LlmError> {
        const CHANCE: f64 = 0.5;
        let cases = match kind {
            ScorerKind::Detection => self.active_and_quiet(evidence, rng),
            _ => self.marked(evidence, rng),
        };
        let mut cases = match cases {
            Ok(cases) => cases,
            Err(why) => return Ok(Verdict::unscored(kind, CHANCE, why)),
        };
        cases.shuffle(rng);
        let template = if kind == ScorerKind::Detection { &self.prompts.detection } else { &self.prompts.fuzzing };
        let mut tally = Tally::default();
        let mut judged = Vec::new();
        for chunk in cases.chunks(self.config.per_prompt) {
            let windows = numbered(chunk.iter().map(|case| &case.text));
            let count = chunk.len().to_string();
            let values = [("explanation", explanation), ("count", count.as_str()), ("windows", windows.as_str())];
            let longest = 2 * chunk.len() as u32 + 8;
            let top = if chunk.len() == 1 { CANDIDATES } else { 0 };
            let Some(reply) = self.chat(template, &values, longest, top, &mut tally)? else { continue };
            match answers(&reply, chunk.len()) {
                Ok(answers) => judged.extend(chunk.iter().zip(answers).map(|(case, (says, yes))| Judged {
                    truth: case.truth,
                    top: case.top,
                    says,
                    yes,
                })),
                Err(why) => tally.unparsed(why),
            }
        }
        let mut verdict = tally.verdict(kind, CHANCE, self.config.max_failed);
        if verdict.unscored.is_some() {
            return Ok(verdict);
        }
        let Some(value) = balanced_accuracy(&judged) else {
            verdict.unscored = Some(Unscored::TooFewFragments);
            return Ok(verdict);
        };
        verdict.set(Some(value));
        // Quiet windows stand against both kinds of active ones; wrongly marked windows are of one kind themselves.
        let shared = |j: &Judged| kind == ScorerKind::Detection && !j.truth;
        let only =
            |top: bool| -> Vec<Judged> { judged.iter().copied().filter(|j| shared(j) || j.top == top).collect() };
        verdict.top = balanced_accuracy(&only(true));
        verdict.random = balanced_accuracy(&only(false));
        verdict.interval = bootstrap(judged.len(), self.config.resamples, rng.random(), |drawn| {
            balanced_accuracy(&drawn.iter().map(|i| judged[*i]).collect::<Vec<_>>())
        });
        let sure =
            |truth: bool| -> Option<Vec<f64>> { judged.iter().filter(|j| j.truth == truth).map(|j| j.yes).collect() };
        verdict.auc = sure(true).zip(sure(false)).and_then(|(active, quiet)| auc(&active, &quiet));
        Ok(verdict)
    }

    /// Windows around the peaks of active fragments, and windows of quiet ones, as many of each where there are.
    fn active_and_quiet(&self, evidence: &Evidence<'_>, rng: &mut impl Rng) -> Result<Vec<Case>, Unscored> {
        let active: Vec<_> =
            evidence.top.iter().map(|e| (*e, true)).chain(evidence.random.iter().map(|e| (*e, false))).collect();
        if active.is_empty() {
            return Err(Unscored::TooFewFragments);
        }
        let (found, needed) = (evidence.quiet.len(), active.len());
        if found < needed {
            return Err(Unscored::TooFewQuiet { found, needed });
        }
        let size = self.config.window;
        let text = |window: &Window<'_>| running(self.vocabulary, window.tokens, |_| false);
        let mut cases = Vec::new();
        for (example, top) in active {
            let window = Window::around_peak(example, size, rng);
            cases.push(Case { text: text(&window), truth: true, top });
        }
        for quiet in &evidence.quiet[..needed] {
            let window = Window::of_quiet(*quiet, size, rng);
            cases.push(Case { text: text(&window), truth: false, top: false });
        }
        Ok(cases)
    }

    /// Windows of active fragments: half of them with the active tokens marked, half with as many silent ones, in runs of the same lengths where there is room.
    fn marked(&self, evidence: &Evidence<'_>, rng: &mut impl Rng) -> Result<Vec<Case>, Unscored> {
        let mut cases = Vec::new();
        let mut truth = false;
        for (examples, top) in [(&evidence.top, true), (&evidence.random, false)] {
            let mut order: Vec<usize> = (0..examples.len()).collect();
            order.shuffle(rng);
            for example in order.into_iter().map(|at| examples[at]) {
                let window = Window::around_peak(example, self.config.window, rng);
                let max = window.max();
                let active = window.positions(|x| x > self.config.mark_above * max);
                let silent = window.positions(|x| x <= SILENT * max);
                // Left out for either truth: a window with many marks would else always be right.
                let Some(elsewhere) = moved(&active, &silent, rng) else { continue };
                truth = !truth;
                let marks = if truth { active } else { elsewhere };
                let text = running(self.vocabulary, window.tokens, |at| marks.contains(&at));
                cases.push(Case { text, truth, top });
            }
        }
        let some = |truth: bool| cases.iter().any(|case| case.truth == truth);
        if some(true) && some(false) {
            Ok(cases)
        } else if evidence.top.len() + evidence.random.len() < 2 {
            Err(Unscored::TooFewFragments)
        } else {
            Err(Unscored::NothingElseToMark)
        }
    }

    pub(super) fn intruder(&self, evidence: &Evidence<'_>, rng: &mut impl Rng) -> Result<Verdict, LlmError> {
        let (kind, choices) = (ScorerKind::Intruder, self.config.intruder_choices);
        let chance = 1.0 / choices as f64;
        let active: Vec<_> = evidence.top.iter().chain(&evidence.random).copied().collect();
        if active.len() < choices - 1 {
            return Ok(Verdict::unscored(kind, chance, Unscored::TooFewFragments));
        }
        if evidence.quiet.is_empty() {
            return Ok(Verdict::unscored(kind, chance, Unscored::TooFewQuiet { found: 0, needed: 1 }));
        }
        let (mut tally, mut right) = (Tally::default(), Vec::new());
        for trial in 0..self.config.intruder_trials {
            let size = self.config.window;
            let chosen = active.iter().copied().sample(rng, choices - 1);
            let mut windows: Vec<_> = chosen.into_iter().map(|e| Window::around_peak(e, size, rng)).collect();
            windows.shuffle(rng);
            let place = rng.random_range(0..choices);
            windows.insert(place, Window::of_quiet(evidence.quiet[trial % evidence.quiet.len()], size, rng));
            let text = numbered(windows.iter().map(|w| running(self.vocabulary, w.tokens, |_| false)));
            let values = [("count", choices.to_string()), ("windows", text)];
            let values = values.each_ref().map(|(key, value)| (*key, value.as_str()));
            let Some(reply) = self.chat(&self.prompts.intruder, &values, 8, 0, &mut tally)? else { continue };
            let cut = reply.finish == Finish::Length && choices >= 10;
            match one_number(&reply.text, choices).filter(|_| !cut) {
                Some(number) => right.push(f64::from(number == place + 1)),
                None => tally.unparsed(format!("expected one number from 1 to {choices}")),
            }
        }
        let mut verdict = tally.verdict(kind, chance, self.config.max_failed);
        if verdict.unscored.is_none() {
            let mean = |values: &mut dyn Iterator<Item = f64>, n: usize| values.sum::<f64>() / n as f64;
            verdict.set(Some(mean(&mut right.iter().copied(), right.len())));
            verdict.interval = bootstrap(right.len(), self.config.resamples, rng.random(), |drawn| {
                Some(mean(&mut drawn.iter().map(|i| right[*i]), drawn.len()))
            });
        }
        Ok(verdict)
    }
}

/// Runs of neighbours as long as those of `marks`, among `free` positions; single positions where no run of that length is free. `None` if there are too few.
fn moved(marks: &[usize], free: &[usize], rng: &mut impl Rng) -> Option<Vec<usize>> {
    let mut free = free.to_vec();
    let mut placed = Vec::new();
    let mut lengths: Vec<usize> = marks.chunk_by(|a, b| a + 1 == *b).map(<[usize]>::len).collect();
    lengths.sort_unstable_by_key(|length| std::cmp::Reverse(*length));
    for length in lengths {
        let runs = free.windows(length).filter(|run| run[length - 1] - run[0] + 1 == length);
        let run: Vec<usize> = match runs.choose(rng) {
            Some(run) => run.to_vec(),
            None if free.len() >= length => free.iter().copied().sample(rng, length),
            None => return None,
        };
        free.retain(|at| !run.contains(at));
        placed.extend(run);
    }
    Some(placed)
}

/// Mean of the shares of active and of other windows that were judged right; `None` if there are none of one kind.
fn balanced_accuracy(judged: &[Judged]) -> Option<f64> {
    let share = |truth: bool| {
        let of: Vec<&Judged> = judged.iter().filter(|j| j.truth == truth).collect();
        let right = of.iter().filter(|j| j.says == truth).count();
        (!of.is_empty()).then(|| right as f64 / of.len() as f64)
    };
    Some((share(true)? + share(false)?) / 2.0)
}

/// `n` answers of a reply, each with how sure the model was where it tells.
fn answers(reply: &Reply, n: usize) -> Result<Vec<(bool, Option<f64>)>, String> {
    if n == 1
        && let Some(yes) = reply.tokens.first().and_then(|token| probability_of_yes(&token.top))
    {
        return Ok(vec![(yes > 0.5, Some(yes))]);
    }
    let digits = digits(&reply.text).ok_or_else(|| format!("expected {n} digits 0 or 1 and nothing else"))?;
    if digits.len() != n {
        return Err(format!("{} answers, expected {n}", digits.len()));
    }
    Ok(digits.into_iter().map(|digit| (digit, None)).collect())
}

/// `p(1) / (p(0) + p(1))` among the candidates of the first token; `None` if both together are unlikely.
fn probability_of_yes(candidates: &[(String, f64)]) -> Option<f64> {
    let p = |digit: &str| -> f64 {
        candidates.iter().filter(|(text, _)| text.trim() == digit).map(|(_, logprob)| logprob.exp()).sum()
    };
    let (no, yes) = (p("0"), p("1"));
    // A model that is about to say something else has not answered.
    (no + yes >= LEAST).then(|| yes / (no + yes))
}

/// The digits 0 and 1 of the first line that holds nothing else but what separates them (or a bracket around all).
fn digits(reply: &str) -> Option<Vec<bool>> {
    let line = reply.lines().map(str::trim).find(|line| !line.is_empty())?;
    let separators = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '[' | ']' | '.');
    let parts = line.split(separators).filter(|part| !part.is_empty());
    let digits: Option<Vec<bool>> = parts
        .map(|part| match part {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        })
        .collect();
    digits.filter(|digits| !digits.is_empty())
}

/// The only number from 1 to `most` in a reply.
fn one_number(reply: &str, most: usize) -> Option<usize> {
    let mut numbers = reply.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    let number = numbers.next()?.parse().ok()?;
    (numbers.next().is_none() && (1..=most).contains(&number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn answers_are_read_strictly() {
        assert_eq!(digits("1,0, 1\n\nBecause ..."), Some(vec![true, false, true]));
        assert_eq!(digits("[0, 1]"), Some(vec![false, true]));
        assert_eq!(digits("1: yes"), None);
        assert_eq!(digits("10"), None);
        assert_eq!(digits(""), None);
        assert_eq!((one_number("3", 4), one_number("Piece 3.", 4), one_number("1 or 2", 4)), (Some(3), Some(3), None));
        assert_eq!((one_number("5", 4), one_number("none", 4)), (None, None));
    }

    #[test]
    fn a_constant_answer_is_worth_exactly_chance() {
        for says in [true, false] {
            let judge = |truth| Judged { truth, top: truth, says, yes: None };
            // Ten active windows to one quiet one: plain accuracy would be 0.91.
            let judged: Vec<Judged> = (0..11).map(|i| judge(i > 0)).collect();
            assert_eq!(balanced_accuracy(&judged), Some(0.5));
        }
    }

    proptest! {
        #[test]
        fn marks_are_moved_in_runs_of_the_same_lengths(marked in prop::collection::vec(0u8..4, 1..40), seed: u64) {
            let marks: Vec<usize> = (0..marked.len()).filter(|at| marked[*at] == 0).collect();
            let free: Vec<usize> = (0..marked.len()).filter(|at| marked[*at] > 1).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let Some(mut placed) = moved(&marks, &free, &mut rng) else {
                prop_assert!(free.len() < marks.len());
                return Ok(());
            };
            placed.sort_unstable();
            prop_assert!(placed.windows(2).all(|pair| pair[0] < pair[1]) && placed.iter().all(|at| free.contains(at)));
            prop_assert_eq!(placed.len(), marks.len());
        }
    }

    #[test]
    fn a_run_stays_a_run_where_there_is_room() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..50 {
            let mut placed = moved(&[3, 4, 5, 9], &[0, 1, 2, 7, 11, 12, 13, 14], &mut rng).unwrap();
            placed.sort_unstable();
            let mut lengths: Vec<usize> = placed.chunk_by(|a, b| a + 1 == *b).map(<[usize]>::len).collect();
            lengths.sort_unstable();
            assert!(lengths == [1, 3] || lengths == [4], "{placed:?}");
        }
    }

    #[test]
    fn two_probabilities_decide() {
        let candidates = [("1", 0.3), (" 0", 0.1), ("No", 0.6)].map(|(t, p): (&str, f64)| (t.to_owned(), p.ln()));
        assert!((probability_of_yes(&candidates).unwrap() - 0.75).abs() < 1e-12);
        assert_eq!(probability_of_yes(&candidates[2..]), None);
    }
}
