//! What the cache folder promises: whole files only, checked once in full and cheaply ever after.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::AssetError;
use crate::progress::Reporter;

/// The name of the file that remembers what was verified in a folder. It begins with a dot, so readers of texts skip it.
const MARKER: &str = ".verified";

/// A file as it was when its digest was taken. A file of the same length and time is taken to be the same file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) sha256: String,
    bytes: u64,
    mtime_ns: i128,
}

/// The contents of a folder's `.verified`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// The hub's commit that the files were taken from, where it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<String>,
    /// True once every file of the asset is there.
    pub(crate) complete: bool,
    pub(crate) files: BTreeMap<String, Stamp>,
}

impl Marker {
    /// A missing or unreadable marker is an empty one: everything is then verified again.
    pub(crate) fn load(folder: &Path) -> Self {
        fs::read(folder.join(MARKER)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub(crate) fn save(&self, folder: &Path) -> Result<(), AssetError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| AssetError::Io {
            action: "write",
            path: folder.join(MARKER),
            source: e.into(),
        })?;
        text.push(b'\n');
        write_atomically(&folder.join(MARKER), &text)
    }

    /// Takes the sha256 of a file and remembers it. `None` if the file is not there.
    pub(crate) fn stamp(
        &mut self,
        folder: &Path,
        file: &str,
        reporter: &mut Reporter<'_, '_>,
    ) -> Result<Option<String>, AssetError> {
        let path = folder.join(file);
        let Some((bytes, mtime_ns)) = size_and_time(&path) else {
            self.files.remove(file);
            return Ok(None);
        };
        let sha256 = sha256_file(&path, reporter)?;
        self.files.insert(file.to_owned(), Stamp { sha256: sha256.clone(), bytes, mtime_ns });
        Ok(Some(sha256))
    }

    /// Whether a file is still the one that was verified. If its time changed, its digest decides, and the new time is
    /// remembered (`changed` says that the marker should be saved).
    pub(crate) fn is_good(
        &mut self,
        folder: &Path,
        file: &str,
        changed: &mut bool,
        reporter: &mut Reporter<'_, '_>,
    ) -> Result<bool, AssetError> {
        let Some(known) = self.files.get(file).cloned() else { return Ok(false) };
        match size_and_time(&folder.join(file)) {
            Some((bytes, time)) if bytes == known.bytes && time == known.mtime_ns => Ok(true),
            Some((bytes, _)) if bytes == known.bytes => {
                *changed = true;
                let same = self.stamp(folder, file, reporter)?.is_some_and(|now| now == known.sha256);
                if !same {
                    self.files.remove(file);
                }
                Ok(same)
            }
            _ => {
                *changed = true;
                self.files.remove(file);
                Ok(false)
            }
        }
    }

    /// One digest for all files: the file's own if there is one, else that of the lines `<sha256>  <name>` sorted by
    /// name, so that `sha256sum * | sha256sum` gives the same.
    pub(crate) fn digest(&self) -> String {
        let mut files = self.files.iter();
        match (files.next(), files.next()) {
            (Some((_, only)), None) => only.sha256.clone(),
            _ => {
                let listing: String = self.files.iter().map(|(name, s)| format!("{}  {name}\n", s.sha256)).collect();
                hex(&Sha256::digest(listing.as_bytes()))
            }
        }
    }
}

fn size_and_time(path: &Path) -> Option<(u64, i128)> {
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let time = match meta.modified().ok()?.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    };
    Some((meta.len(), time))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The sha256 of a file, in hexadecimal.
pub(crate) fn sha256_file(path: &Path, reporter: &mut Reporter<'_, '_>) -> Result<String, AssetError> {
    let mut file = File::open(path).map_err(AssetError::io("read", path))?;
    let total = file.metadata().ok().map(|m| m.len());
    let note = format!("verifying {}", path.file_name().unwrap_or_default().display());
    let (mut hasher, mut buffer, mut done) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer).map_err(AssetError::io("read", path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                done += n as u64;
                reporter.tick(done, total, &note)?;
            }
        }
    }
}

pub(crate) fn create_folder(path: &Path) -> Result<(), AssetError> {
    fs::create_dir_all(path).map_err(AssetError::io("create the folder", path))
}

/// Writes beside the target, then renames: a reader sees the old bytes or the new ones, nothing between.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), AssetError> {
    let temporary =
        path.with_file_name(format!("{}.{}.tmp", path.file_name().unwrap_or_default().display(), unique_suffix()));
    let mut file = File::create(&temporary).map_err(AssetError::io("create", &temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(AssetError::io("write", &temporary))?;
    rename(&temporary, path)
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), AssetError> {
    fs::rename(from, to).map_err(AssetError::io("rename to", to))
}

/// Different for every call and every process.
pub(crate) fn unique_suffix() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    format!("{}-{nanos:x}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Keeps other processes (and threads) from fetching the same asset; released when dropped.
pub(crate) struct Lock {
    _file: File,
    /// False where the file system knows no locks; then unique temporary names and renames have to do.
    pub(crate) held: bool,
}

impl Lock {
    /// Waits for `<cache>/locks/<name>.lock`.
    pub(crate) fn acquire(cache: &Path, name: &str, reporter: &mut Reporter<'_, '_>) -> Result<Self, AssetError> {
        let folder = cache.join("locks");
        create_folder(&folder)?;
        let path = folder.join(format!("{name}.lock"));
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(AssetError::io("create", &path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file, held: true }),
                Err(TryLockError::WouldBlock) => {
                    reporter.pause(Duration::from_millis(200), "waiting for another process that fetches it")?;
                }
                Err(TryLockError::Error(_)) => return Ok(Self { _file: file, held: false }),
            }
        }
    }
}

/// A folder under `<cache>/tmp` that vanishes when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes a new folder; with the asset's lock held, what a killed process left behind is removed first.
    pub(crate) fn new(cache: &Path, asset: &str, lock: &Lock) -> Result<Self, AssetError> {
        let parent = cache.join("tmp");
        create_folder(&parent)?;
        let prefix = format!("{asset}.");
        if lock.held {
            let entries = fs::read_dir(&parent).map_err(AssetError::io("read the folder", &parent))?;
            for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = parent.join(format!("{prefix}{}", unique_suffix()));
        create_folder(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes of all files under a folder.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
