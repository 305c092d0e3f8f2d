use std::{collections::BTreeMap, time::Duration};

use crate::{Event, Planned, State};

/// How much of a run is done and how long the rest will take, from the nodes' weights and the events so far.
///
/// It has no clock: every event comes with the time since the run began, so a recorded run gives the same numbers again.
#[derive(Debug, Clone, Default)]
pub struct Eta {
    nodes: BTreeMap<String, Work>,
    /// When the first node began: checking hits before it takes no part in the rate.
    first: Option<Duration>,
    /// Weight done in this run by nodes that have ended.
    ended: f64,
}

/// A node that has not ended.
#[derive(Debug, Clone, Default)]
struct Work {
    /// 0 for a node that is expected to be a hit.
    weight: f64,
    /// Its weight if it is made after all, because verification found it damaged.
    if_made: f64,
    /// Share done, of it all.
    share: f64,
    /// Share that an earlier, interrupted run had done: it says nothing about the speed of this one.
    found: Option<f64>,
}

impl Work {
    fn done_here(&self) -> f64 {
        self.weight * (self.share - self.found.unwrap_or(0.0)).max(0.0)
    }
}

impl Eta {
    /// Before the first event.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what happened `since` the run began.
    pub fn update(&mut self, event: &Event, since: Duration) {
        match event {
            Event::Planned { nodes } => {
                let work = |node: &Planned| {
                    let weight = if node.state == State::Hit { 0.0 } else { node.weight };
                    (node.name.clone(), Work { weight, if_made: node.weight, ..Work::default() })
                };
                self.nodes = nodes.iter().map(work).collect();
            }
            Event::Started { name } => {
                self.first.get_or_insert(since);
                if let Some(work) = self.nodes.get_mut(name) {
                    work.weight = work.if_made;
                }
            }
            Event::Progress { name, done, total, .. } => {
                if let Some(work) = self.nodes.get_mut(name) {
                    work.share = if *total == 0 { 0.0 } else { (*done as f64 / *total as f64).min(1.0) };
                    work.found.get_or_insert(work.share);
                }
            }
            Event::Finished { name, .. } => {
                if let Some(mut work) = self.nodes.remove(name) {
                    work.share = 1.0;
                    self.ended += work.done_here();
                }
            }
            // The time that they took is spent, so what they did stays in the rate; what they left undone will not come.
            Event::Failed { name, .. } | Event::Interrupted { name } | Event::Skipped { name, .. } => {
                self.ended += self.nodes.remove(name).map_or(0.0, |work| work.done_here());
            }
            Event::Hit { name } => {
                self.nodes.remove(name);
            }
            Event::Message { .. } | Event::Invalid { .. } => {}
        }
    }

    /// The time left at the mean speed so far; `None` until some work has been done.
    #[must_use]
    pub fn remaining(&self, since: Duration) -> Option<Duration> {
        let done = self.ended + self.nodes.values().map(Work::done_here).sum::<f64>();
        let elapsed = since.checked_sub(self.first?)?.as_secs_f64();
        let seconds = elapsed * self.left() / done;
        (done > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
    }

    /// The share of this run's work that is done, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        let done = self.ended + self.nodes.values().map(Work::done_here).sum::<f64>();
        let all = done + self.left();
        if all > 0.0 { done / all } else { 1.0 }
    }

    fn left(&self) -> f64 {
        self.nodes.values().map(|work| work.weight * (1.0 - work.share)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, state: State, weight: f64) -> Planned {
        Planned { name: name.into(), key: String::new(), state, deps: vec![], weight }
    }

    fn progress(name: &str, done: u64) -> Event {
        Event::Progress { name: name.into(), done, total: 100, unit: "steps".into() }
    }

    #[test]
    fn time_left_follows_the_weights() {
        let second = Duration::from_secs;
        let mut eta = Eta::new();
        let nodes = vec![
            planned("hit", State::Hit, 50.0),
            planned("a", State::Missing, 1.0),
            planned("b", State::Partial, 4.0),
        ];
        eta.update(&Event::Planned { nodes }, second(0));
        eta.update(&Event::Hit { name: "hit".into() }, second(0));
        assert_eq!(eta.remaining(second(1)), None);
        eta.update(&Event::Started { name: "a".into() }, second(1));
        eta.update(&progress("a", 0), second(1));
        eta.update(&progress("a", 50), second(6));
        assert_eq!(eta.remaining(second(6)), Some(second(45)), "half a weight in 5 s, four and a half are left");
        eta.update(&Event::Finished { name: "a".into(), seconds: 10.0 }, second(11));
        assert_eq!(eta.remaining(second(11)), Some(second(40)));
        assert!((eta.share() - 0.2).abs() < 1e-12);

        // It goes on at three quarters: one weight is left, and the speed is still that of `a`.
        eta.update(&Event::Started { name: "b".into() }, second(11));
        eta.update(&progress("b", 75), second(11));
        assert_eq!(eta.remaining(second(11)), Some(second(10)));
        eta.update(&Event::Failed { name: "b".into(), error: String::new() }, second(12));
        assert_eq!(eta.remaining(second(12)), Some(second(0)));
        assert!((eta.share() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_damaged_hit_counts_once_it_is_made_again() {
        let mut eta = Eta::new();
        let nodes = vec![planned("a", State::Hit, 1.0), planned("b", State::Missing, 1.0)];
        eta.update(&Event::Planned { nodes }, Duration::ZERO);
        eta.update(&Event::Invalid { name: "a".into(), reason: String::new() }, Duration::ZERO);
        eta.update(&Event::Started { name: "a".into() }, Duration::ZERO);
        eta.update(&progress("a", 0), Duration::ZERO);
        eta.update(&progress("a", 50), Duration::from_secs(1));
        assert_eq!(eta.remaining(Duration::from_secs(1)), Some(Duration::from_secs(3)));
    }
}
