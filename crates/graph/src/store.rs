use std::{
    fs::{self, File, OpenOptions, TryLockError},
    hash::{BuildHasher, RandomState},
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

use crate::{
    GraphError, NodeRecord,
    error::{chain_text, io_error},
    files::{has_entries, remove_all, sync_folder},
};

/// The folder in which finished nodes are kept. While it is open for writing it is locked against other processes.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    access: Access,
    /// Unlocked when it is closed, by the operating system if the process is killed.
    _lock: Option<File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Exclusive,
    Shared,
    ReadOnly,
}

/// What the store has under a node's folder name.
pub(crate) enum Found {
    Hit,
    Absent,
    Damaged(String),
}

impl Store {
    /// Opens a store for one run, making it if need be, and removes what dead runs left half written.
    ///
    /// # Errors
    /// [`GraphError::Locked`] if another process has it open; [`GraphError::Io`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, GraphError> {
        let root = root.into();
        let path = lock_path(&root)?;
        let mut lock = open_lock(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(root, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(io_error("lock", path)(error)),
        }
        lock.set_len(0).map_err(io_error("write", &path))?;
        write!(lock, "{}", std::process::id()).map_err(io_error("write", &path))?;
        let store = Self { root, access: Access::Exclusive, _lock: Some(lock) };
        remove_all(&store.root.join("tmp"))?;
        remove_all(&store.root.join("locks"))?;
        store.make_folders()
    }

    /// Opens a store that several processes write to at once, each running some of its nodes, as under a workflow engine.
    ///
    /// Each node is locked while it runs; who comes second waits and finds it finished. Leftovers of dead runs stay until
    /// the next [`Store::open`]. On a file system that knows no locks, the caller must keep nodes apart.
    ///
    /// # Errors
    /// [`GraphError::Locked`] if a process has it open by [`Store::open`]; [`GraphError::Io`].
    pub fn open_shared(root: impl Into<PathBuf>) -> Result<Self, GraphError> {
        let root = root.into();
        let path = lock_path(&root)?;
        let mut lock = open_lock(&path)?;
        match lock.try_lock_shared() {
            // Whoever is refused now must not be told the process of an earlier run.
            Ok(()) => lock.set_len(0).map_err(io_error("write", &path))?,
            Err(TryLockError::WouldBlock) => return Err(locked(root, &mut lock)),
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(io_error("lock", path)(error)),
        }
        Self { root, access: Access::Shared, _lock: Some(lock) }.make_folders()
    }

    /// Opens a store to look at it: for [`Graph::plan`](crate::Graph::plan), even while a run goes on. It locks nothing and
    /// makes nothing; a store that does not exist is empty.
    #[must_use]
    pub fn open_read_only(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), access: Access::ReadOnly, _lock: None }
    }

    /// Its folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn make_folders(self) -> Result<Self, GraphError> {
        for name in ["nodes", "tmp", "partial"] {
            let folder = self.root.join(name);
            fs::create_dir_all(&folder).map_err(io_error("create", folder))?;
        }
        Ok(self)
    }

    pub(crate) fn require_write(&self) -> Result<(), GraphError> {
        match self.access {
            Access::ReadOnly => Err(GraphError::ReadOnly { root: self.root.clone() }),
            Access::Exclusive | Access::Shared => Ok(()),
        }
    }

    pub(crate) fn require_exclusive(&self) -> Result<(), GraphError> {
        match self.access {
            Access::Exclusive => Ok(()),
            Access::Shared => Err(GraphError::Locked { root: self.root.clone(), pid: None }),
            Access::ReadOnly => self.require_write(),
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.access == Access::Shared
    }

    pub(crate) fn nodes(&self) -> PathBuf {
        self.root.join("nodes")
    }

    pub(crate) fn node(&self, folder_name: &str) -> PathBuf {
        self.nodes().join(folder_name)
    }

    pub(crate) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(crate) fn partial(&self, key: &str) -> PathBuf {
        self.partials().join(key)
    }

    /// Looks for a node; with `verify`, hashes its files.
    pub(crate) fn find(&self, folder_name: &str, name: &str, key: &str, verify: bool) -> Found {
        let folder = self.node(folder_name);
        if !folder.exists() {
            return Found::Absent;
        }
        match NodeRecord::read(&folder) {
            Err(error) => Found::Damaged(chain_text(&error)),
            Ok(record) if record.name != name || record.key != key => {
                Found::Damaged(format!("its record is of node `{}` with the key {}", record.name, record.key))
            }
            Ok(record) => record.damage(&folder, verify).map_or(Found::Hit, Found::Damaged),
        }
    }

    /// Whether there is any folder of the node, whatever its key.
    pub(crate) fn has_any(&self, name: &str) -> bool {
        fs::read_dir(self.nodes()).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .and_then(|found| found.rsplit_once('-'))
                    .is_some_and(|(found, _)| found == name)
            })
        })
    }

    pub(crate) fn has_partial(&self, key: &str) -> bool {
        has_entries(&self.partial(key))
    }

    /// Makes an empty folder for a node to write into.
    pub(crate) fn make_tmp(&self, folder_name: &str) -> Result<TmpFolder, GraphError> {
        // The standard library seeds each `RandomState` anew: enough to keep processes and machines apart.
        let random = RandomState::new().hash_one(std::process::id());
        let path = self.root.join("tmp").join(format!("{folder_name}-{random:016x}"));
        fs::create_dir(&path).map_err(io_error("create", &path))?;
        Ok(TmpFolder(path))
    }

    /// Makes a node's folder for checkpoints, if it is not there.
    pub(crate) fn make_partial(&self, key: &str) -> Result<PathBuf, GraphError> {
        let path = self.partial(key);
        fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        Ok(path)
    }

    /// Puts a sealed folder into `nodes/`, in place of a damaged one if there is one.
    pub(crate) fn commit(&self, tmp: &TmpFolder, folder_name: &str, record: &NodeRecord) -> Result<(), GraphError> {
        record.write(&tmp.0)?;
        sync_folder(&tmp.0)?;
        let target = self.node(folder_name);
        // A folder cannot replace a full one in one step, so the damaged one goes first.
        let _old = if target.exists() {
            let old = self.make_tmp(folder_name)?;
            fs::rename(&target, old.0.join("damaged")).map_err(io_error("move away", &target))?;
            Some(old)
        } else {
            None
        };
        fs::rename(&tmp.0, &target).map_err(io_error("move the finished node to", &target))?;
        sync_folder(&self.nodes())
    }

    /// In a shared store, the lock of a node, or `None` while another process has it.
    pub(crate) fn lock_node(&self, folder_name: &str) -> Result<Option<File>, GraphError> {
        let folder = self.root.join("locks");
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let path = folder.join(folder_name);
        let lock = open_lock(&path)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(Some(lock)),
            Err(TryLockError::Error(error)) => Err(io_error("lock", path)(error)),
        }
    }
}

/// A folder under `tmp/`, removed on drop unless it was renamed. What cannot be removed now is at the next open.
pub(crate) struct TmpFolder(pub(crate) PathBuf);

impl Drop for TmpFolder {
    fn drop(&mut self) {
        let _ = remove_all(&self.0);
    }
}

fn lock_path(root: &Path) -> Result<PathBuf, GraphError> {
    fs::create_dir_all(root).map_err(io_error("create", root))?;
    Ok(root.join("lock"))
}

fn open_lock(path: &Path) -> Result<File, GraphError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).open(path).map_err(io_error("open", path))
}

/// The holder writes its process id after it has locked, so there may be none yet; Windows does not let others read it.
fn locked(root: PathBuf, lock: &mut File) -> GraphError {
    let mut text = String::new();
    let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
    GraphError::Locked { root, pid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, GraphError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
        assert!(matches!(Store::open_shared(folder.path()), Err(GraphError::Locked { .. })));
        let _reader = Store::open_read_only(folder.path());
        drop(store);
        let (_one, _two) = (Store::open_shared(folder.path()).unwrap(), Store::open_shared(folder.path()).unwrap());
        assert!(matches!(Store::open(folder.path()), Err(GraphError::Locked { pid: None, .. })));
    }

    #[test]
    fn opening_removes_what_a_dead_run_was_writing_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["tmp/a-0123/file", "nodes/a-0123/file", "partial/0123/file"] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let _store = Store::open(folder.path()).unwrap();
        assert!(!has_entries(&folder.path().join("tmp")));
        assert!(folder.path().join("nodes/a-0123/file").exists() && folder.path().join("partial/0123/file").exists());
    }

    #[test]
    fn looking_at_a_store_makes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("none");
        let store = Store::open_read_only(&root);
        assert!(matches!(store.find("a-0", "a", "0", false), Found::Absent) && !store.has_any("a"));
        assert!(matches!(store.require_write(), Err(GraphError::ReadOnly { .. })) && !root.exists());
    }
}
