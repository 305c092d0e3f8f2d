//! What each command does.

pub(crate) mod assets;
pub(crate) mod capture;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod graph;
pub(crate) mod interp;
pub(crate) mod interp_cache;
pub(crate) mod patch;
pub(crate) mod reproduce;
mod scoring;
pub(crate) mod train;

use std::fmt::Display;
use std::ops::ControlFlow;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use monosem_activations::{HookStore, Store};
use monosem_assets::Progress;
use monosem_dictionary::{Dictionary as _, LinearDictionary, metadata};
use monosem_hooks::{HookPoint, HookedModel as _};
use monosem_lm::LanguageModel;
use monosem_sae::AdamMode;

use crate::interrupt;
use crate::output::note;

/// Positions of a context, as given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Positions(pub(crate) Vec<usize>);

/// Parses `none` or a list such as `0,1`.
pub(crate) fn positions(text: &str) -> Result<Positions, String> {
    if text == "none" {
        return Ok(Positions(Vec::new()));
    }
    let list = text
        .split(',')
        .map(|p| p.trim().parse().map_err(|_| format!("{p:?} is not a position: none, or a list such as 0,1")));
    list.collect::<Result<_, _>>().map(Positions)
}

/// Parses the way Adam is run.
pub(crate) fn adam_mode(text: &str) -> Result<AdamMode, String> {
    match text {
        "standard" => Ok(AdamMode::Standard),
        "paper" => Ok(AdamMode::Paper),
        _ => Err("choose standard or paper".into()),
    }
}

/// The error with its causes, in one line; a cause that its parent's message already tells is not told twice.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{separator}{cause}");
        }
    }
    text
}

/// Refuses a dictionary that does not reconstruct what it reads.
pub(crate) fn check_autoencoder(folder: &Path, dictionary: &LinearDictionary) -> Result<()> {
    let target = metadata(folder).ok().and_then(|said| said["target_hook"].as_str().map(str::to_owned));
    let (d_in, d_out) = (dictionary.d_in(), dictionary.d_out());
    if target.is_some() || d_in != d_out {
        let to = target.map_or_else(String::new, |hook| format!(" at {hook}"));
        bail!(
            "{} is a transcoder from {d_in} to {d_out} dimensions{to}: this needs one that reconstructs what it reads",
            folder.display()
        );
    }
    Ok(())
}

/// Refuses contexts that are longer than the model takes, or have no next token to predict.
pub(crate) fn check_context(context: usize, model: &LanguageModel) -> Result<()> {
    let most = model.max_context();
    ensure!((2..=most).contains(&context), "--context {context}: from 2 to the {most} tokens that the model takes");
    Ok(())
}

/// A number from 1 to `MOST`.
pub(crate) fn count<const MOST: usize>(text: &str) -> Result<usize, String> {
    let n: usize = text.parse().map_err(|e| format!("{e}"))?;
    if (1..=MOST).contains(&n) { Ok(n) } else { Err(format!("expected 1 to {MOST}")) }
}

/// A finite number.
pub(crate) fn finite<T: FromStr<Err: Display> + Into<f64> + Copy>(text: &str) -> Result<T, String> {
    let value: T = text.parse().map_err(|e| format!("{e}"))?;
    let known: f64 = value.into();
    if known.is_finite() { Ok(value) } else { Err("expected a finite number".into()) }
}

/// A threshold: a finite number above 0.
pub(crate) fn threshold(text: &str) -> Result<f64, String> {
    finite::<f64>(text).and_then(|value| if value > 0.0 { Ok(value) } else { Err("expected a number above 0".into()) })
}

/// The rows of a hook point; where the store has only one, it need not be named.
pub(crate) fn open_hook(store: &Store, hook: Option<HookPoint>) -> Result<(HookPoint, HookStore)> {
    let there = store.manifest().hook_points();
    let hook = match (hook, there.as_slice()) {
        (Some(hook), _) => hook,
        (None, [only]) => *only,
        (None, several) => {
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            bail!("the store has several hook points, choose one with --hook: {}", names.join(", "))
        }
    };
    Ok((hook, store.hook(hook)?))
}

/// A single bar of progress for a command: with the time left on a terminal, a line now and then elsewhere.
pub(crate) struct Bar {
    bar: ProgressBar,
    what: String,
    logged: Instant,
}

impl Bar {
    pub(crate) fn new(what: &str) -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {human_pos}/{human_len} {msg} {eta}") {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        Self { bar, what: what.to_owned(), logged: Instant::now() }
    }

    /// Shows how far the work is; tells it to stop once ctrl-C was pressed.
    pub(crate) fn show(&mut self, done: u64, total: u64, note: &str) -> ControlFlow<()> {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(note.to_owned());
        if self.bar.is_hidden() && self.logged.elapsed() >= Duration::from_secs(15) {
            self.logged = Instant::now();
            note!("{}: {done} of {total} {note}", self.what);
        }
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    pub(crate) fn fetch(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.show(progress.done_bytes, progress.total_bytes.unwrap_or(0), &format!("bytes {}", progress.note))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_none_or_a_list() {
        assert_eq!(positions("none").unwrap().0, Vec::<usize>::new());
        assert_eq!(positions("0, 3").unwrap().0, [0, 3]);
        assert!(positions("0,x").unwrap_err().contains("\"x\""));
    }
}
