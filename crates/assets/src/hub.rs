//! Which files of a hub repository make up an asset, and where they lie in the cache.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use crate::download::{Job, fetch};
use crate::http::Http;
use crate::progress::Reporter;
use crate::source::is_component;
use crate::store::{Lock, Marker, create_folder};
use crate::{AssetError, HubRepo};

/// A token that no message prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a token; white space around it is dropped.
    pub fn new(token: &str) -> Self {
        Self(token.trim().to_owned())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// How to talk to a model hub that has the Hugging Face layout of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// The hub's address without a trailing slash. Environment: `HF_ENDPOINT`.
    pub endpoint: String,
    /// Sent to the endpoint's own host only, and only over https (or to this machine). Environment: `HF_TOKEN`.
    pub token: Option<Secret>,
    /// Attempts in a row without a new byte before a file is given up.
    pub attempts: u32,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest wait for an answer and for each piece of it; a slow transfer that moves is not cut.
    pub read_timeout: Duration,
    /// Wait before the second attempt; doubled for each further one, with jitter.
    pub backoff: Duration,
    /// The longest wait between two attempts, also where the server asks for more (`Retry-After`).
    pub max_wait: Duration,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            endpoint: "https://huggingface.co".into(),
            token: None,
            attempts: 6,
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_secs(60),
            backoff: Duration::from_millis(500),
            max_wait: Duration::from_secs(60),
        }
    }
}

impl HubConfig {
    /// The defaults, with `HF_ENDPOINT` and `HF_TOKEN` from the environment.
    ///
    /// # Errors
    /// As [`HubConfig::validate`].
    pub fn from_env() -> Result<Self, AssetError> {
        let get = |key| std::env::var(key).ok().filter(|value: &String| !value.trim().is_empty());
        let mut config = Self { token: get("HF_TOKEN").map(|token| Secret::new(&token)), ..Self::default() };
        if let Some(endpoint) = get("HF_ENDPOINT") {
            config.endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks the endpoint, the token's characters and the number of attempts.
    ///
    /// # Errors
    /// [`AssetError::Config`] names the setting.
    pub fn validate(&self) -> Result<(), AssetError> {
        let bad = |key, why: &str| Err(AssetError::Config { key, why: why.into() });
        match Url::parse(&self.endpoint) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
            _ => return bad("HF_ENDPOINT", &format!("`{}` is not an http or https address", self.endpoint)),
        }
        if let Some(token) = &self.token
            && !token.expose().bytes().all(|b| b.is_ascii_graphic())
        {
            return bad("HF_TOKEN", "it holds white space or other characters that no token holds");
        }
        if self.attempts == 0 {
            return bad("attempts", "at least one attempt is needed");
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Dataset,
}

/// One repository at one revision, and its folder in the cache.
struct Checkout<'a, 'r, 'e> {
    http: &'a Arc<Http>,
    config: &'a HubConfig,
    kind: Kind,
    repo: &'a HubRepo,
    folder: PathBuf,
    marker: Marker,
    reporter: &'a mut Reporter<'r, 'e>,
}

/// A model's folder: configuration, tokenizer and safetensors weights, whole or in shards.
pub(crate) fn model(
    cache: &Path,
    http: &Arc<Http>,
    config: &HubConfig,
    repo: &HubRepo,
    reporter: &mut Reporter<'_, '_>,
) -> Result<PathBuf, AssetError> {
    let folder = folder_of(cache, "models", repo);
    if is_complete(&folder, None, reporter)? {
        return Ok(folder);
    }
    let lock_name = format!("models--{}--{}--{}", repo.owner(), repo.name(), repo.revision().replace('/', "%2F"));
    let _lock = Lock::acquire(cache, &lock_name, reporter)?;
    let mut checkout = Checkout::open(http, config, Kind::Model, repo, folder, reporter)?;
    checkout.require("config.json")?;
    checkout.require("tokenizer.json")?;
    checkout.offer("tokenizer_config.json")?;
    if !checkout.offer("model.safetensors")? {
        if !checkout.offer("model.safetensors.index.json")? {
            return Err(AssetError::NotFound {
                asset: checkout.reporter.asset.clone(),
                file: "model.safetensors (or model.safetensors.index.json)".into(),
                revision: repo.revision().into(),
                why: "the repository has no safetensors weights; other formats are not read".into(),
            });
        }
        for shard in checkout.shards()? {
            checkout.require(&shard)?;
        }
    }
    checkout.finish()
}

/// One file of a dataset repository.
pub(crate) fn dataset_file(
    cache: &Path,
    http: &Arc<Http>,
    config: &HubConfig,
    repo: &HubRepo,
    file: &str,
    reporter: &mut Reporter<'_, '_>,
) -> Result<PathBuf, AssetError> {
    let folder = folder_of(cache, "datasets", repo);
    if is_complete(&folder, Some(file), reporter)? {
        return Ok(folder.join(file));
    }
    let lock_name = format!("datasets--{}--{}--{}", repo.owner(), repo.name(), repo.revision().replace('/', "%2F"));
    let _lock = Lock::acquire(cache, &lock_name, reporter)?;
    let mut checkout = Checkout::open(http, config, Kind::Dataset, repo, folder, reporter)?;
    checkout.require(file)?;
    Ok(checkout.finish()?.join(file))
}

/// A revision with a slash in it is one folder, not several.
fn folder_of(cache: &Path, kind: &str, repo: &HubRepo) -> PathBuf {
    cache.join("hub").join(kind).join(repo.owner()).join(repo.name()).join(repo.revision().replace('/', "%2F"))
}

/// Whether everything (or the one file) was fetched before and is unchanged; then no network is needed.
fn is_complete(folder: &Path, only: Option<&str>, reporter: &mut Reporter<'_, '_>) -> Result<bool, AssetError> {
    let mut marker = Marker::load(folder);
    let files: Vec<String> = match only {
        Some(file) => vec![file.to_owned()],
        None if marker.complete => marker.files.keys().cloned().collect(),
        None => return Ok(false),
    };
    let mut changed = false;
    for file in files {
        if !marker.is_good(folder, &file, &mut changed, reporter)? {
            return Ok(false);
        }
    }
    if changed {
        let _ = marker.save(folder);
    }
    Ok(true)
}

impl<'a, 'r, 'e> Checkout<'a, 'r, 'e> {
    fn open(
        http: &'a Arc<Http>,
        config: &'a HubConfig,
        kind: Kind,
        repo: &'a HubRepo,
        folder: PathBuf,
        reporter: &'a mut Reporter<'r, 'e>,
    ) -> Result<Self, AssetError> {
        create_folder(&folder)?;
        let marker = Marker::load(&folder);
        Ok(Self { http, config, kind, repo, folder, marker, reporter })
    }

    /// Fetches a file that must exist.
    fn require(&mut self, file: &str) -> Result<(), AssetError> {
        let mut changed = false;
        if self.marker.is_good(&self.folder, file, &mut changed, self.reporter)? {
            return Ok(());
        }
        // All files come from the commit that the first one came from, even if the branch moves meanwhile.
        let revision = self.marker.commit.clone().unwrap_or_else(|| self.repo.revision().to_owned());
        let target = self.folder.join(file);
        let remedy = format!(
            "without a network, fetch the files of {} on another machine and name their {} instead; `--profile toy` \
             needs no download",
            self.repo,
            if self.kind == Kind::Model { "folder" } else { "path" }
        );
        let url = self.url(&revision, file)?;
        let job = Job { url, target, file, revision: &revision, remedy: &remedy };
        let commit = fetch(self.http, self.config, &job, self.reporter)?;
        // A commit goes into the next address: nothing but a plain word is taken from a header.
        self.marker.commit = self.marker.commit.take().or(commit.filter(|commit| is_component(commit)));
        self.marker.stamp(&self.folder, file, self.reporter)?;
        self.marker.save(&self.folder)
    }

    /// Fetches a file if the repository has it.
    fn offer(&mut self, file: &str) -> Result<bool, AssetError> {
        match self.require(file) {
            Ok(()) => Ok(true),
            // A missing repository or revision would have failed the required files before.
            Err(AssetError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn url(&self, revision: &str, file: &str) -> Result<Url, AssetError> {
        let kind = if self.kind == Kind::Dataset { "datasets/" } else { "" };
        let (owner, name) = (self.repo.owner(), self.repo.name());
        let revision = revision.replace('/', "%2F");
        let text = format!("{}/{kind}{owner}/{name}/resolve/{revision}/{file}", self.config.endpoint);
        Url::parse(&text).map_err(|error| AssetError::Config { key: "HF_ENDPOINT", why: error.to_string() })
    }

    /// The names of the shards that the index lists.
    fn shards(&self) -> Result<BTreeSet<String>, AssetError> {
        let path = self.folder.join("model.safetensors.index.json");
        let corrupt = |why: &str| AssetError::Corrupt {
            asset: self.reporter.asset.clone(),
            file: "model.safetensors.index.json".into(),
            why: why.into(),
        };
        let text = fs::read(&path).map_err(AssetError::io("read", &path))?;
        let index: serde_json::Value = serde_json::from_slice(&text).map_err(|error| corrupt(&error.to_string()))?;
        let map = index.get("weight_map").and_then(|map| map.as_object()).ok_or_else(|| corrupt("no `weight_map`"))?;
        let shards: Option<BTreeSet<String>> = map.values().map(|name| name.as_str().map(str::to_owned)).collect();
        let shards = shards.ok_or_else(|| corrupt("`weight_map` holds something else than file names"))?;
        // The index is outside input: a name in it must not lead out of the folder.
        match shards.iter().find(|name| !is_component(name)) {
            Some(name) => Err(corrupt(&format!("`{name}` is not a plain file name"))),
            None => Ok(shards),
        }
    }

    fn finish(mut self) -> Result<PathBuf, AssetError> {
        self.marker.complete = true;
        self.marker.save(&self.folder)?;
        Ok(self.folder)
    }
}
