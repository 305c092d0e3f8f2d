use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::{Cache, Canonical, Flights, Key, Seat};
use crate::http::{Answer, Failure, Http};
use crate::ledger::{Estimate, Ledger};
use crate::limits::Limits;
use crate::score::{self, RawPrompt};
use crate::waits::Waits;
use crate::wire::{self, Unusable};
use crate::{
    Alignment, ClientConfig, Dialect, Endpoint, LlmError, PromptRequest, Reply, Request, ScoredPrompt, Spent, Usage,
};

/// The longest wait that the server may ask for.
const LONGEST_WISH: Duration = Duration::from_secs(600);
/// The longest wait between two attempts otherwise.
const LONGEST_BACKOFF_S: f64 = 60.0;

/// A model behind an OpenAI-compatible server.
///
/// It may be used from many threads at once; [`crate::each`] does that.
pub struct Client {
    config: ClientConfig,
    http: Arc<Http>,
    cache: Option<Cache>,
    flights: Flights,
    limits: Limits,
    ledger: Ledger,
    waits: Waits,
    dialect: OnceLock<Dialect>,
    alignment: OnceLock<Alignment>,
}

/// What to send, and what is known of it before.
struct Call<'a> {
    path: &'a str,
    body: Option<Vec<u8>>,
    estimate: Estimate,
}

/// Why an attempt gave nothing, if another one may.
struct Again {
    error: LlmError,
    /// How long the server wants to be left alone.
    wish: Option<Duration>,
    /// Whether all requests have to wait.
    all: bool,
}

impl Client {
    /// Reads the key and the headers, and makes the cache's folder. Nothing is sent yet.
    ///
    /// `stop` ends all waits within about a tenth of a second once it is set, with [`LlmError::Stopped`].
    ///
    /// # Errors
    /// [`LlmError::Config`] as [`ClientConfig::validate`]; [`LlmError::Key`] if there is no key where it should be, or if it would travel in the clear;
    /// [`LlmError::Cache`] if the folder cannot be made.
    pub fn new(config: ClientConfig, stop: Option<Arc<AtomicBool>>) -> Result<Self, LlmError> {
        config.validate()?;
        Ok(Self {
            http: Http::new(&config)?,
            cache: config.cache.as_deref().map(Cache::open).transpose()?,
            flights: Flights::default(),
            limits: Limits::new(&config),
            ledger: Ledger::new(config.budget.clone(), config.prices.clone()),
            waits: Waits::new(stop),
            dialect: OnceLock::new(),
            alignment: OnceLock::new(),
            config,
        })
    }

    /// What was spent since the client was made.
    #[must_use]
    pub fn spent(&self) -> Spent {
        self.ledger.spent()
    }

    /// The server's dialect: the one of the settings, or what was found out, for which the server may have to be asked.
    ///
    /// # Errors
    /// As [`Endpoint::chat`], if the server cannot be reached.
    pub fn dialect(&self) -> Result<Dialect, LlmError> {
        if let Some(dialect) = self.dialect.get() {
            return Ok(*dialect);
        }
        let dialect = match self.config.server {
            Dialect::Auto if self.http.base().host_str() == Some("api.openai.com") => Dialect::OpenAi,
            Dialect::Auto => self.ask_for_dialect()?,
            dialect => dialect,
        };
        Ok(*self.dialect.get_or_init(|| dialect))
    }

    fn ask_for_dialect(&self) -> Result<Dialect, LlmError> {
        let call = Call { path: "models", body: None, estimate: Estimate::default() };
        let ask = || {
            let read = |body: &[u8]| Ok((Usage::default(), wire::dialect_of(body)?));
            self.send(&call, &self.key("models", &()), &read)
        };
        match self.answer("models", &(), ask) {
            Ok(dialect) => Ok(dialect.unwrap_or(Dialect::LlamaCpp)),
            // A server without such a list, or with another one.
            Err(LlmError::Refused { .. } | LlmError::Schema { .. }) => Ok(Dialect::LlamaCpp),
            Err(error) => Err(error),
        }
    }

    /// For which place the server gives log-probabilities of a prompt.
    ///
    /// Found out once, by scoring a sentence that is repeated until any model predicts it; this is kept in the cache like any reply.
    ///
    /// # Errors
    /// As [`Endpoint::score_prompt`].
    pub fn alignment(&self) -> Result<Alignment, LlmError> {
        if let Some(alignment) = self.alignment.get() {
            return Ok(*alignment);
        }
        let raw = self.raw_prompt(&score::probe())?;
        let alignment = score::decide(&raw.tokens).map_err(|why| self.unsupported(&why))?;
        Ok(*self.alignment.get_or_init(|| alignment))
    }

    fn raw_prompt(&self, request: &PromptRequest) -> Result<RawPrompt, LlmError> {
        let dialect = self.dialect()?;
        if dialect == Dialect::Ollama {
            return Err(self.unsupported("Ollama gives no log-probabilities of a prompt; use llama-cpp-python or vLLM"));
        }
        let kind = score::kind(dialect);
        let ask = || {
            let call = Call {
                path: "completions",
                body: Some(score::prompt_body(dialect, &self.config.model, request)),
                estimate: Estimate::of(request.text.len(), 1),
            };
            let read = |body: &[u8]| {
                let raw = score::read_prompt(body, request)?;
                Ok((raw.usage, raw))
            };
            self.send(&call, &self.key(kind, request), &read).map_err(|error| self.or_unsupported(error))
        };
        self.answer(kind, request, ask)
    }

    /// A refusal of the parameters by which prompts are scored concerns all prompts.
    fn or_unsupported(&self, error: LlmError) -> LlmError {
        match error {
            LlmError::Refused { status: 400 | 422 | 500.., message, .. }
                if message.contains("echo") || message.contains("logprobs") =>
            {
                self.unsupported(&format!("it refuses to score a prompt: {message}"))
            }
            error => error,
        }
    }

    fn unsupported(&self, why: &str) -> LlmError {
        LlmError::Unsupported { server: self.http.server(), why: why.to_owned() }
    }

    fn key<Q: Canonical>(&self, kind: &str, request: &Q) -> Key {
        Key::new(kind, &self.config.model, self.http.base().as_str(), request)
    }

    /// A reply from the cache, from an identical question under way, or by asking.
    fn answer<Q: Canonical, R: Serialize + DeserializeOwned>(
        &self,
        kind: &str,
        request: &Q,
        ask: impl Fn() -> Result<R, LlmError>,
    ) -> Result<R, LlmError> {
        let key = self.key(kind, request);
        loop {
            self.waits.check()?;
            let pilot = match self.flights.board(&key) {
                Seat::Pilot(pilot) => pilot,
                Seat::Passenger(passenger) => match passenger.wait(&self.waits)? {
                    Some(outcome) => {
                        let reply = serde_json::from_str(&outcome?).expect("what this client wrote is what it reads");
                        self.ledger.count_cached();
                        return Ok(reply);
                    }
                    None => continue,
                },
            };
            if let Some((reply, text)) = self.cache.as_ref().and_then(|cache| cache.load::<R>(&key)) {
                self.ledger.count_cached();
                pilot.land(Ok(text.into()));
                return Ok(reply);
            }
            let outcome = ask().and_then(|reply| {
                let text = serde_json::to_string(&reply).expect("a reply of texts and finite numbers is JSON");
                if let Some(cache) = &self.cache {
                    cache.store(&key, &text)?;
                }
                Ok((reply, text))
            });
            return match outcome {
                Ok((reply, text)) => {
                    pilot.land(Ok(text.into()));
                    Ok(reply)
                }
                Err(error) => {
                    pilot.land(Err(error.clone()));
                    Err(error)
                }
            };
        }
    }

    /// Sends until there is a usable answer or no attempt left.
    fn send<R>(
        &self,
        call: &Call<'_>,
        key: &Key,
        read: &impl Fn(&[u8]) -> Result<(Usage, R), Unusable>,
    ) -> Result<R, LlmError> {
        let mut attempt = 0;
        loop {
            let again = match self.attempt(call, attempt, read)? {
                Ok(reply) => return Ok(reply),
                Err(again) => again,
            };
            // Drawn from the whole range (full jitter), so that requests that failed together do not come back together.
            let range = (self.config.backoff_s * 2f64.powi(attempt.min(60) as i32)).min(LONGEST_BACKOFF_S);
            let wait = Duration::from_secs_f64(range * key.fraction(attempt));
            let wait = wait.max(again.wish.unwrap_or_default().min(LONGEST_WISH));
            let end = Instant::now() + wait;
            if again.all {
                self.limits.hold_back(end);
            }
            attempt += 1;
            if attempt >= self.config.attempts {
                return Err(again.error);
            }
            self.ledger.count_wait(wait);
            self.waits.until(end)?;
        }
    }

    /// One attempt. The outer error is final.
    fn attempt<R>(
        &self,
        call: &Call<'_>,
        attempt: u32,
        read: &impl Fn(&[u8]) -> Result<(Usage, R), Unusable>,
    ) -> Result<Result<R, Again>, LlmError> {
        let mut promise = self.ledger.reserve(call.estimate, &self.waits)?;
        let estimated = call.estimate.tokens();
        let (slot, waited) = self.limits.pass(estimated, &self.waits)?;
        self.ledger.count_wait(waited);
        promise.send(attempt > 0);
        let outcome = match self.http.exchange(call.path, call.body.clone(), &self.waits) {
            Ok(outcome) => outcome,
            Err(stopped) => {
                // The server may go on with it.
                promise.settle(None);
                return Err(stopped);
            }
        };
        drop(slot);
        let server = self.http.server();
        let plain = |error| Ok(Err(Again { error, wish: None, all: false }));
        match outcome {
            Err(Failure { why, reached }) => {
                promise.settle((!reached).then(Usage::default));
                plain(LlmError::Unreachable { server, attempts: attempt + 1, last: why })
            }
            Ok(answer) if answer.status == 200 => match read(&answer.body) {
                Ok((usage, reply)) => {
                    self.limits.settle_tokens(estimated, usage.prompt_tokens + usage.reply_tokens);
                    promise.settle(Some(usage));
                    Ok(Ok(reply))
                }
                Err(unusable) => {
                    promise.settle(None);
                    match unusable {
                        Unusable::Unsupported(why) => Err(LlmError::Unsupported { server, why }),
                        Unusable::Final(why) => Err(LlmError::Schema { server, why }),
                        Unusable::Form(why) => plain(LlmError::Schema { server, why: self.http.clean(&why) }),
                    }
                }
            },
            Ok(answer) => {
                // A server asks no money for an error.
                promise.settle(Some(Usage::default()));
                self.limits.settle_tokens(estimated, 0);
                self.refusal(&answer, attempt)
            }
        }
    }

    /// What an answer with another status than 200 means.
    fn refusal<R>(&self, answer: &Answer, attempt: u32) -> Result<Result<R, Again>, LlmError> {
        let Answer { status, retry_after, redirect, body } = answer;
        let server = self.http.server();
        let said = wire::error_message(body).unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
        let message = match redirect {
            Some(target) => format!("it redirects to {target}; put the right address into `base_url`"),
            None => self.http.clean(&said),
        };
        let is_busy = matches!(status, 408 | 409 | 425 | 429) || (*status >= 500 && !matches!(status, 501 | 505));
        let is_final = match *status {
            429 => wire::is_out_of_money(body),
            500.. => wire::is_never(&message),
            _ => false,
        };
        if !is_busy || is_final {
            return Err(LlmError::Refused { server, status: *status, message });
        }
        let last = format!("status {status}: {message}");
        let error = LlmError::Unreachable { server, attempts: attempt + 1, last };
        // An overloaded server that names a time means all requests, as 429 does.
        let all = *status == 429 || (*status == 503 && retry_after.is_some());
        Ok(Err(Again { error, wish: *retry_after, all }))
    }
}

impl Endpoint for Client {
    fn model(&self) -> &str {
        &self.config.model
    }

    fn chat(&self, request: &Request) -> Result<Reply, LlmError> {
        let fail = |key: &'static str, why: &str| Err(LlmError::Config { key, why: why.to_owned() });
        if !(request.temperature.is_finite() && request.temperature >= 0.0) {
            return fail("temperature", "is negative or no number");
        }
        if request.max_tokens == 0 {
            return fail("max_tokens", "is 0, which some servers take for no limit");
        }
        let ask = || {
            let dialect = self.dialect()?;
            let call = Call {
                path: "chat/completions",
                body: Some(wire::chat_body(dialect, &self.config.model, request)),
                estimate: Estimate::of(wire::chat_bytes(request), request.max_tokens),
            };
            let read = |body: &[u8]| {
                let reply = wire::read_chat(body, request)?;
                Ok((reply.usage, reply))
            };
            self.send(&call, &self.key("chat", request), &read)
        };
        self.answer("chat", request, ask)
    }

    fn score_prompt(&self, request: &PromptRequest) -> Result<ScoredPrompt, LlmError> {
        let alignment = self.alignment()?;
        let raw = match alignment {
            Alignment::OwnPlace => self.raw_prompt(request)?,
            // A token's own score is only among the candidates of the place before, so the more of them the better.
            Alignment::NextPlace => self.raw_prompt(&PromptRequest { top: u8::MAX, ..request.clone() })?,
        };
        Ok(score::align(&raw, alignment, request.top))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, dialect, alignment, .. } = self;
        let mut shown = f.debug_struct("Client");
        shown.field("config", config).field("dialect", &dialect.get()).field("alignment", &alignment.get());
        shown.finish_non_exhaustive()
    }
}
