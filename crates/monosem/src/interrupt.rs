//! ctrl-C: the first asks the run to stop at the next safe place, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};

use crate::exit;
use crate::output::note;

static CANCELLED: AtomicBool = AtomicBool::new(false);

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

/// Whether ctrl-C was pressed.
pub(crate) fn requested() -> bool {
    CANCELLED.load(Ordering::Relaxed)
}
