//! Folders.

use std::path::{Path, PathBuf};

/// The root of the workspace, as of the build: xtask is always built from the checkout it works on.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Cargo's target folder: the one this program was built in, which `CARGO_TARGET_DIR` or a configuration may have moved.
pub(crate) fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let tagged = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    tagged.map_or_else(|| workspace().join("target"), Path::to_owned)
}

/// A binary of the dev profile. It lies beside this one, also where a target triple has its own folder.
pub(crate) fn dev_binary(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let profiles = program.parent().and_then(Path::parent).map_or_else(target, Path::to_owned);
    profiles.join("debug").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// The file that the shell would start for `name`, without starting it.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}
