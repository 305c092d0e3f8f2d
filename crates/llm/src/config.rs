use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use reqwest::Url;
use reqwest::header::{self, HeaderName};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::LlmError;
use crate::http::is_loopback;
use crate::secret::{Secret, from_environment};

/// Where the key for the server is found. The key itself stands in no setting.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// The server wants none.
    #[default]
    None,
    /// In the environment variable of this name.
    Env(String),
    /// In this file, white space around it aside.
    File(PathBuf),
}

/// By hand, so that no message repeats what stands in the key's place: it may be the key.
impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const FORM: &str = r#"{ env = "NAME" } or { file = "PATH" }, and never the key itself"#;
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Key, E> {
                if text == "none" { Ok(Key::None) } else { Err(E::custom(format!("`key`: expected {FORM}"))) }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Key, A::Error> {
                let fail = || de::Error::custom(format!("`key`: expected {FORM}"));
                let key = match map.next_key::<String>()?.as_deref() {
                    Some("env") => Key::Env(map.next_value()?),
                    Some("file") => Key::File(map.next_value()?),
                    _ => return Err(fail()),
                };
                if map.next_key::<String>()?.is_some() { Err(fail()) } else { Ok(key) }
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Key {
    /// Reads the key.
    pub(crate) fn read(&self) -> Result<Option<String>, LlmError> {
        let key = match self {
            Self::None => return Ok(None),
            Self::Env(name) => from_environment(name)
                .map_err(|why| LlmError::Key { why: format!("{why}; set it, or name another one in `key`") })?,
            Self::File(path) => {
                let fail = |why: String| LlmError::Key { why: format!("{}: {why}", path.display()) };
                let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
                match text.trim() {
                    "" => return Err(fail("the file is empty".into())),
                    key => key.to_owned(),
                }
            }
        };
        if key.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Some(key))
        } else {
            Err(LlmError::Key { why: "what was found holds white space or other characters that no key holds".into() })
        }
    }
}

/// What all requests of a client may cost; what is left out is not limited.
///
/// A request is counted against it, by an estimate, before it is sent. Replies from the cache cost nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Requests, each attempt counted.
    pub requests: Option<u64>,
    /// Tokens read and written.
    pub tokens: Option<u64>,
    /// Money, in the currency of [`ClientConfig::prices`], which it needs.
    pub money: Option<f64>,
}

/// What tokens cost, in any currency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// For a million tokens read.
    pub prompt_per_million: f64,
    /// For a million tokens written.
    pub reply_per_million: f64,
}

impl Prices {
    pub(crate) fn of(&self, prompt_tokens: u64, reply_tokens: u64) -> f64 {
        (prompt_tokens as f64 * self.prompt_per_million + reply_tokens as f64 * self.reply_per_million) / 1e6
    }
}

/// Which server it is: servers of the one protocol differ in the names of some parameters and in what they offer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// Found out: OpenAI by its host; otherwise by `owned_by` in the list of models, which is asked for once (and kept in the cache); and if that tells nothing,
    /// [`Self::LlamaCpp`], the protocol in its classic form.
    #[default]
    Auto,
    /// OpenAI's own: `max_completion_tokens`; at most 20 candidates for a token of a reply and 5 for one of a prompt. A temperature of 1 is left out, since
    /// some models take no other.
    OpenAi,
    /// vLLM: prompts are scored by its `prompt_logprobs`; at most 20 candidates.
    Vllm,
    /// llama-cpp-python's server and llama.cpp's own: `max_tokens`, and prompts scored by `echo` with `logprobs`, which the second refuses.
    LlamaCpp,
    /// Ollama: prompts cannot be scored.
    Ollama,
}

/// How to reach a model behind an OpenAI-compatible server, and how hard to try.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// The address before `/chat/completions`, such as `https://api.openai.com/v1`. Required.
    pub base_url: String,
    /// The model's name, as the server knows it. Required.
    pub model: String,
    /// Where the key is found; it is sent as `Authorization: Bearer`, over https or to this machine only.
    pub key: Key,
    /// Headers sent with each request. A value `env:NAME` is taken from the environment. All values are kept as secrets.
    pub headers: BTreeMap<String, Secret>,
    /// A proxy's URL; `none` for no proxy; if left out, the one that the environment names (`HTTPS_PROXY`, `NO_PROXY` and so on). This machine is always
    /// reached without one.
    pub proxy: Option<Secret>,
    /// Most requests under way at once.
    pub concurrency: usize,
    /// Most requests a minute, spread evenly: no more than a second's worth at once.
    pub requests_per_minute: Option<u32>,
    /// Most tokens a minute, read and written, spread evenly.
    pub tokens_per_minute: Option<u32>,
    /// The longest wait for one whole answer, in seconds.
    pub timeout_s: f64,
    /// How often a request is sent at most, if the server is out of reach, busy or gives no usable answer.
    pub attempts: u32,
    /// The wait before the second attempt is drawn between 0 and so many seconds; the range doubles with each further one, up to 60 s.
    pub backoff_s: f64,
    /// What all requests may cost.
    pub budget: Budget,
    /// What tokens cost; without it [`crate::Spent::money`] stays 0.
    pub prices: Option<Prices>,
    /// The folder where replies are kept, so that no question is paid for twice.
    pub cache: Option<PathBuf>,
    /// Which server it is.
    pub server: Dialect,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            base_url: String::new(),
            model: String::new(),
            key: Key::None,
            headers: BTreeMap::new(),
            proxy: None,
            concurrency: 8,
            requests_per_minute: None,
            tokens_per_minute: None,
            timeout_s: 120.0,
            attempts: 6,
            backoff_s: 1.0,
            budget: Budget::default(),
            prices: None,
            cache: None,
            server: Dialect::Auto,
        }
    }
}

/// Headers that are the client's own affair.
const RESERVED: [HeaderName; 4] =
    [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::TRANSFER_ENCODING];

impl ClientConfig {
    /// Checks what can be checked without the environment, files or the network.
    ///
    /// # Errors
    /// [`LlmError::Config`] names the setting.
    pub fn validate(&self) -> Result<(), LlmError> {
        let bad = |key: &'static str, why: &str| Err(LlmError::Config { key, why: why.to_owned() });
        let url = self.url()?;
        if self.model.trim().is_empty() {
            return bad("model", "is empty; name a model that the server has");
        }
        for (name, value) in &self.headers {
            let Ok(name) = name.parse::<HeaderName>() else {
                return bad("headers", "holds a name that no header has");
            };
            if RESERVED.contains(&name) {
                return bad("headers", "holds one that the client sets itself");
            }
            if name == header::AUTHORIZATION && self.key != Key::None {
                return bad("headers", "holds `authorization`, and `key` is set: leave one of them out");
            }
            if value.variable().is_some() && !is_safe(&url) {
                return bad("headers", "takes a value from the environment, but `base_url` is plain http");
            }
        }
        if let Some(proxy) = &self.proxy
            && proxy.variable().is_none()
            && proxy.as_written() != "none"
            && Url::parse(proxy.as_written()).is_err()
        {
            return bad("proxy", "is no URL; `none` stands for no proxy");
        }
        if !(1..=1024).contains(&self.concurrency) {
            return bad("concurrency", "is not between 1 and 1024");
        }
        if self.requests_per_minute == Some(0) {
            return bad("requests_per_minute", "is 0; leave it out for no limit");
        }
        if self.tokens_per_minute == Some(0) {
            return bad("tokens_per_minute", "is 0; leave it out for no limit");
        }
        if !(self.timeout_s > 0.0 && self.timeout_s <= 86_400.0) {
            return bad("timeout_s", "is not between 0 and 86400 seconds");
        }
        if !(1..=100).contains(&self.attempts) {
            return bad("attempts", "is not between 1 and 100");
        }
        if !(0.0..=60.0).contains(&self.backoff_s) {
            return bad("backoff_s", "is not between 0 and 60 seconds");
        }
        let is_price = |price: f64| price.is_finite() && price >= 0.0;
        if self.prices.as_ref().is_some_and(|p| !is_price(p.prompt_per_million) || !is_price(p.reply_per_million)) {
            return bad("prices", "holds a price that is negative or no number");
        }
        match self.budget.money {
            Some(money) if !is_price(money) => bad("budget.money", "is negative or no number"),
            Some(_) if self.prices.is_none() => bad("budget.money", "needs `prices` to count in"),
            _ => Ok(()),
        }
    }

    /// The base address, without a slash at its end.
    pub(crate) fn url(&self) -> Result<Url, LlmError> {
        let bad = |why: &str| Err(LlmError::Config { key: "base_url", why: why.to_owned() });
        let text = self.base_url.trim().trim_end_matches('/');
        let Ok(url) = Url::parse(text) else {
            return bad("is no URL; expected one such as `https://api.openai.com/v1`");
        };
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return bad("is no http or https address");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return bad("holds a user or a password; name the place of a key in `key`, or a header in `headers`");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return bad("holds a query or a fragment; it must end before `/chat/completions`");
        }
        Ok(url)
    }
}

/// Whether secrets may be sent there.
pub(crate) fn is_safe(url: &Url) -> bool {
    url.scheme() == "https" || is_loopback(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClientConfig {
        ClientConfig { base_url: "https://api.example.com/v1/".into(), model: "m".into(), ..ClientConfig::default() }
    }

    fn fault(change: impl FnOnce(&mut ClientConfig)) -> String {
        let mut config = config();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn settings_are_read_as_documented() {
        config().validate().unwrap();
        assert_eq!(config().url().unwrap().as_str(), "https://api.example.com/v1");
        let text = r#"{"base_url": "http://localhost:8000/v1", "model": "m", "key": {"env": "A_KEY"}, "headers": {"x-a": "secret"},
            "budget": {"requests": 3}, "server": "llama-cpp"}"#;
        let read: ClientConfig = serde_json::from_str(text).unwrap();
        read.validate().unwrap();
        assert_eq!((read.key.clone(), read.budget.requests), (Key::Env("A_KEY".into()), Some(3)));
        assert_eq!((read.server, read.concurrency), (Dialect::LlamaCpp, 8));
        assert!(!format!("{read:?}").contains("secret"));
        assert!(!serde_json::to_string(&read).unwrap().contains("secret"));
        let unknown = serde_json::from_str::<ClientConfig>(r#"{"base": ""}"#).unwrap_err().to_string();
        assert!(unknown.contains("unknown field"), "{unknown}");
        let key: Key = serde_json::from_str(r#"{"file": "/run/key"}"#).unwrap();
        assert_eq!(key, Key::File("/run/key".into()));
        assert_eq!(serde_json::from_str::<Key>("\"none\"").unwrap(), Key::None);
    }

    #[test]
    fn faults_name_the_setting() {
        assert!(fault(|c| c.base_url = "api".into()).starts_with("`base_url`"));
        assert!(fault(|c| c.base_url = "ftp://host/".into()).starts_with("`base_url`"));
        let message = fault(|c| c.base_url = "https://user:hunter2@host/v1".into());
        assert!(message.starts_with("`base_url`") && !message.contains("hunter2"));
        assert!(fault(|c| c.base_url = "https://host/v1?key=1".into()).contains("query"));
        assert!(fault(|c| c.model = " ".into()).starts_with("`model`"));
        assert!(fault(|c| c.concurrency = 0).starts_with("`concurrency`"));
        assert!(fault(|c| c.timeout_s = f64::NAN).starts_with("`timeout_s`"));
        assert!(fault(|c| c.attempts = 0).starts_with("`attempts`"));
        assert!(fault(|c| c.backoff_s = -1.0).starts_with("`backoff_s`"));
        assert!(fault(|c| c.requests_per_minute = Some(0)).starts_with("`requests_per_minute`"));
        assert!(fault(|c| c.budget.money = Some(1.0)).contains("`prices`"));
        assert!(fault(|c| c.proxy = Some("nowhere".into())).starts_with("`proxy`"));
        assert!(fault(|c| drop(c.headers.insert("a b".into(), "x".into()))).starts_with("`headers`"));
        assert!(fault(|c| drop(c.headers.insert("Host".into(), "x".into()))).starts_with("`headers`"));
        let both = |c: &mut ClientConfig| {
            c.key = Key::Env("A".into());
            c.headers.insert("Authorization".into(), "x".into());
        };
        assert!(fault(both).contains("`key`"));
    }
}
