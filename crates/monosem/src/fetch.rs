//! Models and texts by name, with progress told to a node.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use monosem_assets::{Assets, Progress};
use monosem_graph::Ctx;
use monosem_lm::{LanguageModel, LoadOptions, Precision};

use crate::model::Model;
use crate::text::{Text, Texts};

/// The local files of a model. They were fetched by an earlier node; should they have gone since, they are fetched again.
pub(crate) fn model(assets: &Assets, model: &Model, ctx: &Ctx<'_>) -> Result<PathBuf> {
    model.obtain(assets, &mut |progress| tell(&progress, ctx)).or_else(|error| {
        ctx.check()?;
        Err(error)
    })
}

/// The local files of the texts, in the same way.
pub(crate) fn texts(assets: &Assets, texts: &Texts, ctx: &Ctx<'_>) -> Result<Vec<PathBuf>> {
    let obtain = |text: &Text| {
        text.obtain(assets, &mut |progress| tell(&progress, ctx)).or_else(|error| {
            ctx.check()?;
            Err(error)
        })
    };
    texts.0.iter().map(obtain).collect()
}

/// Loads a model for a node, in full precision.
pub(crate) fn load(assets: &Assets, model: &Model, centred: bool, ctx: &Ctx<'_>) -> Result<LanguageModel> {
    load_in(Precision::F32, assets, model, centred, ctx)
}

/// Loads a model for a node.
pub(crate) fn load_in(
    precision: Precision,
    assets: &Assets,
    model: &Model,
    centred: bool,
    ctx: &Ctx<'_>,
) -> Result<LanguageModel> {
    let path = self::model(assets, model, ctx)?;
    Ok(LanguageModel::load(&path, &LoadOptions { center_writing_weights: centred, precision })?)
}

/// Passes the progress of a fetch on.
pub(crate) fn tell(progress: &Progress, ctx: &Ctx<'_>) -> ControlFlow<()> {
    if let Some(total) = progress.total_bytes.filter(|total| *total > 0) {
        ctx.progress(progress.done_bytes, total, "bytes");
    }
    going_on(ctx)
}

fn going_on(ctx: &Ctx<'_>) -> ControlFlow<()> {
    if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
