//! ctrl-C: the first asks the run to stop at the next safe place, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::{Context as _, Result};

use crate::exit;
use crate::output::note;

static CANCELLED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Begins to listen, and returns the flag that becomes true.
pub(crate) fn listen() -> Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if CANCELLED.swap(true, Ordering::Relaxed) {
            std::process::exit(exit::INTERRUPTED.into());
        }
        note!("stopping at the next safe place (ctrl-C again: stop at once)");
    })
    .context("cannot listen for ctrl-C")?;
    Ok(&CANCELLED)
}

/// The flag, to be held by what waits on threads of its own.
pub(crate) fn flag() -> Arc<AtomicBool> {
    Arc::clone(&CANCELLED)
}

/// Whether ctrl-C was pressed.
pub(crate) fn requested() -> bool {
    CANCELLED.load(Ordering::Relaxed)
}
