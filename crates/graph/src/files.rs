//! Walking, hashing and syncing files.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{GraphError, RECORD_FILE, error::io_error};

/// A file below some folder: how [`NodeRecord`](crate::NodeRecord) lists inputs and outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its path below the folder, with `/` between the parts.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The BLAKE3 hash of its content: 64 hexadecimal digits.
    pub blake3: String,
}

/// What to do with symbolic links.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Take what they point to: caches of downloads are built of links.
    Follow,
    /// Refuse: what they point to is not in the store.
    Refuse,
}

/// All that lies below a folder.
#[derive(Default)]
pub(crate) struct Tree {
    /// Relative names with `/`, and full paths; sorted by name.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// The folder itself and those below it, parents before children.
    pub(crate) folders: Vec<PathBuf>,
}

pub(crate) fn walk(root: &Path, links: Links) -> Result<Tree, GraphError> {
    let mut tree = Tree::default();
    let real = fs::canonicalize(root).map_err(io_error("open", root))?;
    walk_into(root, "", links, &mut vec![real], &mut tree)?;
    tree.files.sort();
    Ok(tree)
}

fn walk_into(
    folder: &Path,
    prefix: &str,
    links: Links,
    above: &mut Vec<PathBuf>,
    tree: &mut Tree,
) -> Result<(), GraphError> {
    tree.folders.push(folder.into());
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let path = entry.map_err(io_error("list", folder))?.path();
        let bad = |reason| GraphError::BadFile { path: path.clone(), reason };
        let name =
            path.file_name().and_then(|name| name.to_str()).ok_or_else(|| bad("has a name that is not UTF-8"))?;
        let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let mut meta = fs::symlink_metadata(&path).map_err(io_error("open", &path))?;
        if meta.is_symlink() {
            if links == Links::Refuse {
                return Err(bad("is a link; a node's result must be plain files and folders"));
            }
            meta = fs::metadata(&path).map_err(io_error("follow the link", &path))?;
        }
        if meta.is_dir() {
            let real = fs::canonicalize(&path).map_err(io_error("open", &path))?;
            if above.contains(&real) {
                return Err(bad("is a link to a folder that it lies in"));
            }
            above.push(real);
            walk_into(&path, &name, links, above, tree)?;
            above.pop();
        } else if meta.is_file() {
            tree.files.push((name, path));
        } else {
            return Err(bad("is neither a file nor a folder"));
        }
    }
    Ok(())
}

/// Hashes a file; `name` is what the record calls it.
pub(crate) fn hash_file(path: &Path, name: String) -> Result<FileRecord, GraphError> {
    hash_open(&File::open(path).map_err(io_error("open", path))?, path, name)
}

fn hash_open(file: &File, path: &Path, name: String) -> Result<FileRecord, GraphError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(io_error("read", path))?;
    Ok(FileRecord { path: name, bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
}

/// Hashes every file below `folder` and makes files and folders durable.
pub(crate) fn seal(folder: &Path) -> Result<Vec<FileRecord>, GraphError> {
    let tree = walk(folder, Links::Refuse)?;
    let mut outputs = Vec::with_capacity(tree.files.len());
    for (name, path) in tree.files {
        if name == RECORD_FILE {
            return Err(GraphError::BadFile { path, reason: "has the name of the graph's own record; choose another" });
        }
        let file = open_to_sync(&path).map_err(io_error("open", &path))?;
        outputs.push(hash_open(&file, &path, name)?);
        file.sync_all().map_err(io_error("write to disk", &path))?;
    }
    // Children first: an entry is durable once its folder is.
    tree.folders.iter().rev().try_for_each(|folder| sync_folder(folder))?;
    Ok(outputs)
}

/// Windows flushes only what is open for writing; elsewhere reading is enough, and works for read-only files.
fn open_to_sync(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(cfg!(windows)).open(path)
}

/// Makes the entries of a folder durable, where the platform can.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), GraphError> {
    if cfg!(unix) {
        let open = File::open(folder).map_err(io_error("open", folder))?;
        open.sync_all().map_err(io_error("write to disk", folder))?;
    }
    Ok(())
}

/// Whether a folder is there and holds anything.
pub(crate) fn has_entries(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// Removes a file or a whole folder; one that is not there is fine.
pub(crate) fn remove_all(path: &Path) -> Result<(), GraphError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}
