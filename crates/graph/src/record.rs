use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Component, Path},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    FileRecord, GraphError,
    error::io_error,
    files::{Links, hash_file, walk},
    key::FORMAT_VERSION,
};

/// The name of the record in a finished node's folder.
pub const RECORD_FILE: &str = "node.json";

/// An input of a node and what was found there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Where it was; not part of the key.
    pub path: String,
    /// Whether it is a folder.
    pub folder: bool,
    /// Its files: one, or all those below the folder, sorted by name.
    pub files: Vec<FileRecord>,
}

/// `node.json`: what a finished node was made from, when, and what it wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Version of this format.
    pub version: u32,
    /// The node's name.
    pub name: String,
    /// Its key: 64 hexadecimal digits.
    pub key: String,
    /// Its parameters, with sorted keys.
    pub params: serde_json::Value,
    /// Its dependencies and their keys.
    pub deps: BTreeMap<String, String>,
    /// Its inputs.
    pub inputs: Vec<InputRecord>,
    /// Pieces of code and the hashes of their sources.
    pub sources: BTreeMap<String, String>,
    /// The lock hash of the graph.
    pub lock_hash: String,
    /// When it began: `2026-01-31T12:00:00Z`.
    pub started: String,
    /// When it ended.
    pub finished: String,
    /// How long it took in this run, in seconds.
    pub seconds: f64,
    /// The files it wrote, sorted by path, without `node.json`.
    pub outputs: Vec<FileRecord>,
}

impl NodeRecord {
    /// Reads the record of a finished node's folder, for example [`Graph::node_dir`](crate::Graph::node_dir).
    ///
    /// # Errors
    /// [`GraphError::Io`] if it is not there; [`GraphError::BadRecord`] if it is damaged or of another version.
    pub fn read(folder: &Path) -> Result<Self, GraphError> {
        let path = folder.join(RECORD_FILE);
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        let bad = |reason| GraphError::BadRecord { path: path.clone(), reason };
        let record: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if record.version != FORMAT_VERSION {
            return Err(bad(format!("it has version {}, expected {FORMAT_VERSION}", record.version)));
        }
        let is_below =
            |file: &&FileRecord| Path::new(&file.path).components().all(|c| matches!(c, Component::Normal(_)));
        if let Some(file) = record.outputs.iter().find(|file| !is_below(file)) {
            return Err(bad(format!("its output {:?} is not below the folder", file.path)));
        }
        Ok(record)
    }

    /// Writes it into `folder` and makes it durable.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), GraphError> {
        let path = folder.join(RECORD_FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| io_error("write", &path)(e.into()))?;
        text.push(b'\n');
        let mut file = File::create(&path).map_err(io_error("create", &path))?;
        file.write_all(&text).map_err(io_error("write", &path))?;
        file.sync_all().map_err(io_error("write to disk", &path))
    }

    /// The first thing that is wrong with the outputs, if any: one is missing or has another size or, with `hashes`,
    /// another content.
    pub(crate) fn damage(&self, folder: &Path, hashes: bool) -> Option<String> {
        self.outputs.iter().find_map(|file| {
            let path = folder.join(&file.path);
            match fs::metadata(&path) {
                Err(error) => return Some(format!("{}: {error}", file.path)),
                Ok(meta) if !meta.is_file() => return Some(format!("{} is not a file", file.path)),
                Ok(meta) if meta.len() != file.bytes => {
                    return Some(format!("{} has {} bytes, expected {}", file.path, meta.len(), file.bytes));
                }
                Ok(_) if !hashes => return None,
                Ok(_) => {}
            }
            match hash_file(&path, String::new()) {
                Ok(found) if found.blake3 == file.blake3 => None,
                Ok(_) => Some(format!("{} has another content than when it was written", file.path)),
                Err(error) => Some(crate::error::chain_text(&error)),
            }
        })
    }
}

/// Hashes an input of a node.
pub(crate) fn hash_input(path: &Path) -> Result<InputRecord, GraphError> {
    let meta = fs::metadata(path).map_err(io_error("open", path))?;
    let files = if meta.is_dir() {
        walk(path, Links::Follow)?
            .files
            .into_iter()
            .map(|(name, path)| hash_file(&path, name))
            .collect::<Result<_, _>>()?
    } else if meta.is_file() {
        let name = path.file_name().and_then(|name| name.to_str());
        let bad = || GraphError::BadFile { path: path.into(), reason: "has a name that is not UTF-8" };
        vec![hash_file(path, name.ok_or_else(bad)?.to_owned())?]
    } else {
        return Err(GraphError::BadFile { path: path.into(), reason: "is neither a file nor a folder" });
    };
    Ok(InputRecord { path: path.display().to_string(), folder: meta.is_dir(), files })
}

/// `2026-01-31T12:00:00Z`. The calendar is Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>).
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Against `date -u -d @N +%FT%TZ`.
    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_record_that_points_outside_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = serde_json::json!({
            "version": FORMAT_VERSION, "name": "n", "key": "k", "params": null, "deps": {}, "inputs": [], "sources": {},
            "lock_hash": "", "started": "", "finished": "", "seconds": 0.0,
            "outputs": [{"path": "../secret", "bytes": 1, "blake3": ""}],
        });
        fs::write(folder.path().join(RECORD_FILE), text.to_string()).unwrap();
        assert!(NodeRecord::read(folder.path()).unwrap_err().to_string().contains("not below the folder"));
    }
}
