//! Writing files that are whole or absent, and mapping them.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::ActivationError;

/// A file that is written under another name and takes its own when it is whole and on the disk. Dropped before that, it vanishes.
pub(crate) struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    persisted: bool,
}

impl NewFile {
    pub(crate) fn create(path: &Path) -> Result<Self, ActivationError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(|e| ActivationError::io("create", &temporary, e))?;
        Ok(Self { file, temporary, path: path.to_owned(), persisted: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ActivationError> {
        self.file.write_all(bytes).map_err(|e| ActivationError::io("write", &self.path, e))
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn persist(mut self) -> Result<(), ActivationError> {
        self.file.sync_all().map_err(|e| ActivationError::io("write", &self.path, e))?;
        std::fs::rename(&self.temporary, &self.path).map_err(|e| ActivationError::io("rename", &self.temporary, e))?;
        self.persisted = true;
        sync_folder(&self.path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.persisted {
            // On the way out of an error there is nobody left to tell; the next run overwrites the file.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Replaces a small file in one go.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ActivationError> {
    let mut file = NewFile::create(path)?;
    file.write(bytes)?;
    file.persist()
}

/// Makes a rename in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), ActivationError> {
    if cfg!(unix)
        && let Some(folder) = path.parent()
    {
        let synced = File::open(folder).and_then(|f| f.sync_all());
        synced.map_err(|e| ActivationError::io("write", folder, e))?;
    }
    Ok(())
}

/// BLAKE3 of a file, hexadecimal.
pub(crate) fn hash(path: &Path) -> Result<String, ActivationError> {
    let file = File::open(path).map_err(|e| ActivationError::io("open", path, e))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(|e| ActivationError::io("read", path, e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Maps a whole file read-only.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path) -> Result<Mmap, ActivationError> {
    let file = File::open(path).map_err(|e| ActivationError::io("open", path, e))?;
    // SAFETY: shards are written under another name, renamed when whole and never written again, so the bytes under the map do not
    // change unless somebody edits or truncates a store while it is read, which the crate's documentation forbids.
    unsafe { Mmap::map(&file) }.map_err(|e| ActivationError::io("map", path, e))
}

/// Fills `out` from the bytes of a file that begin at `offset`, without moving a cursor that threads would share.
pub(crate) fn read_at(file: &File, path: &Path, offset: u64, out: &mut [u8]) -> Result<(), ActivationError> {
    #[cfg(unix)]
    let read = std::os::unix::fs::FileExt::read_exact_at(file, out, offset);
    #[cfg(windows)]
    let read = {
        let mut done = 0;
        loop {
            if done == out.len() {
                break Ok(());
            }
            match std::os::windows::fs::FileExt::seek_read(file, &mut out[done..], offset + done as u64) {
                Ok(0) => break Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) => break Err(e),
            }
        }
    };
    read.map_err(|e| ActivationError::io("read", path, e))
}

/// Keeps a second process out of the folder; the system lets go of it however this one ends.
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    pub(crate) fn take(folder: &Path) -> Result<Self, ActivationError> {
        std::fs::create_dir_all(folder).map_err(|e| ActivationError::io("create", folder, e))?;
        let path = folder.join(".lock");
        let file = File::create(&path).map_err(|e| ActivationError::io("create", &path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path }),
            Err(TryLockError::WouldBlock) => Err(ActivationError::Locked { path: folder.to_owned() }),
            Err(TryLockError::Error(e)) => Err(ActivationError::io("lock", &path, e)),
        }
    }

    /// Leaves nothing behind in a finished store. Whoever opened the file meanwhile finds the store finished too.
    pub(crate) fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
        drop(self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_the_same_through_a_map_and_by_position() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        write_whole(&path, &bytes).unwrap();
        assert!(map(&path).unwrap()[..] == bytes);
        let (file, mut part) = (File::open(&path).unwrap(), [0; 1000]);
        read_at(&file, &path, 70_001, &mut part).unwrap();
        assert!(part == bytes[70_001..71_001]);
        let beyond = read_at(&file, &path, 99_001, &mut part).unwrap_err();
        assert!(beyond.to_string().starts_with("cannot read"), "{beyond}");
    }

    #[test]
    fn an_abandoned_file_vanishes_and_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        write_whole(&path, b"old").unwrap();
        let mut file = NewFile::create(&path).unwrap();
        file.write(b"new").unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let path = Path::new("shard");
        let full = ActivationError::io("write", path, std::io::ErrorKind::StorageFull.into());
        assert!(matches!(full, ActivationError::DiskFull { .. }) && full.to_string().contains("make room"));
        let other = ActivationError::io("write", path, std::io::ErrorKind::PermissionDenied.into());
        assert!(matches!(other, ActivationError::Io { .. }));
    }
}
