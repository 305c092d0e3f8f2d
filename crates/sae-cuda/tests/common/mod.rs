//! A device for tests: a real one where `MONOSEM_TEST_GPU` is set, else the emulator, built from the kernels' source.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use monosem_sae_cuda::Gpu;

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

/// Compiles the emulator.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("libcuda-emulator-{}.so", std::process::id()));
    std::fs::write(folder.join("registered.h"), registered(&root.join("kernels"))).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command
        .args(["-std=c++17", "-O2", "-g", "-fPIC", "-shared", "-Wl,-Bsymbolic", "-Wno-unknown-pragmas", "-I"])
        .arg(folder)
        .arg("-o")
        .arg(&library);
    command.args(["emulator.cpp", "driver.cpp", "kernels.cpp"].map(|file| root.join("emulator").join(file)));
    let status = command.status().unwrap_or_else(|error| panic!("{compiler}: {error}; a C++ compiler is needed"));
    assert!(status.success(), "{compiler} does not compile the emulator");
    library
}

/// A line for each kernel.
fn registered(kernels: &Path) -> String {
    let mut lines = String::new();
    for entry in std::fs::read_dir(kernels).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            let text = std::fs::read_to_string(path).unwrap();
            let heads = text.lines().filter_map(|line| line.strip_prefix("KERNEL")?.split_once('(').map(|_| line));
            for head in heads {
                // `KERNEL name(...` or `KERNEL_BOUNDED(...) name(...`.
                let name = head.split(' ').find(|word| word.contains('(') && !word.starts_with("KERNEL")).unwrap();
                lines.push_str(&format!("REGISTER({})\n", name.split('(').next().unwrap()));
            }
        }
    }
    lines
}
