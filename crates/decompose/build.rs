//! Links OpenBLAS for `ndarray-linalg`, which is used without any of its own back ends: none of them finds a library that
//! is already there and needs no root, and the one that builds OpenBLAS from source takes many minutes and a Fortran compiler.

mod openblas;

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=openblas.rs");
    println!("cargo:rerun-if-env-changed={}", openblas::FOLDER_VARIABLE);
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = out.ancestors().find(|folder| folder.join(openblas::UNPACKED).is_dir());
    let chosen = env::var_os(openblas::FOLDER_VARIABLE);
    if env::var_os("HOST") != env::var_os("TARGET") {
        // A program for another platform cannot be run here, so there is nothing to find out.
        link(chosen.map(PathBuf::from).as_deref());
        return;
    }
    match openblas::find(chosen, target, &out) {
        Ok(library) => {
            if let Some(file) = file_of(library.folder.as_deref()) {
                println!("cargo:rerun-if-changed={}", file.display());
            }
            link(library.folder.as_deref());
        }
        Err(reason) => {
            println!("cargo:warning=OpenBLAS with LAPACK is not there, so linking will fail: run `cargo xtask setup`");
            println!("cargo:warning={reason}");
            // A file that does not exist makes Cargo run this script again: the next build may find what is missing now.
            println!("cargo:rerun-if-changed={}", out.join("openblas-is-missing").display());
            link(None);
        }
    }
}

fn link(folder: Option<&Path>) {
    if let Some(folder) = folder {
        println!("cargo:rustc-link-search=native={}", alias(folder).display());
    }
    for name in openblas::libraries(folder) {
        println!("cargo:rustc-link-lib={name}");
    }
}

/// `folder` under a name inside Cargo's output folder. Cargo puts search paths from there, and no others, into
/// `LD_LIBRARY_PATH` of the tests and programs it runs; without that they would link and then not start.
fn alias(folder: &Path) -> PathBuf {
    #[cfg(unix)]
    if let Some(out) = env::var_os("OUT_DIR") {
        let name = Path::new(&out).join("openblas");
        // The name of an earlier run of this script may lead elsewhere; where there is none, there is nothing to remove.
        let _ = std::fs::remove_file(&name);
        if std::os::unix::fs::symlink(folder, &name).is_ok() {
            return name;
        }
    }
    folder.to_owned()
}

/// The file that the linker takes, watched so that an uninstalled library is noticed.
fn file_of(folder: Option<&Path>) -> Option<PathBuf> {
    let name = if cfg!(target_os = "macos") { "libopenblas.dylib" } else { "libopenblas.so" };
    let file = match folder {
        Some(folder) => folder.join(name),
        None => {
            let answer = std::process::Command::new("cc").arg(format!("-print-file-name={name}")).output().ok()?;
            PathBuf::from(String::from_utf8(answer.stdout).ok()?.trim())
        }
    };
    (file.is_absolute() && file.exists()).then_some(file)
}
