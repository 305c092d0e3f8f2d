//! The memory map behind the weight files: one of the two places in this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::LmError;

/// Maps a file for reading.
pub(crate) fn map(path: &Path) -> Result<Mmap, LmError> {
    let file = File::open(path).map_err(|e| LmError::io(path, e))?;
    if file.metadata().map_err(|e| LmError::io(path, e))?.len() == 0 {
        return Err(LmError::malformed(path, "the file is empty"));
    }
    // SAFETY: the map is read-only and private to a load, which copies what it needs and drops it. Nothing in this process writes to
    // the file. If another process shortens it during the load, reading faults, as it does for every program that maps its input.
    unsafe { Mmap::map(&file) }.map_err(|e| LmError::io(path, e))
}
