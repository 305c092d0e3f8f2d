//! Running pip and npm as child processes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Recipe, ToolKind};
use crate::AssetError;
use crate::progress::Reporter;
use crate::store::folder_bytes;

/// The programs that fetch packages, each with arguments that go before ours.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Python with pip: `python3`, on Windows `python`.
    pub python: Vec<OsString>,
    /// The package manager of Node.js: `npm`, on Windows `npm.cmd`.
    pub npm: Vec<OsString>,
}

impl Default for Programs {
    fn default() -> Self {
        let (python, npm) = if cfg!(windows) { ("python", "npm.cmd") } else { ("python3", "npm") };
        Self { python: vec![python.into()], npm: vec![npm.into()] }
    }
}

impl Programs {
    /// The command as a person would type it.
    pub(super) fn show(&self, kind: ToolKind) -> String {
        let argv = if kind == ToolKind::Pip { &self.python } else { &self.npm };
        let mut words: Vec<_> = argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.extend(arguments(kind).iter().take(3).map(ToString::to_string));
        words.join(" ")
    }
}

fn arguments(kind: ToolKind) -> &'static [&'static str] {
    match kind {
        // A wheel runs nothing when it is downloaded; a source package might.
        ToolKind::Pip => &["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", "."],
        ToolKind::Npm => &["pack", "--ignore-scripts"],
        ToolKind::Debian => &[],
    }
}

/// Downloads the recipe's package into `folder`. The outer error is a request to stop, the inner one says why the tool
/// failed.
pub(super) fn download(
    recipe: &Recipe,
    programs: &Programs,
    folder: &Path,
    reporter: &mut Reporter<'_, '_>,
) -> Result<Result<(), String>, AssetError> {
    let shown = programs.show(recipe.tool);
    let argv = if recipe.tool == ToolKind::Pip { &programs.python } else { &programs.npm };
    let Some((program, before)) = argv.split_first() else {
        return Ok(Err(format!("no program is set for `{shown}`")));
    };
    // The error stream goes to a file: a pipe that nobody empties would block the tool.
    let log = folder.join("stderr.log");
    let errors = File::create(&log).map_err(AssetError::io("create", &log))?;
    let child = Command::new(program)
        .args(before)
        .args(arguments(recipe.tool))
        .arg(recipe.package)
        .current_dir(folder)
        // Half-downloaded files land where they can be counted and are removed.
        .env("TMPDIR", folder)
        .env("PIP_NO_INPUT", "1")
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn();
    let mut child = match child {
        Ok(child) => Running(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Err(format!("`{}` was not found on this machine", program.to_string_lossy())));
        }
        Err(error) => return Ok(Err(format!("`{shown}` could not be started: {error}"))),
    };
    let note = format!("{shown} {}", recipe.package);
    loop {
        match child.0.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(Ok(())),
            Ok(Some(status)) => {
                // ctrl-C in a terminal ends the tool too: then it was a stop, not a failure.
                reporter.say(0, Some(recipe.archive_bytes), &note)?;
                let printed = fs::read(&log).unwrap_or_default();
                let tail = last_lines(&String::from_utf8_lossy(&printed), 6);
                return Ok(Err(format!("`{note}` failed ({status}): {tail}")));
            }
            Ok(None) => {
                let done = folder_bytes(folder).min(recipe.archive_bytes);
                reporter.say(done, Some(recipe.archive_bytes), &note)?;
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Ok(Err(format!("`{note}` was lost: {error}"))),
        }
    }
}

/// Kills the tool if we leave before it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The last lines with anything on them, in one line.
fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0 => "it printed no reason".to_owned(),
        len => lines[len.saturating_sub(n)..].join(" | "),
    }
}
