//! `cargo xtask ptx`: the PTX beside the CUDA kernels, made with a pinned compiler from PyPI, for which no CUDA installation and no GPU are needed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use crate::{places, setup};

/// NVRTC makes PTX from the kernels' source; the other package has `ptxas`, which makes machine code from PTX as the driver does.
const PACKAGES: [&str; 2] = ["nvidia-cuda-nvrtc-cu12==12.4.127", "nvidia-cuda-nvcc-cu12==12.4.131"];

/// What `ptxas` is asked for: Ampere and Hopper.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];

/// The compiler, unpacked.
struct Tools {
    nvrtc: PathBuf,
    ptxas: PathBuf,
}

/// Writes the PTX of every kernel anew, and lets `ptxas` read it.
pub(crate) fn ptx(sh: &Shell) -> anyhow::Result<()> {
    let tools = Tools::install(sh)?;
    compile(sh, &tools, &kernels())?;
    for file in ptx_files(sh, &kernels())? {
        eprintln!("ptx: {}", file.display());
    }
    assemble(sh, &tools, &kernels())
}

/// Whether the PTX in the repository is what the compiler makes of the sources, and `ptxas` takes it. Where the compiler cannot be installed it says so; that
/// the PTX is of these sources is also a test of the crate.
pub(crate) fn check(sh: &Shell) -> anyhow::Result<()> {
    let tools = match Tools::install(sh) {
        Ok(tools) => tools,
        Err(error) => {
            eprintln!("ci: kernels: not compiled: {error:#}");
            return Ok(());
        }
    };
    let made = places::target().join("ptx");
    sh.remove_path(&made)?;
    sh.create_dir(&made)?;
    compile(sh, &tools, &made)?;
    let names = |folder: &Path| -> anyhow::Result<Vec<String>> {
        let files = ptx_files(sh, folder)?;
        Ok(files.iter().map(|file| file.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect())
    };
    let (ours, theirs) = (names(&kernels())?, names(&made)?);
    if let Some(name) = ours.iter().find(|name| !theirs.contains(name)) {
        bail!("{name} has no source; remove it");
    }
    for name in theirs {
        if sh.read_file(kernels().join(&name)).ok() != Some(sh.read_file(made.join(&name))?) {
            bail!("{name} is not what the compiler makes of its source; run `cargo xtask ptx`");
        }
    }
    assemble(sh, &tools, &made)
}

fn kernels() -> PathBuf {
    places::workspace().join("crates/sae-cuda/kernels")
}

fn ptx_files(sh: &Shell, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = sh.read_dir(folder)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "ptx"));
    files.sort();
    Ok(files)
}

fn compile(sh: &Shell, tools: &Tools, to: &Path) -> anyhow::Result<()> {
    let (nvrtc, sources) = (&tools.nvrtc, kernels());
    let script = sources.join("compile.py");
    Ok(cmd!(sh, "python3 {script} {nvrtc} {sources} {to}").quiet().run()?)
}

fn assemble(sh: &Shell, tools: &Tools, folder: &Path) -> anyhow::Result<()> {
    let ptxas = &tools.ptxas;
    for file in ptx_files(sh, folder)? {
        for architecture in ARCHITECTURES {
            cmd!(sh, "{ptxas} -arch={architecture} {file} -o /dev/null")
                .quiet()
                .run()
                .with_context(|| format!("{} for {architecture}", file.display()))?;
        }
    }
    eprintln!("ptx: ptxas takes all kernels for {}", ARCHITECTURES.join(" and "));
    Ok(())
}

impl Tools {
    /// Unpacks the packages into the target folder, unless they are there.
    fn install(sh: &Shell) -> anyhow::Result<Self> {
        let folder = places::target().join("cuda-12.4");
        let tools = Self {
            nvrtc: folder.join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),
            ptxas: folder.join("nvidia/cuda_nvcc/bin/ptxas"),
        };
        if tools.nvrtc.is_file() && tools.ptxas.is_file() {
            return Ok(tools);
        }
        eprintln!("setup: {}: not there; unpacking with pip into {}", PACKAGES.join(" and "), folder.display());
        setup::quietly(cmd!(sh, "python3 -m pip install --quiet --no-deps --target {folder} {PACKAGES...}"))
            .context("pip could not install the compiler of the kernels, which is there for Linux on x86-64")?;
        if !tools.nvrtc.is_file() || !tools.ptxas.is_file() {
            bail!("{} does not hold the compiler of the kernels", folder.display());
        }
        Ok(tools)
    }
}
