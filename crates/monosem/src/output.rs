//! Standard output and standard error. Results go to the one: that it cannot be written to ends the command. What is said beside goes to the
//! other, where there may be nobody to hear.

use std::error::Error;
use std::fmt;
use std::io::{self, Write as _};

use anyhow::Result;

/// The reader of the output has gone, as `head` does: nothing is left to do, and nothing went wrong.
#[derive(Debug)]
pub(crate) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output")
    }
}

impl Error for Closed {}

/// Writes to standard output.
pub(crate) fn write(text: fmt::Arguments<'_>) -> Result<()> {
    match io::stdout().write_fmt(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
        Ok(()) => Ok(()),
    }
}

/// Writes a line to standard error if that can be done.
pub(crate) fn tell(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// `println!` that fails instead of panicking; to be used where errors are returned.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::write(format_args!("{}\n", format_args!($($text)*)))? };
}

/// `eprintln!` that never panics.
macro_rules! note {
    ($($text:tt)*) => { $crate::output::tell(format_args!($($text)*)) };
}

pub(crate) use {note, say};
