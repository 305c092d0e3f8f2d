//! OpenBLAS from Debian's or Ubuntu's packages, without root.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use crate::setup::quietly;

/// Libraries that OpenBLAS needs at run time and that a machine with a C compiler alone may lack, with their packages.
const RUN_TIME: [(&str, &str); 2] = [("libgfortran.so.5", "libgfortran5"), ("libquadmath.so.0", "libquadmath0")];

/// Puts `libopenblas.so`, and what it needs and the machine lacks, into `folder`.
///
/// The work happens beside `folder`, which appears only when it is complete: an interrupted download leaves nothing that a
/// later build would take for a library.
pub(crate) fn unpack(sh: &Shell, folder: &Path) -> anyhow::Result<()> {
    let beside = folder.parent().with_context(|| format!("{} has no parent folder", folder.display()))?;
    let work = beside.join("work");
    sh.remove_path(&work)?;
    sh.create_dir(&work)?;
    let lib = work.join("lib");
    sh.create_dir(&lib)?;
    let apt = Apt::new(sh, &work)?;
    apt.fetch("libopenblas0-pthread")?;
    let openblas = take(&work, &lib, "libopenblas.so.0")?;
    sh.hard_link(&openblas, lib.join("libopenblas.so"))?;
    for (library, package) in RUN_TIME {
        if missing(sh, &openblas, &lib)?.iter().any(|name| name == library) {
            apt.fetch(package)?;
            let file = take(&work, &lib, library)?;
            let plain = library.split(".so").next().unwrap_or(library);
            sh.hard_link(&file, lib.join(format!("{plain}.so")))?;
        }
    }
    let missing = missing(sh, &openblas, &lib)?;
    if !missing.is_empty() {
        bail!("the unpacked OpenBLAS needs {}, which no package known here brings", missing.join(", "));
    }
    sh.remove_path(folder)?;
    std::fs::rename(&lib, folder)
        .with_context(|| format!("cannot rename {} to {}", lib.display(), folder.display()))?;
    sh.remove_path(&work)?;
    Ok(())
}

/// `apt-get download` as any user.
struct Apt<'a> {
    sh: &'a Shell,
    work: &'a Path,
    own_lists: std::cell::Cell<bool>,
}

impl<'a> Apt<'a> {
    fn new(sh: &'a Shell, work: &'a Path) -> anyhow::Result<Self> {
        sh.create_dir(work.join("lists/partial"))?;
        sh.create_dir(work.join("cache/archives/partial"))?;
        Ok(Self { sh, work, own_lists: false.into() })
    }

    /// Downloads a package and unpacks it into `<work>/root`.
    fn fetch(&self, package: &str) -> anyhow::Result<()> {
        if self.download(package).is_err() {
            // A container image often comes without package lists, and old lists name files that are gone.
            eprintln!("setup: fetching the package lists");
            self.own_lists.set(true);
            self.apt(&["update"])?;
            self.download(package)?;
        }
        let prefix = format!("{package}_");
        let file = self.sh.read_dir(self.work)?.into_iter().find(|f| is_package(f, &prefix));
        let file = file.with_context(|| format!("apt-get download {package} left no file"))?;
        let root = self.work.join("root");
        cmd!(self.sh, "dpkg-deb -x {file} {root}").quiet().run()?;
        Ok(())
    }

    fn download(&self, package: &str) -> anyhow::Result<()> {
        self.apt(&["download", package])
    }

    fn apt(&self, args: &[&str]) -> anyhow::Result<()> {
        let (lists, cache) = (self.work.join("lists"), self.work.join("cache"));
        let mut options = vec![format!("Dir::Cache={}", cache.display()), "APT::Sandbox::User=".to_owned()];
        if self.own_lists.get() {
            options.push(format!("Dir::State::Lists={}", lists.display()));
        }
        let options = options.iter().flat_map(|option| ["-o", option]);
        let _inside = self.sh.push_dir(self.work);
        quietly(cmd!(self.sh, "apt-get --quiet=2 {options...} {args...}"))
    }
}

fn is_package(file: &Path, prefix: &str) -> bool {
    file.extension().is_some_and(|e| e == "deb")
        && file.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix))
}

/// Moves the library called `name` from the unpacked packages into `lib`, whatever folder a release keeps it in.
fn take(work: &Path, lib: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let link = search(&work.join("root"), name).with_context(|| format!("the package holds no {name}"))?;
    let file = link.canonicalize().with_context(|| format!("{} leads nowhere", link.display()))?;
    let place = lib.join(name);
    std::fs::rename(&file, &place).with_context(|| format!("cannot move {}", file.display()))?;
    Ok(place)
}

fn search(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.iter().find(|path| path.file_name().is_some_and(|n| n == name)).cloned().or_else(|| {
        paths.iter().filter(|path| path.is_dir() && !path.is_symlink()).find_map(|folder| search(folder, name))
    })
}

/// Names that the loader does not find for `library`, with `lib` searched first.
fn missing(sh: &Shell, library: &Path, lib: &Path) -> anyhow::Result<Vec<String>> {
    let text = cmd!(sh, "ldd {library}").env("LD_LIBRARY_PATH", lib).quiet().read()?;
    Ok(not_found(&text))
}

fn not_found(ldd: &str) -> Vec<String> {
    ldd.lines().filter_map(|line| Some(line.trim().strip_suffix("=> not found")?.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::not_found;

    #[test]
    fn reads_what_the_loader_does_not_find() {
        let text = "\tlibm.so.6 => /lib/libm.so.6 (0x1)\n\tlibgfortran.so.5 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n";
        assert_eq!(not_found(text), ["libgfortran.so.5"]);
    }
}
