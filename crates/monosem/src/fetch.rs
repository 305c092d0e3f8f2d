//! Models and texts by name, with progress told to a node.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use monosem_assets::{Assets, ModelSource, Progress, TextSource};
use monosem_graph::Ctx;
use monosem_lm::{LanguageModel, LoadOptions};

/// The local files of a model. They were fetched by an earlier node; should they have gone since, they are fetched again.
pub(crate) fn model(assets: &Assets, source: &ModelSource, ctx: &Ctx<'_>) -> Result<PathBuf> {
    assets.model(source, &mut |_| going_on(ctx)).or_else(|error| {
        ctx.check()?;
        Err(error.into())
    })
}

/// The local files of a text, in the same way.
pub(crate) fn text(assets: &Assets, source: &TextSource, ctx: &Ctx<'_>) -> Result<PathBuf> {
    assets.text(source, &mut |_| going_on(ctx)).or_else(|error| {
        ctx.check()?;
        Err(error.into())
    })
}

/// Loads a model for a node.
pub(crate) fn load(assets: &Assets, source: &ModelSource, centred: bool, ctx: &Ctx<'_>) -> Result<LanguageModel> {
    let path = model(assets, source, ctx)?;
    Ok(LanguageModel::load(&path, &LoadOptions { center_writing_weights: centred })?)
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
