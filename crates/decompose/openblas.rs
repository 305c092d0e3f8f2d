//! Finds OpenBLAS. Shared by this crate's build script, which links what is found here, and by `cargo xtask setup`, which
//! installs a library where nothing is found: the two cannot disagree about what "found" means.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Names the folder of a library that should be used before any other.
pub(crate) const FOLDER_VARIABLE: &str = "OPENBLAS_LIB_DIR";

/// Where `cargo xtask setup` unpacks a library without root, inside Cargo's target folder.
pub(crate) const UNPACKED: &str = "openblas/lib";

/// Homebrew keeps OpenBLAS out of the default search path ("keg-only").
const KEGS: [&str; 2] = ["/opt/homebrew/opt/openblas/lib", "/usr/local/opt/openblas/lib"];

/// One BLAS and one LAPACK routine with small known answers: a library without LAPACK must not pass.
const PROGRAM: &str = r#"
int puts(const char *);
char *openblas_get_config(void);
void cblas_dgemm(int, int, int, int, int, int, double, const double *, int, const double *, int, double, double *, int);
void dgetrf_(const int *, const int *, double *, const int *, int *, int *);

int main(void) {
    double a[4] = {4, 2, 1, 3}, b[4] = {1, 0, 0, 1}, c[4] = {0, 0, 0, 0};
    int n = 2, pivots[2] = {0, 0}, info = -1;
    cblas_dgemm(101, 111, 111, 2, 2, 2, 1.0, a, 2, b, 2, 0.0, c, 2);
    dgetrf_(&n, &n, c, &n, pivots, &info);
    puts(openblas_get_config());
    return !(info == 0 && c[0] == 4 && c[1] == 0.5 && c[3] == 2.5);
}
"#;

/// A library that links and computes.
#[derive(Debug)]
pub(crate) struct Library {
    /// The folder to search; `None` where the linker finds the library by itself.
    pub(crate) folder: Option<PathBuf>,
    /// What the library says of itself, such as `OpenBLAS 0.3.21 DYNAMIC_ARCH Haswell`.
    #[allow(dead_code, reason = "only one of the two users of this file prints it")]
    pub(crate) version: String,
}

/// The first candidate that links and runs, or why each of them did not.
///
/// `chosen` is the value of [`FOLDER_VARIABLE`]; where it is set, nothing else is tried. `target` is Cargo's target folder
/// and `scratch` a folder for the program that is compiled and run.
pub(crate) fn find(chosen: Option<OsString>, target: Option<&Path>, scratch: &Path) -> Result<Library, String> {
    let mut reasons = Vec::new();
    for folder in candidates(chosen, target) {
        match probe(folder.as_deref(), scratch) {
            Ok(version) => return Ok(Library { folder, version }),
            Err(reason) => {
                let place = folder.map_or("the linker's own folders".to_owned(), |f| f.display().to_string());
                reasons.push(format!("{place}: {reason}"));
            }
        }
    }
    Err(reasons.join("; "))
}

/// Folders to try, in order; `None` stands for the linker's own.
fn candidates(chosen: Option<OsString>, target: Option<&Path>) -> Vec<Option<PathBuf>> {
    if let Some(folder) = chosen.filter(|value| !value.is_empty()) {
        return vec![Some(folder.into())];
    }
    let unpacked = target.map(|t| t.join(UNPACKED));
    let kegs = KEGS.iter().map(PathBuf::from);
    unpacked
        .into_iter()
        .filter(|f| f.is_dir())
        .map(Some)
        .chain([None])
        .chain(kegs.filter(|f| f.is_dir()).map(Some))
        .collect()
}

/// Compiles, links and runs [`PROGRAM`] against one folder.
fn probe(folder: Option<&Path>, scratch: &Path) -> Result<String, String> {
    if let Some(folder) = folder {
        // With a library elsewhere the linker would be content, and what was asked for not what is used.
        let names = ["libopenblas.so", "libopenblas.dylib", "libopenblas.a"];
        if !names.iter().any(|name| folder.join(name).exists()) {
            return Err(format!("none of {} is in it", names.join(", ")));
        }
    }
    let source = scratch.join("openblas-probe.c");
    let program = scratch.join("openblas-probe");
    std::fs::create_dir_all(scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    std::fs::write(&source, PROGRAM).map_err(|e| format!("{}: {e}", source.display()))?;
    let mut compile = Command::new("cc");
    compile.arg("-o").arg(&program).arg(&source);
    if let Some(folder) = folder {
        compile.arg("-L").arg(folder);
    }
    compile.args(libraries(folder).iter().map(|name| format!("-l{name}")));
    output(&mut compile, "cc")?;
    let mut run = Command::new(&program);
    if let Some(folder) = folder {
        run.envs(library_path(folder));
    }
    let text = output(&mut run, "a program linked to it")?;
    Ok(String::from_utf8_lossy(&text.stdout).trim().to_owned())
}

/// What to link. An unpacked OpenBLAS may have brought its Fortran run-time along; only if that is named too do all linkers
/// look for it in the same folder.
pub(crate) fn libraries(folder: Option<&Path>) -> Vec<&'static str> {
    let unpacked = folder.filter(|f| f.ends_with(UNPACKED));
    let brought = |name: &&str| unpacked.is_some_and(|f| f.join(format!("lib{name}.so")).exists());
    std::iter::once("openblas").chain(["gfortran", "quadmath"].into_iter().filter(brought)).collect()
}

/// The variable with which the loader of this platform finds `folder`, in front of what it holds already.
pub(crate) fn library_path(folder: &Path) -> Option<(&'static str, OsString)> {
    let name = if cfg!(target_os = "macos") { "DYLD_FALLBACK_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
    let before = std::env::var_os(name).unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&before));
    std::env::join_paths(folders).ok().map(|value| (name, value))
}

/// Output of a command that succeeded, or one line that says what went wrong.
fn output(command: &mut Command, what: &str) -> Result<Output, String> {
    let output = command.env("LC_ALL", "C").output().map_err(|e| format!("{what} does not start: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let telling = text.lines().find(|line| line.contains("openblas") && !line.ends_with(':')).or(text.lines().next());
    Err(format!("{what} fails ({}): {}", output.status, telling.unwrap_or("no message").trim()))
}
