//! Files of what is drawn besides rows: a JSON array with one entry per line, checked on its way in and out.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ReportError;
use crate::row::write_whole;

/// What such a file holds.
pub(crate) trait Entry: Serialize + DeserializeOwned {
    /// What the file is called in messages, as `circuits`.
    const FILE: &'static str;
    /// What one of them is called in messages.
    const ONE: &'static str;
    /// The keys of an entry, for who wrote others.
    const KEYS: &'static str;

    /// Names the entry in messages.
    fn describe(&self) -> String;

    /// What is wrong with it and what was expected, where anything is.
    fn fault(&self) -> Option<String>;
}

/// Refuses the first entry with a fault.
pub(crate) fn check<T: Entry>(entries: &[T], file: Option<&Path>) -> Result<(), ReportError> {
    for (i, entry) in entries.iter().enumerate() {
        if let Some(reason) = entry.fault() {
            let file = file.map(|path| format!("{}: ", path.display())).unwrap_or_default();
            return Err(ReportError::Entry { place: format!("{file}{} {i} {}", T::ONE, entry.describe()), reason });
        }
    }
    Ok(())
}

pub(crate) fn read<T: Entry>(path: &Path) -> Result<Vec<T>, ReportError> {
    let bytes = fs::read(path).map_err(|source| ReportError::Io { path: path.to_owned(), source })?;
    let entries: Vec<T> = serde_json::from_slice(&bytes).map_err(|source| not_such_a_file::<T>(path, source))?;
    check(&entries, Some(path))?;
    Ok(entries)
}

pub(crate) fn write<T: Entry>(path: &Path, entries: &[T]) -> Result<(), ReportError> {
    check(entries, Some(path))?;
    let mut text = String::from("[");
    for (i, entry) in entries.iter().enumerate() {
        text.push_str(if i == 0 { "\n" } else { ",\n" });
        text.push_str(&serde_json::to_string(entry).map_err(|source| not_such_a_file::<T>(path, source))?);
    }
    text.push_str("\n]\n");
    write_whole(path, text.as_bytes())
}

fn not_such_a_file<T: Entry>(path: &Path, source: serde_json::Error) -> ReportError {
    ReportError::EntryJson { path: path.to_owned(), file: T::FILE, keys: T::KEYS, source }
}

/// The fault of a number that is not finite.
pub(crate) fn finite(field: &str, number: Option<f64>) -> Option<String> {
    let value = number.filter(|v| !v.is_finite())?;
    Some(format!("{field} is {value}, expected a finite number"))
}
