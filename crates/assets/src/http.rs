//! One request with its redirects, on a thread of its own, so that whoever waits for it can be interrupted.

use std::io::Read;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use reqwest::blocking::{Client, Response};
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Url, redirect};

use crate::hub::HubConfig;

const MAX_REDIRECTS: usize = 10;
const CHUNK: usize = 1 << 17;

/// What to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) url: Url,
    /// Continue at this byte; 0 asks for everything.
    pub(crate) from: u64,
    /// Continue only if the file still has this entity tag.
    pub(crate) if_range: Option<String>,
}

/// The head of the final answer, with what the hub said on the way to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    /// The first byte that the body holds.
    pub(crate) start: u64,
    /// Length of the whole file.
    pub(crate) total: Option<u64>,
    /// Entity tag of the final answer.
    pub(crate) etag: Option<String>,
    /// sha256 of the whole file, where the hub itself gave it.
    pub(crate) sha256: Option<String>,
    /// The commit that the revision stands for, where the hub gave it.
    pub(crate) commit: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Message {
    Head(Head),
    Chunk(Vec<u8>),
    End,
    Failed(Failure),
}

#[derive(Debug)]
pub(crate) enum Failure {
    /// An answer that is neither 200 nor 206.
    Status { code: u16, retry_after: Option<u64>, hub_error: Option<String> },
    /// No answer, or one that broke off: trying again may help.
    Transport(String),
    /// Trying again will not help.
    Fatal(String),
}

/// The HTTP clients, made on first use.
#[derive(Debug)]
pub(crate) struct Http {
    config: HubConfig,
    outside: OnceLock<Result<Client, String>>,
    loopback: OnceLock<Result<Client, String>>,
}

impl Http {
    pub(crate) fn new(config: HubConfig) -> Arc<Self> {
        Arc::new(Self { config, outside: OnceLock::new(), loopback: OnceLock::new() })
    }

    /// Starts a request. Dropping the receiver abandons it.
    pub(crate) fn start(self: &Arc<Self>, request: Request) -> Receiver<Message> {
        let (sender, receiver) = sync_channel(8);
        let http = Arc::clone(self);
        thread::spawn(move || {
            if let Err(failure) = http.exchange(request, &sender) {
                let _ = sender.send(Message::Failed(failure));
            }
        });
        receiver
    }

    fn exchange(&self, request: Request, sender: &SyncSender<Message>) -> Result<(), Failure> {
        let mut head = Head::default();
        let mut response = self.follow(&request, &mut head)?;
        read_head(&response, request.from, &mut head)?;
        let (start, total) = (head.start, head.total);
        if sender.send(Message::Head(head)).is_err() {
            return Ok(());
        }
        let mut received = start;
        let mut buffer = vec![0; CHUNK];
        loop {
            match response.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    received += n as u64;
                    if sender.send(Message::Chunk(buffer[..n].to_vec())).is_err() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(Failure::Transport(describe(&error))),
            }
        }
        if total.is_some_and(|total| total != received) {
            let total = total.unwrap_or_default();
            return Err(Failure::Transport(format!("the connection ended after {received} of {total} bytes")));
        }
        let _ = sender.send(Message::End);
        Ok(())
    }

    /// Follows redirects by hand: the hub's own headers come with them, and the token must not go to another host.
    fn follow(&self, request: &Request, head: &mut Head) -> Result<Response, Failure> {
        let endpoint = Url::parse(&self.config.endpoint).map_err(|e| Failure::Fatal(e.to_string()))?;
        let mut url = request.url.clone();
        let mut only_endpoint = true;
        for _ in 0..=MAX_REDIRECTS {
            let at_endpoint = url.origin() == endpoint.origin();
            only_endpoint &= at_endpoint;
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if at_endpoint && let Some(token) = &self.config.token {
                if url.scheme() != "https" && !is_loopback(&url) {
                    return Err(Failure::Fatal("a token is set, but the endpoint is not https: not sending it".into()));
                }
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                    .map_err(|_| Failure::Fatal("the token holds characters that no header may hold".into()))?;
                value.set_sensitive(true);
                headers.insert(header::AUTHORIZATION, value);
            }
            if request.from > 0 {
                headers
                    .insert(header::RANGE, HeaderValue::from_str(&format!("bytes={}-", request.from)).expect("ascii"));
                if let Some(value) = request.if_range.as_deref().and_then(|tag| HeaderValue::from_str(tag).ok()) {
                    headers.insert(header::IF_RANGE, value);
                }
            }
            let client = self.client(&url)?;
            let response = client.get(url.clone()).headers(headers).send();
            let response = response.map_err(|error| {
                let fatal = error.is_builder();
                let text = format!("{}: {}", url.host_str().unwrap_or_default(), describe(&error.without_url()));
                if fatal { Failure::Fatal(text) } else { Failure::Transport(text) }
            })?;
            if at_endpoint {
                let sha256 = text(&response, "x-linked-etag").and_then(as_sha256);
                head.sha256 = head.sha256.take().or(sha256);
                head.commit = head.commit.take().or_else(|| text(&response, "x-repo-commit").map(str::to_owned));
                head.total = head.total.or_else(|| text(&response, "x-linked-size")?.parse().ok());
            }
            if !response.status().is_redirection() {
                // The tag of a server behind the hub may be any digest; the hub's own, if it looks like one, is the file's.
                if only_endpoint && head.sha256.is_none() {
                    head.sha256 = text(&response, "etag").and_then(as_sha256);
                }
                return Ok(response);
            }
            let location = text(&response, "location").and_then(|location| url.join(location).ok());
            let Some(next) = location.filter(|next| matches!(next.scheme(), "http" | "https")) else {
                return Err(Failure::Fatal(format!("status {} without a usable location", response.status().as_u16())));
            };
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(Failure::Fatal("redirected from https to http: not following".into()));
            }
            url = next;
        }
        Err(Failure::Fatal(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// A loopback address never goes through the proxy that the environment names.
    fn client(&self, url: &Url) -> Result<&Client, Failure> {
        let loopback = is_loopback(url);
        let cell = if loopback { &self.loopback } else { &self.outside };
        let client = cell.get_or_init(|| {
            // Fails only if the process has chosen another provider already, which does as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let builder = Client::builder()
                .user_agent(concat!("monosem/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .connect_timeout(self.config.connect_timeout)
                // In the blocking client this bounds each wait, not the whole transfer.
                .timeout(self.config.read_timeout);
            let builder = if loopback { builder.no_proxy() } else { builder };
            builder.build().map_err(|error| describe(&error))
        });
        client.as_ref().map_err(|why| Failure::Fatal(format!("no HTTPS client: {why}")))
    }
}

/// Reads the final answer's status and the place and length of its body.
fn read_head(response: &Response, from: u64, head: &mut Head) -> Result<(), Failure> {
    let code = response.status().as_u16();
    let announced = head.total;
    let length: Option<u64> = text(response, "content-length").and_then(|value| value.parse().ok());
    let total = match code {
        200 => length,
        206 => {
            let range = text(response, "content-range").and_then(parse_content_range);
            let Some((start, total)) = range.filter(|(start, _)| *start == from) else {
                return Err(Failure::Transport("the server sent another range than it was asked for".into()));
            };
            head.start = start;
            total.or(length.map(|length| start + length))
        }
        _ => {
            return Err(Failure::Status {
                code,
                retry_after: text(response, "retry-after").and_then(|value| value.trim().parse().ok()),
                hub_error: text(response, "x-error-code").map(str::to_owned),
            });
        }
    };
    if let (Some(total), Some(announced)) = (total, announced)
        && total != announced
    {
        return Err(Failure::Transport(format!("the hub announced {announced} bytes, the server sends {total}")));
    }
    head.total = total.or(announced);
    head.etag = text(response, "etag").map(str::to_owned);
    Ok(())
}

fn text<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// An entity tag that is a sha256, as the hub gives for large files.
fn as_sha256(tag: &str) -> Option<String> {
    let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
    (tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit())).then(|| tag.to_ascii_lowercase())
}

/// `bytes 5-9/10` or `bytes 5-9/*` -> first byte and whole length.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _end) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

fn is_loopback(url: &Url) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_standards_say() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(parse_content_range("items 5-9/10"), None);
        let digest = "ab".repeat(32);
        assert_eq!(as_sha256(&format!("\"{digest}\"")), Some(digest.clone()));
        assert_eq!(as_sha256(&format!("W/\"{}\"", digest.to_uppercase())), Some(digest));
        assert_eq!(as_sha256("\"0123\""), None);
    }

    #[test]
    fn a_client_with_the_platforms_roots_can_be_built() {
        let http = Http::new(HubConfig::default());
        http.client(&Url::parse("https://huggingface.co").unwrap()).unwrap();
    }
}
