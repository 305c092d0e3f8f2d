//! Replies kept under the hash of all that they depend on.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::limits::lock;
use crate::waits::Waits;
use crate::{LlmError, PromptRequest, Request};

/// Changes whenever replies kept before would be read wrongly.
const FORMAT: u32 = 1;

/// What an answer depends on. Neither the key nor any header nor the dialect is part of it: they say how to ask, not what.
#[derive(Serialize)]
struct Question<'a, Q> {
    format: u32,
    kind: &'a str,
    model: &'a str,
    base_url: &'a str,
    request: &'a Q,
}

/// The canonical form of a question, and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// JSON with its fields in a fixed order.
    question: String,
    hash: String,
}

/// A part of a question that equal requests write alike.
pub(crate) trait Canonical: Serialize + Clone {
    /// Equal values of another spelling become one.
    fn canonical(&self) -> Self {
        self.clone()
    }
}

impl Canonical for Request {
    fn canonical(&self) -> Self {
        // Turns -0 into 0, which equals it.
        Self { temperature: self.temperature + 0.0, ..self.clone() }
    }
}

impl Canonical for PromptRequest {}

impl Canonical for () {}

impl Key {
    pub(crate) fn new<Q: Canonical>(kind: &str, model: &str, base_url: &str, request: &Q) -> Self {
        let request = &request.canonical();
        let question = Question { format: FORMAT, kind, model, base_url, request };
        let question = serde_json::to_string(&question).expect("a request of texts and numbers is JSON");
        let hash = blake3::hash(question.as_bytes()).to_hex().to_string();
        Self { question, hash }
    }

    /// A number in [0, 1) that this question and `n` alone determine: jitter needs no generator.
    pub(crate) fn fraction(&self, n: u32) -> f64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.hash.as_bytes()).update(&n.to_le_bytes());
        let bytes = hasher.finalize();
        let low = bytes.as_bytes()[..4].iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
        f64::from(low) / 4_294_967_296.0
    }
}

/// A folder of replies, one file each.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    files: AtomicU64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<R> {
    /// For people; what was asked is known when a reply is looked up.
    #[allow(dead_code)]
    question: IgnoredAny,
    blake3: String,
    reply: R,
}

/// Over the question and the reply, so that no damaged file passes for a reply.
fn checksum(question: &str, reply: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(question.as_bytes()).update(b"\n").update(reply.as_bytes());
    hasher.finalize().to_hex().to_string()
}

impl Cache {
    pub(crate) fn open(folder: &Path) -> Result<Self, LlmError> {
        fs::create_dir_all(folder).map_err(|error| fault(folder, "cannot be made", &error))?;
        Ok(Self { folder: folder.to_owned(), files: AtomicU64::new(0) })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(&key.hash[..2]).join(format!("{}.json", key.hash))
    }

    /// A reply as JSON. A file that cannot be read, is cut or is damaged counts as none, and is replaced by the next reply.
    pub(crate) fn load<R: Serialize + DeserializeOwned>(&self, key: &Key) -> Option<(R, String)> {
        let bytes = fs::read(self.path(key)).ok()?;
        let entry: Entry<R> = serde_json::from_slice(&bytes).ok()?;
        let reply = serde_json::to_string(&entry.reply).ok()?;
        (checksum(&key.question, &reply) == entry.blake3).then_some((entry.reply, reply))
    }

    /// Writes beside the place and renames, so that no reader ever sees half of a reply.
    pub(crate) fn store(&self, key: &Key, reply: &str) -> Result<(), LlmError> {
        let path = self.path(key);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(|error| fault(folder, "cannot be made for a reply", &error))?;
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let hidden = folder.join(format!(".{}-{}-{number}.tmp", &key.hash[..16], std::process::id()));
        let question = &key.question;
        let text =
            format!("{{\"question\":{question},\"blake3\":\"{}\",\"reply\":{reply}}}\n", checksum(question, reply));
        let written = fs::File::create(&hidden)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&hidden, &path));
        written.map_err(|error| {
            let _ = fs::remove_file(&hidden);
            fault(
                &path,
                "cannot be written, so a reply that was paid for is lost; make room or name another folder",
                &error,
            )
        })
    }
}

fn fault(path: &Path, what: &str, error: &std::io::Error) -> LlmError {
    LlmError::Cache { path: path.to_owned(), why: format!("{what}: {error}") }
}

/// A reply as JSON, or why there is none.
type Outcome = Result<Arc<str>, LlmError>;

#[derive(Debug, Default)]
enum Flight {
    #[default]
    UnderWay,
    Landed(Outcome),
    /// Whoever asked panicked.
    Lost,
}

type Shared = Arc<(Mutex<Flight>, Condvar)>;

/// Questions under way: a second thread with the same one waits for the first one's answer.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<String, Shared>>);

/// What a thread with a question is to do.
pub(crate) enum Seat<'a> {
    /// Ask, and tell the others.
    Pilot(Pilot<'a>),
    /// Another thread asks.
    Passenger(Passenger),
}

pub(crate) struct Pilot<'a> {
    flights: &'a Flights,
    hash: String,
    flight: Shared,
}

pub(crate) struct Passenger(Shared);

impl Flights {
    pub(crate) fn board(&self, key: &Key) -> Seat<'_> {
        let mut flights = lock(&self.0);
        if let Some(flight) = flights.get(&key.hash) {
            return Seat::Passenger(Passenger(Arc::clone(flight)));
        }
        let flight = Shared::default();
        flights.insert(key.hash.clone(), Arc::clone(&flight));
        Seat::Pilot(Pilot { flights: self, hash: key.hash.clone(), flight })
    }
}

impl Pilot<'_> {
    pub(crate) fn land(self, outcome: Outcome) {
        *lock(&self.flight.0) = Flight::Landed(outcome);
        // Dropping wakes the passengers.
    }
}

impl Drop for Pilot<'_> {
    fn drop(&mut self) {
        lock(&self.flights.0).remove(&self.hash);
        let mut flight = lock(&self.flight.0);
        if matches!(*flight, Flight::UnderWay) {
            *flight = Flight::Lost;
        }
        drop(flight);
        self.flight.1.notify_all();
    }
}

impl Passenger {
    /// The other thread's outcome; `None` if it is lost, and one has to ask oneself.
    pub(crate) fn wait(self, waits: &Waits) -> Result<Option<Outcome>, LlmError> {
        let (flight, landed) = &*self.0;
        let mut flight = lock(flight);
        loop {
            match &*flight {
                Flight::UnderWay => flight = waits.on(landed, flight)?,
                Flight::Landed(outcome) => return Ok(Some(outcome.clone())),
                Flight::Lost => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Message, Role};

    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec(any::<char>(), 0..12).prop_map(String::from_iter)
    }

    fn message() -> impl Strategy<Value = Message> {
        let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Assistant)];
        (role, text()).prop_map(|(role, content)| Message { role, content })
    }

    fn request() -> impl Strategy<Value = Request> {
        let numbers = (any::<u32>(), -2.0f32..2.0, any::<u64>(), any::<u8>());
        (proptest::collection::vec(message(), 0..4), numbers, text()).prop_map(
            |(messages, (max_tokens, temperature, seed, top_logprobs), source)| Request {
                messages,
                max_tokens,
                temperature,
                seed,
                top_logprobs,
                source,
            },
        )
    }

    fn key(request: &Request) -> Key {
        Key::new("chat", "m", "http://host/v1", request)
    }

    proptest! {
        #[test]
        fn equal_requests_have_equal_keys_and_others_others(a in request(), b in request()) {
            prop_assert_eq!(key(&a), key(&a.clone()));
            prop_assert_eq!(a == b, key(&a).hash == key(&b).hash);
            // What was asked can be told from the key's text.
            let question: serde_json::Value = serde_json::from_str(&key(&a).question).unwrap();
            let read: Request = serde_json::from_value(question["request"].clone()).unwrap();
            prop_assert_eq!(read, a);
        }

        #[test]
        fn each_field_counts(a in request(), extra in message(), at in any::<prop::sample::Index>()) {
            let mut changed = vec![
                Request { max_tokens: a.max_tokens ^ 1, ..a.clone() },
                Request { temperature: a.temperature + 0.25, ..a.clone() },
                Request { seed: a.seed ^ 1, ..a.clone() },
                Request { top_logprobs: a.top_logprobs ^ 1, ..a.clone() },
                Request { source: format!("{}x", a.source), ..a.clone() },
                Request { messages: a.messages.iter().cloned().chain([extra]).collect(), ..a.clone() },
            ];
            if !a.messages.is_empty() {
                let at = at.index(a.messages.len());
                let mut longer = a.clone();
                longer.messages[at].content.push('"');
                let mut other = a.clone();
                other.messages[at].role = if other.messages[at].role == Role::User { Role::System } else { Role::User };
                changed.extend([longer, other]);
            }
            for other in &changed {
                prop_assert_ne!(&key(&a).hash, &key(other).hash);
            }
            let one = key(&a);
            for other in [
                Key::new("echo", "m", "http://host/v1", &a),
                Key::new("chat", "n", "http://host/v1", &a),
                Key::new("chat", "m", "http://host/v2", &a),
            ] {
                prop_assert_ne!(&one.hash, &other.hash);
            }
        }

        #[test]
        fn prompts_have_their_own_keys(a in text(), b in text(), from in 0_usize..99, top in any::<u8>(), source in text()) {
            let a = PromptRequest { text: a, from, top, among: vec!["0".into()], source };
            let key = |request: &PromptRequest| Key::new("echo", "m", "u", request);
            prop_assert_eq!(a.text == b, key(&a) == key(&PromptRequest { text: b, ..a.clone() }));
            for other in [
                PromptRequest { from: a.from + 1, ..a.clone() },
                PromptRequest { top: a.top ^ 1, ..a.clone() },
                PromptRequest { among: Vec::new(), ..a.clone() },
                PromptRequest { among: vec!["0".into(), "1".into()], ..a.clone() },
                PromptRequest { source: format!("{}x", a.source), ..a.clone() },
            ] {
                prop_assert_ne!(key(&a), key(&other));
            }
        }

        #[test]
        fn a_reply_comes_back_to_the_last_bit(value in any::<f64>().prop_filter("finite", |v| v.is_finite()), text in text()) {
            let folder = tempfile::tempdir().unwrap();
            let cache = Cache::open(folder.path()).unwrap();
            let key = Key::new("chat", "m", "u", &());
            let reply = (text, value);
            cache.store(&key, &serde_json::to_string(&reply).unwrap()).unwrap();
            prop_assert_eq!(cache.load::<(String, f64)>(&key).unwrap().0, reply);
        }
    }

    #[test]
    fn zero_has_one_key() {
        let zero = Request {
            messages: Vec::new(),
            max_tokens: 1,
            temperature: 0.0,
            seed: 0,
            top_logprobs: 0,
            source: String::new(),
        };
        assert_eq!(key(&zero), key(&Request { temperature: -0.0, ..zero.clone() }));
    }

    #[test]
    fn a_lost_flight_sets_its_passengers_free() {
        let (flights, key) = (Flights::default(), Key::new("chat", "m", "u", &()));
        let Seat::Pilot(pilot) = flights.board(&key) else { panic!("the first one asks") };
        let Seat::Passenger(passenger) = flights.board(&key) else { panic!("the second one waits") };
        drop(pilot);
        assert!(passenger.wait(&Waits::default()).unwrap().is_none());
        assert!(matches!(flights.board(&key), Seat::Pilot(_)));
    }
}
