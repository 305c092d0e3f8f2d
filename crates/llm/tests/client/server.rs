//! A small HTTP/1.1 server whose misbehaviour a test scripts, on a free port of this machine.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The path, or for a proxy the whole address.
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) at: Instant,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// What the last message of a conversation says.
    pub(crate) fn question(&self) -> String {
        let body = self.json();
        let messages = body["messages"].as_array().map_or(&[] as &[Value], Vec::as_slice);
        messages.last().and_then(|message| message["content"].as_str()).unwrap_or_default().to_owned()
    }
}

/// What the server does with a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Announce the whole body, send half of it, and cut the connection.
    pub(crate) cut: bool,
    /// Think for so long before answering.
    pub(crate) delay: Duration,
}

impl Answer {
    pub(crate) fn json(value: &Value) -> Self {
        Self { status: 200, body: value.to_string().into_bytes(), ..Self::default() }
    }

    /// A reply to a conversation, of 10 tokens read and 5 written.
    pub(crate) fn chat(text: &str) -> Self {
        Self::json(&json!({
            "id": "chat-1", "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        }))
    }

    pub(crate) fn error(status: u16, message: &str) -> Self {
        Self { status, ..Self::json(&json!({"error": {"message": message, "type": "some"}})) }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
}

/// A running server; it ends with the test process.
pub(crate) struct Server {
    /// Without a path.
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    most_at_once: Arc<AtomicUsize>,
}

impl Server {
    /// Serves with a closure that gets the request and how many requests with the same body came before it.
    pub(crate) fn start(handler: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { address, seen: Arc::default(), most_at_once: Arc::default() };
        let (log, most) = (Arc::clone(&server.seen), Arc::clone(&server.most_at_once));
        let counts: Arc<Mutex<HashMap<Vec<u8>, usize>>> = Arc::default();
        let (handler, at_once) = (Arc::new(handler), Arc::new(AtomicUsize::new(0)));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, most, counts) = (Arc::clone(&log), Arc::clone(&most), Arc::clone(&counts));
                let (handler, at_once) = (Arc::clone(&handler), Arc::clone(&at_once));
                thread::spawn(move || {
                    let mut reader = BufReader::new(&stream);
                    while let Some(request) = read_request(&mut reader) {
                        most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        let before = {
                            let mut counts = counts.lock().unwrap();
                            let count = counts.entry(request.body.clone()).or_default();
                            *count += 1;
                            *count - 1
                        };
                        log.lock().unwrap().push(request.clone());
                        let answer = handler(&request, before);
                        thread::sleep(answer.delay);
                        // Before the answer is out: whoever has it may send the next request at once.
                        at_once.fetch_sub(1, Ordering::SeqCst);
                        if send(&stream, &answer).is_err() || answer.cut {
                            break;
                        }
                    }
                });
            }
        });
        server
    }

    /// Answers each conversation with a hash of its last message.
    pub(crate) fn echo() -> Self {
        Self::start(|request, _| Answer::chat(&digest(&request.question())))
    }

    pub(crate) fn base_url(&self) -> String {
        format!("{}/v1", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Most requests that were under way at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }
}

pub(crate) fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let target = line.split(' ').nth(1)?.to_owned();
    let at = Instant::now();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { target, headers, body, at })
}

fn send(mut stream: &TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut bytes = format!("HTTP/1.1 {} Scripted\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("\r\n");
    let length = if answer.cut { answer.body.len() / 2 } else { answer.body.len() };
    let bytes = [bytes.as_bytes(), &answer.body[..length]].concat();
    stream.write_all(&bytes)?;
    if answer.cut { stream.shutdown(std::net::Shutdown::Both) } else { stream.flush() }
}
