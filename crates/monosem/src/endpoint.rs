//! The language model that explains and scores, as it is named on the command line and in profiles.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, anyhow, bail};
use monosem_assets::{Assets, Events};
use monosem_autointerp::LlmConfig;
use monosem_llm::{Cached, Client, ClientConfig, Endpoint, Key};
use monosem_lm::{LanguageModel, LoadOptions, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::interrupt;
use crate::local::LocalModel;
use crate::model::Model;

/// The environment variable that holds the key of a server named by its address alone.
pub(crate) const KEY: &str = "MONOSEM_LLM_KEY";

/// Windows judged in one request by a model in this process, unless said otherwise: what runs here is small, and small models lose count of several.
const OF_SMALL_MODELS: usize = 1;

/// Who is asked: a server, or a model in this process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Llm {
    /// A model that runs here: a name, `hf:owner/name[@revision]`, or a path.
    Local(Model),
    /// An OpenAI-compatible server.
    Server(ClientConfig),
}

/// What a file for `--llm` holds: who is asked, and how.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    local: Option<Model>,
    server: Option<ClientConfig>,
    #[serde(default)]
    asking: toml::Table,
}

/// `local:MODEL`, the address of a server, or a TOML file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LlmName {
    Local(Model),
    Address(String),
    File(PathBuf),
}

impl FromStr for LlmName {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        if let Some(model) = given.strip_prefix("local:") {
            return model.parse().map(Self::Local);
        }
        if given.starts_with("http://") || given.starts_with("https://") {
            return Ok(Self::Address(given.to_owned()));
        }
        if Path::new(given).extension().is_some_and(|extension| extension == "toml") {
            return Ok(Self::File(given.into()));
        }
        Err("expected local:MODEL, the address of a server such as http://127.0.0.1:8000/v1, or a .toml file".into())
    }
}

impl LlmName {
    /// Who is asked and how; `model` is the name that a server knows its model by.
    pub(crate) fn resolve(&self, model: Option<&str>) -> Result<(Llm, LlmConfig)> {
        let (llm, asking) = match self {
            Self::Local(model) => {
                (Llm::Local(model.clone()), LlmConfig { per_prompt: OF_SMALL_MODELS, ..LlmConfig::default() })
            }
            Self::Address(address) => {
                let Some(model) = model else { bail!("--llm {address}: name its model with --llm-model") };
                let has_key = std::env::var_os(KEY).is_some_and(|key| !key.is_empty());
                let key = if has_key { Key::Env(KEY.into()) } else { Key::None };
                let config =
                    ClientConfig { base_url: address.clone(), model: model.into(), key, ..ClientConfig::default() };
                (Llm::Server(config), LlmConfig::default())
            }
            Self::File(path) => read(path, model)?,
        };
        asking.validate()?;
        Ok((llm, asking))
    }
}

fn read(path: &Path, model: Option<&str>) -> Result<(Llm, LlmConfig)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // The message alone, without the line: a key may stand there that should stand elsewhere.
    let mut file: File = toml::from_str(&text).map_err(|e| anyhow!("{}: {}", path.display(), e.message()))?;
    let llm = match (file.local, file.server) {
        (Some(model), None) => Llm::Local(model),
        (None, Some(config)) => {
            Llm::Server(ClientConfig { model: model.map_or(config.model, str::to_owned), ..config })
        }
        _ => bail!("{}: expected either `local = \"MODEL\"` or a section [server]", path.display()),
    };
    if matches!(llm, Llm::Local(_)) {
        file.asking.entry("per_prompt").or_insert((OF_SMALL_MODELS as i64).into());
    }
    if file.asking.contains_key("seed") {
        bail!("{}: [asking]: draws come from --seed; leave `seed` out", path.display());
    }
    let asking = file.asking.try_into().map_err(|e| anyhow!("{}: [asking]: {}", path.display(), e.message()))?;
    Ok((llm, asking))
}

/// A model that can be asked.
pub(crate) enum Opened {
    Local { name: String, model: Box<LanguageModel>, tokenizer: Box<Tokenizer> },
    Server(Box<Client>),
}

impl Llm {
    /// Loads the model, or makes ready to reach its server; replies are kept in `cache` unless the settings say where. Reaching the server is left to the first
    /// question.
    pub(crate) fn open(&self, assets: &Assets, cache: &Path, events: &mut Events<'_>) -> Result<Opened> {
        match self {
            Self::Local(model) => {
                let files = model.obtain(assets, events)?;
                let tokenizer = Box::new(Tokenizer::load(&files)?);
                let loaded = Box::new(LanguageModel::load(&files, &LoadOptions::default())?);
                Ok(Opened::Local { name: model.to_string(), model: loaded, tokenizer })
            }
            Self::Server(config) => {
                let mut config = config.clone();
                config.cache.get_or_insert_with(|| cache.to_owned());
                Ok(Opened::Server(Box::new(Client::new(config, Some(interrupt::flag()))?)))
            }
        }
    }

    /// Features to work on at once: as many as requests may be under way; one, where a model uses all cores for each.
    pub(crate) fn workers(&self) -> usize {
        match self {
            Self::Local(_) => 1,
            Self::Server(config) => config.concurrency,
        }
    }
}

/// All that a reply depends on besides the question; the number grows when this program's own part in it changes.
fn identity(model: &LanguageModel, tokenizer: &Tokenizer) -> String {
    const VERSION: u32 = 1;
    let template = tokenizer.chat_template().unwrap_or_default();
    let (weights, config) = (model.weights_hash(), model.config());
    let all = format!("{VERSION} {weights} {} {config:?} {template}", tokenizer.hash());
    blake3::hash(all.as_bytes()).to_hex().to_string()
}

impl Opened {
    /// Hands the model out as an endpoint.
    pub(crate) fn ask<T>(&self, cache: &Path, work: impl FnOnce(&dyn Endpoint) -> Result<T>) -> Result<T> {
        match self {
            Self::Local { name, model, tokenizer } => {
                let local = LocalModel::new(name.clone(), model, tokenizer)?;
                work(&Cached::new(local, identity(model, tokenizer), cache)?)
            }
            Self::Server(client) => work(client.as_ref()),
        }
    }

    /// What was spent at a server, in a line.
    pub(crate) fn spent(&self) -> Option<String> {
        let Self::Server(client) = self else { return None };
        let spent = client.spent();
        let (asked, cached, retried) = (spent.requests, spent.cached, spent.retried);
        let tokens = format!("{} + {} tokens", spent.prompt_tokens, spent.reply_tokens);
        let money = if spent.money > 0.0 { format!(", {:.2} in money", spent.money) } else { String::new() };
        Some(format!("{asked} requests ({retried} of them again), {cached} replies from the cache, {tokens}{money}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_who_is_asked() {
        let parse = |name: &str| name.parse::<LlmName>();
        assert!(matches!(parse("local:toy"), Ok(LlmName::Local(Model::Toy))));
        let address = parse("http://127.0.0.1:9/v1").unwrap();
        assert!(address.resolve(None).unwrap_err().to_string().contains("--llm-model"));
        assert!(matches!(address.resolve(Some("m")).unwrap().0, Llm::Server(config) if config.model == "m"));
        assert!(parse("gpt-4").unwrap_err().contains("expected local:MODEL"));
    }

    #[test]
    fn a_file_says_how() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("llm.toml");
        let resolve = |text: &str| {
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().parse::<LlmName>().unwrap().resolve(None)
        };
        let (llm, asking) = resolve(
            "[server]\nbase_url = 'http://127.0.0.1:9/v1'\nmodel = 'm'\nconcurrency = 3\n[asking]\nper_prompt = 1\n",
        )
        .unwrap();
        assert!(matches!(llm, Llm::Server(config) if config.concurrency == 3));
        assert_eq!(asking, LlmConfig { per_prompt: 1, ..LlmConfig::default() });
        let (llm, asking) = resolve("local = 'toy'\n[asking]\nwindow = 20\n").unwrap();
        assert!(matches!(llm, Llm::Local(Model::Toy)));
        // As `local:toy` has it.
        assert_eq!(asking, LlmConfig { per_prompt: 1, window: 20, ..LlmConfig::default() });
        let error = |text: &str| format!("{:#}", resolve(text).unwrap_err());
        assert!(error("[asking]\nwindow = 1\n").contains("expected either"));
        assert!(error("local = 'toy'\n[asking]\nwindow = 1\n").contains("`window` is 1"));
        assert!(error("local = 'toy'\n[asking]\nwindows = 9\n").contains("windows"));
        assert!(error("local = 'toy'\n[asking]\nseed = 9\n").contains("--seed"));
        let error = error("[server]\nbase_url = 'x'\nkey = 'sk-secret'\n");
        assert!(error.contains("llm.toml") && error.contains("env") && !error.contains("sk-secret"), "{error}");
    }
}
