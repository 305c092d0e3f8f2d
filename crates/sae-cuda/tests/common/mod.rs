//! A device for tests: a real one where `MONOSEM_TEST_GPU` is set, else the emulator, built from the kernels' source.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use monosem_sae_cuda::Gpu;
use sha2::{Digest as _, Sha256};

/// One test at a time: the emulator is one device that has one core.
static TURN: Mutex<()> = Mutex::new(());

/// A device, and the turn on it.
pub(crate) struct Lent {
    pub(crate) gpu: Gpu,
    _turn: MutexGuard<'static, ()>,
}

/// Whether the tests run on hardware.
pub(crate) fn is_real() -> bool {
    std::env::var_os("MONOSEM_TEST_GPU").is_some()
}

/// The device; `settings` are the emulator's variables.
pub(crate) fn gpu(settings: &[(&str, &str)]) -> Lent {
    let turn = begin(settings);
    Lent { gpu: Gpu::open(0).unwrap(), _turn: turn }
}

/// The turn, without the device.
pub(crate) fn begin(settings: &[(&str, &str)]) -> MutexGuard<'static, ()> {
    const VARIABLES: [&str; 5] = ["ORDER", "BYTES", "DEVICES", "DRIVER", "CAPABILITY"];
    // A test that failed leaves nothing that matters to the next one.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_real() {
        static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
        let library = LIBRARY.get_or_init(build);
        // SAFETY: whoever reads variables in this program holds the turn.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var("MONOSEM_LIBCUDA", library);
            std::env::set_var("MONOSEM_LIBCUBLAS", library);
            for name in VARIABLES {
                std::env::remove_var(format!("MONOSEM_EMULATOR_{name}"));
            }
            for (name, value) in settings {
                assert!(VARIABLES.contains(name), "{name}");
                std::env::set_var(format!("MONOSEM_EMULATOR_{name}"), value);
            }
        }
    }
    turn
}

/// Compiles the emulator, unless that was done for these sources.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (kernels, emulator) = (root.join("kernels"), root.join("emulator"));
    let mut hash = Sha256::new();
    for file in files(&kernels, &["cu", "cuh"]).into_iter().chain(files(&emulator, &["cpp", "h"])) {
        hash.update(std::fs::read(file).unwrap());
    }
    let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let library = folder.join(format!("libcuda-emulator-{hash}.so"));
    if library.exists() {
        return library;
    }
    // Several programs may do so at once: each in a folder of its own.
    let own = tempfile::tempdir_in(folder).unwrap();
    std::fs::write(own.path().join("registered.h"), registered(&kernels)).unwrap();
    let made = own.path().join("libcuda.so");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O2", "-g", "-fPIC", "-shared", "-Wl,-Bsymbolic", "-Wno-unknown-pragmas", "-I"]);
    command.arg(own.path()).arg("-o").arg(&made).args(files(&emulator, &["cpp"]));
    let status = command.status().unwrap_or_else(|error| panic!("{compiler}: {error}; a C++ compiler is needed"));
    assert!(status.success(), "{compiler} does not compile the emulator");
    std::fs::rename(made, &library).unwrap();
    library
}

/// Those of a folder with one of these extensions, by name.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)));
    files.sort();
    files
}

/// A line for each kernel.
fn registered(kernels: &Path) -> String {
    let mut lines = String::new();
    for file in files(kernels, &["cu"]) {
        let text = std::fs::read_to_string(file).unwrap();
        for head in text.lines().filter(|line| line.starts_with("KERNEL")) {
            // `KERNEL name(...` or `KERNEL_BOUNDED(...) name(...`.
            let name = head.split(' ').find(|word| word.contains('(') && !word.starts_with("KERNEL")).unwrap();
            lines.push_str(&format!("REGISTER({})\n", name.split('(').next().unwrap()));
        }
    }
    lines
}
