//! Points of training curves, kept beside the checkpoint: a run that is gone on with starts with the curve of the part that was done.

use std::path::PathBuf;

use anyhow::Result;
use monosem_dictionary::LinearDictionary;
use monosem_graph::Ctx;
use monosem_report::{ResultRow, read_results, write_results};
use monosem_sae::StepStats;
use ndarray::Array2;

use super::Label;
use crate::evaluation::evaluate;

/// The rows of a node's curves so far.
pub(super) struct Curve {
    file: PathBuf,
    rows: Vec<ResultRow>,
}

impl Curve {
    pub(super) fn open(ctx: &Ctx<'_>) -> Result<Self> {
        let file = ctx.partial().join("curve.json");
        let rows = if file.is_file() { read_results(&file)? } else { Vec::new() };
        Ok(Self { file, rows })
    }

    /// Notes a point. After a resume a step may come again: it comes out the same, and counts once.
    pub(super) fn add(&mut self, point: Vec<ResultRow>) -> Result<()> {
        let is_again = |row: &ResultRow| {
            point.iter().any(|new| (&new.method, &new.setting, &new.metric) == (&row.method, &row.setting, &row.metric))
        };
        self.rows.retain(|row| !is_again(row));
        self.rows.extend(point);
        Ok(write_results(&self.file, &self.rows)?)
    }

    pub(super) fn into_rows(self) -> Vec<ResultRow> {
        self.rows
    }
}

/// A dictionary in training, on held-out rows and their groups.
pub(super) fn point(
    label: &Label,
    step: u64,
    stats: &StepStats,
    dictionary: &LinearDictionary,
    held_out: &(Array2<f32>, Vec<u32>),
) -> Vec<ResultRow> {
    let label = label.with_setting(&format!("step={step}"));
    let evaluation = evaluate(dictionary, held_out.0.view(), &held_out.1);
    vec![
        label.estimate("fvu", evaluation.fvu, evaluation.n, "1"),
        label.estimate("l0", evaluation.l0, evaluation.n, "latents"),
        label.row("dead_latents", evaluation.dead_latents() as f64, evaluation.n, "latents"),
        label.row("loss", f64::from(stats.loss), 1, "1"),
    ]
}
