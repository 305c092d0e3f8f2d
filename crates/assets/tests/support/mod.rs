//! A small HTTP server whose misbehaviour a test scripts, on a free port of this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// First byte of a `Range: bytes=N-`.
    pub(crate) fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What the server does with a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The length to announce, if another than the body's.
    pub(crate) announce: Option<usize>,
    /// Send only so many bytes of the body, then cut the connection.
    pub(crate) cut_after: Option<usize>,
    /// Send the body in pieces of this length with a pause between them.
    pub(crate) slow: Option<(usize, Duration)>,
    /// Fall silent for so long after `cut_after` bytes, instead of cutting.
    pub(crate) silence: Option<Duration>,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// The whole body, or the part that the request's range asks for if its `If-Range` fits the tag.
    pub(crate) fn file(body: &[u8], etag: &str, request: &Seen) -> Self {
        let full = Self::status(200).with("ETag", etag);
        match request.from() {
            Some(from) if request.header("if-range").is_none_or(|tag| tag == etag) => Self {
                status: 206,
                body: body[from..].to_vec(),
                ..full.with("Content-Range", &format!("bytes {from}-{}/{}", body.len() - 1, body.len()))
            },
            _ => Self { body: body.to_vec(), ..full },
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A running server; it ends with the test process.
pub(crate) struct Server {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Serves with a closure that gets the request and how many requests for the same path came before it.
    pub(crate) fn start(handler: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let (log, handler) = (Arc::clone(&seen), Arc::new(handler));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                thread::spawn(move || {
                    let Some(request) = read_request(&stream) else { return };
                    let before = {
                        let mut log = log.lock().unwrap();
                        let before = log.iter().filter(|other| other.path == request.path).count();
                        log.push(request.clone());
                        before
                    };
                    let _ = send(stream, &handler(&request, before));
                });
            }
        });
        Self { address, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests whose path ends like this.
    pub(crate) fn seen_for(&self, end: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|request| request.path.ends_with(end)).collect()
    }
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Some(Seen { path, headers })
}

fn send(mut stream: TcpStream, answer: &Answer) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {} Scripted\r\nConnection: close\r\n", answer.status)?;
    write!(stream, "Content-Length: {}\r\n", answer.announce.unwrap_or(answer.body.len()))?;
    for (name, value) in &answer.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    let body = &answer.body[..answer.cut_after.unwrap_or(answer.body.len()).min(answer.body.len())];
    let (piece, pause) = answer.slow.unwrap_or((body.len().max(1), Duration::ZERO));
    for piece in body.chunks(piece) {
        stream.write_all(piece)?;
        stream.flush()?;
        thread::sleep(pause);
    }
    if let Some(silence) = answer.silence {
        thread::sleep(silence);
    }
    Ok(())
}
