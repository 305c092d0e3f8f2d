//! What a person sees of a run: bars with the time left on a terminal, plain lines anywhere else.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use monosem_graph::{Eta, Event, State};

use crate::output::note;

/// A log gets a line of progress per node at most this often.
const LOG_EVERY: Duration = Duration::from_secs(15);

/// Turns events into what is shown on standard error.
pub(crate) struct Console {
    begun: Instant,
    view: Mutex<View>,
}

struct View {
    eta: Eta,
    bars: Option<Bars>,
    /// When each running node last had a line in the log.
    logged: BTreeMap<String, Instant>,
    to_run: usize,
    ended: usize,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    running: BTreeMap<String, ProgressBar>,
}

impl Console {
    pub(crate) fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(Bars::new);
        let view = View { eta: Eta::new(), bars, logged: BTreeMap::new(), to_run: 0, ended: 0 };
        Self { begun: Instant::now(), view: Mutex::new(view) }
    }

    pub(crate) fn event(&self, event: &Event) {
        // A panic in an earlier event has been told already; the view is whole enough to go on.
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let since = self.begun.elapsed();
        view.eta.update(event, since);
        view.show(event, since);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let view = self.view.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(bars) = &view.bars {
            bars.total.finish_and_clear();
        }
    }
}

impl View {
    fn show(&mut self, event: &Event, since: Duration) {
        match event {
            Event::Planned { nodes } => {
                let hits = nodes.iter().filter(|node| node.state == State::Hit).count();
                let partial = nodes.iter().filter(|node| node.state == State::Partial).count();
                self.to_run = nodes.len() - hits;
                let going_on =
                    if partial > 0 { format!(", {partial} of them from a checkpoint") } else { String::new() };
                self.line(&format!("{} nodes: {hits} done before, {} to run{going_on}", nodes.len(), self.to_run));
            }
            Event::Started { name } => {
                self.logged.insert(name.clone(), Instant::now());
                match &mut self.bars {
                    Some(bars) => bars.start(name),
                    None => self.line(&format!("{name}: started")),
                }
            }
            Event::Progress { name, done, total, unit } => self.progress(name, *done, *total, unit, since),
            Event::Message { name, text } => self.line(&format!("{name}: {text}")),
            Event::Hit { .. } => {}
            Event::Invalid { name, reason } => self.line(&format!("{name}: made again, because {reason}")),
            Event::Finished { name, seconds } => {
                let left = self.eta.remaining(since).map(|left| format!(", about {} left", HumanDuration(left)));
                self.ended += 1;
                let count = format!("{} of {}", self.ended, self.to_run);
                let left = left.filter(|_| self.ended < self.to_run).unwrap_or_default();
                self.end(name, &format!("{name}: done in {seconds:.1} s ({count}{left})"));
            }
            Event::Failed { name, error } => self.end(name, &format!("{name}: FAILED: {error}")),
            Event::Skipped { name, because } => self.end(name, &format!("{name}: skipped, {because}")),
            Event::Interrupted { name } => {
                self.end(name, &format!("{name}: interrupted; a second run goes on from here"));
            }
        }
    }

    fn progress(&mut self, name: &str, done: u64, total: u64, unit: &str, since: Duration) {
        if let Some(bars) = &self.bars {
            bars.progress(name, done, total, unit);
            bars.total.set_position((self.eta.share() * 1000.0) as u64);
            let left =
                self.eta.remaining(since).map_or_else(String::new, |left| format!("{} left", HumanDuration(left)));
            bars.total.set_message(left);
            return;
        }
        let due = self.logged.get(name).is_none_or(|last| last.elapsed() >= LOG_EVERY);
        if due {
            self.logged.insert(name.to_owned(), Instant::now());
            let percent = 100.0 * done as f64 / (total as f64).max(1.0);
            let left =
                self.eta.remaining(since).map(|left| format!("; about {} for the whole run", HumanDuration(left)));
            self.line(&format!("{name}: {done} of {total} {unit} ({percent:.0} %){}", left.unwrap_or_default()));
        }
    }

    fn end(&mut self, name: &str, text: &str) {
        self.logged.remove(name);
        if let Some(bar) = self.bars.as_mut().and_then(|bars| bars.running.remove(name)) {
            bar.finish_and_clear();
        }
        self.line(text);
    }

    fn line(&self, text: &str) {
        match &self.bars {
            // Nobody is left to tell that standard error is closed.
            Some(bars) => drop(bars.all.println(text)),
            None => note!("{text}"),
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(1000));
        total.set_style(style("{percent:>3} % {bar:30} {elapsed} {msg}"));
        Self { all, total, running: BTreeMap::new() }
    }

    fn start(&mut self, name: &str) {
        let bar = self.all.insert_before(&self.total, ProgressBar::new(0));
        bar.set_style(style("{spinner} {prefix}"));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        self.running.insert(name.to_owned(), bar);
    }

    fn progress(&self, name: &str, done: u64, total: u64, unit: &str) {
        let Some(bar) = self.running.get(name) else { return };
        if bar.length() != Some(total) {
            bar.set_length(total);
            let count = if unit == "bytes" { "{bytes}/{total_bytes}" } else { "{human_pos}/{human_len} {msg}" };
            bar.set_style(style(&format!("{{spinner}} {{prefix}} {{bar:20}} {count} {{eta}}")));
            bar.set_message(unit.to_owned());
        }
        bar.set_position(done);
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are the constants above; a wrong one falls back to the plain bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
