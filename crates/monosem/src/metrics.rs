//! `metrics.jsonl`: a line of JSON for every few steps of training, as they are taken.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use monosem_sae::{StepParams, StepStats};
use serde_json::{Value, json};

/// Where the lines go.
pub(crate) struct Metrics {
    path: PathBuf,
    file: fs::File,
    every: u64,
    started: Instant,
    vectors: u64,
}

impl Metrics {
    /// Opens the file in `folder`. What an earlier run wrote of steps that are taken again, those after `done` of each member, is cut off.
    pub(crate) fn open(folder: &Path, every: u64, done: &[(String, u64)]) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let earlier = if path.is_file() { fs::read_to_string(&path)? } else { String::new() };
        let stays = |line: &&str| {
            let line: Value = serde_json::from_str(line).unwrap_or(Value::Null);
            let of = done.iter().find(|(name, _)| line["member"] == name.as_str());
            of.is_some_and(|(_, done)| line["step"].as_u64().is_some_and(|step| step <= *done))
        };
        let mut kept: String = earlier.lines().filter(stays).collect::<Vec<_>>().join("\n");
        if !kept.is_empty() {
            kept.push('\n');
        }
        let beside = path.with_extension("tmp");
        let file = fs::write(&beside, kept).and_then(|()| fs::rename(&beside, &path));
        let file = file.and_then(|()| fs::OpenOptions::new().append(true).open(&path));
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file, every, started: Instant::now(), vectors: 0 })
    }

    /// Counts a step of `rows` rows, and writes its line if it is due. Returns the vectors a second so far, all members together.
    pub(crate) fn add(
        &mut self,
        member: &str,
        step: u64,
        rows: usize,
        schedule: StepParams,
        stats: &StepStats,
    ) -> Result<f64> {
        self.vectors += rows as u64;
        let speed = self.vectors as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        if step.is_multiple_of(self.every) {
            let mut line = json!({ "member": member, "step": step, "lr": schedule.lr, "alpha": schedule.alpha, "vectors_per_s": speed });
            if let (Value::Object(line), Value::Object(stats)) = (&mut line, serde_json::to_value(stats)?) {
                line.extend(stats);
            }
            writeln!(self.file, "{line}").with_context(|| format!("cannot write {}", self.path.display()))?;
        }
        Ok(speed)
    }
}
