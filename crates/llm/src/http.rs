//! One exchange with the server, on a thread of its own, so that whoever waits for it can be interrupted.

use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use reqwest::blocking::{Client, Response};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Proxy, Url, redirect};

use crate::config::is_safe;
use crate::secret::Scrubber;
use crate::waits::{SLICE, Waits};
use crate::{ClientConfig, LlmError};

/// Longer answers are refused: a reply is text, and this is more than any.
const MOST_BYTES: u64 = 1 << 28;

/// What came back, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// How long the server asks to be left alone.
    pub(crate) retry_after: Option<Duration>,
    /// Where a redirect leads: scheme, host and port.
    pub(crate) redirect: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// Why nothing whole came back.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) why: String,
    /// Whether the server may have worked on the request, so that it may have cost something.
    pub(crate) reached: bool,
}

/// The connection to one server.
pub(crate) struct Http {
    client: Client,
    base: Url,
    headers: HeaderMap,
    timeout: Duration,
    scrubber: Scrubber,
}

impl Http {
    /// Looks up keys, headers and proxies, and makes the client.
    pub(crate) fn new(config: &ClientConfig) -> Result<Arc<Self>, LlmError> {
        let base = config.url()?;
        let mut secrets = Vec::new();
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let fail = |why: &str| LlmError::Config { key: "headers", why: format!("`{name}` {why}") };
            let value = value.reveal("headers")?;
            let key: HeaderName = name.parse().map_err(|_| fail("is no name of a header"))?;
            headers.insert(key, hidden(&value).ok_or_else(|| fail("holds characters that no header may hold"))?);
            secrets.push(value);
        }
        if let Some(key) = config.key.read()? {
            if !is_safe(&base) {
                let why = "`base_url` is plain http and another machine: a key is not sent there; use https".into();
                return Err(LlmError::Key { why });
            }
            let value = hidden(&format!("Bearer {key}"))
                .ok_or_else(|| LlmError::Key { why: "it holds characters that no header may hold".into() })?;
            headers.insert(header::AUTHORIZATION, value);
            secrets.push(key);
        }
        // Fails only if the process has chosen another provider already, which does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let timeout = Duration::from_secs_f64(config.timeout_s);
        let builder = Client::builder()
            .user_agent(concat!("monosem/", env!("CARGO_PKG_VERSION")))
            // A redirected POST would lose its body or its key; the address in the settings is the one to put right.
            .redirect(redirect::Policy::none())
            .connect_timeout(timeout.min(Duration::from_secs(30)))
            .timeout(timeout);
        let proxy = config.proxy.as_ref().map(|proxy| proxy.reveal("proxy")).transpose()?;
        let builder = match proxy.as_deref() {
            _ if is_loopback(&base) => builder.no_proxy(),
            Some("none") => builder.no_proxy(),
            Some(text) => {
                let bad = |_| LlmError::Config { key: "proxy", why: "is no address of a proxy".into() };
                if let Ok(url) = Url::parse(text) {
                    secrets.push(url.password().unwrap_or_default().to_owned());
                }
                builder.proxy(Proxy::all(text).map_err(bad)?)
            }
            None => builder,
        };
        let server = origin(&base);
        let client = builder.build().map_err(|error| LlmError::Unsupported {
            server,
            why: format!("no HTTPS client can be made: {}", describe(&error.without_url())),
        })?;
        Ok(Arc::new(Self { client, base, headers, timeout, scrubber: Scrubber::new(secrets) }))
    }

    /// Scheme, host and port.
    pub(crate) fn server(&self) -> String {
        origin(&self.base)
    }

    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// Takes secrets out of a text from outside, and cuts it.
    pub(crate) fn clean(&self, text: &str) -> String {
        self.scrubber.clean(text)
    }

    /// Sends a body, or asks without one, and waits for the whole answer.
    ///
    /// The outer error is [`LlmError::Stopped`]; the exchange is then abandoned to its own time limit.
    pub(crate) fn exchange(
        self: &Arc<Self>,
        path: &str,
        body: Option<Vec<u8>>,
        waits: &Waits,
    ) -> Result<Result<Answer, Failure>, LlmError> {
        let end = Instant::now() + self.timeout;
        let (sender, receiver) = sync_channel(1);
        let (http, path) = (Arc::clone(self), path.to_owned());
        let spawned = thread::Builder::new().name("monosem-llm".into()).spawn(move || {
            let _ = sender.send(http.blocking(&path, body, end));
        });
        if let Err(error) = spawned {
            return Ok(Err(Failure { why: format!("no thread for a request: {error}"), reached: false }));
        }
        loop {
            waits.check()?;
            match receiver.recv_timeout(SLICE) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Err(Failure { why: "the thread of a request ended early".into(), reached: true }));
                }
                // The client's own limit is per wait; a server that sends a byte now and then would never meet it.
                Err(RecvTimeoutError::Timeout) if Instant::now() > end + SLICE => {
                    return Ok(Err(Failure { why: self.too_late(), reached: true }));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn too_late(&self) -> String {
        format!("no whole answer within {} s", self.timeout.as_secs_f64())
    }

    fn blocking(&self, path: &str, body: Option<Vec<u8>>, end: Instant) -> Result<Answer, Failure> {
        let url = format!("{}/{path}", self.base.as_str().trim_end_matches('/'));
        let request = match body {
            Some(body) => self.client.post(url).header(header::CONTENT_TYPE, "application/json").body(body),
            None => self.client.get(url),
        };
        let response = request.headers(self.headers.clone()).send().map_err(|error| {
            let (reached, late) = (!error.is_connect() && !error.is_builder(), error.is_timeout());
            let why = if late && reached { self.too_late() } else { describe(&error.without_url()) };
            Failure { why: self.clean(&why), reached }
        })?;
        let status = response.status().as_u16();
        let retry_after = header_text(&response, "retry-after").and_then(|text| retry_after(text, SystemTime::now()));
        let target = header_text(&response, "location").and_then(|location| self.base.join(location).ok());
        let redirect = target.filter(|_| response.status().is_redirection()).map(|url| origin(&url));
        let body = self.read(response, end)?;
        Ok(Answer { status, retry_after, redirect, body })
    }

    fn read(&self, mut response: Response, end: Instant) -> Result<Vec<u8>, Failure> {
        let fail = |why: String| Err(Failure { why: self.clean(&why), reached: true });
        let mut body = Vec::new();
        let mut piece = vec![0; 1 << 16];
        loop {
            match response.read(&mut piece) {
                Ok(0) => return Ok(body),
                Ok(n) => body.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return fail(format!("the answer broke off: {}", describe(&error))),
            }
            if Instant::now() > end {
                return fail(self.too_late());
            }
            if body.len() as u64 > MOST_BYTES {
                return fail(format!("the answer is longer than {MOST_BYTES} bytes"));
            }
        }
    }
}

fn hidden(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn header_text<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The error with its causes: the outermost one alone says little.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// `120`, `0.5` or `Wed, 21 Oct 2026 07:28:00 GMT` -> how long to wait.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(http_date(text)?);
    Some(at.duration_since(now).unwrap_or_default())
}

/// Seconds since 1970 of a date in the one form that HTTP still allows to be sent.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split_once(", ")?.1.split([' ', ':']).collect();
    let [day, month, year, hour, minute, second, "GMT"] = parts[..] else { return None };
    let month = 1 + MONTHS.iter().position(|name| *name == month)? as u64;
    let number = |text: &str| text.parse::<u64>().ok();
    let (day, year) = (number(day)?, number(year).filter(|year| (1970..10_000).contains(year))?);
    let (hour, minute, second) = (number(hour)?, number(minute)?, number(second)?);
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days by counting years from March, so that a leap day is the last of its year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_in_both_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        assert_eq!(http_date("Sunday, 06-Nov-94 08:49:37 GMT"), None);
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:57 GMT", now), Some(Duration::from_secs(20)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("-3", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("NaN", now), Some(Duration::ZERO));
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for (text, is) in [
            ("http://localhost:1/v1", true),
            ("http://127.3.2.1/v1", true),
            ("http://[::1]:8/v1", true),
            ("http://localhost.example.com/v1", false),
            ("http://10.0.0.1/v1", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(text).unwrap()), is, "{text}");
        }
    }
}
