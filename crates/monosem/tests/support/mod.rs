//! What the tests of the program share: running it, a tiny model with a tokenizer, and a hub on this machine.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of a module that is not a crate")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

/// A folder with everything a run needs and leaves: a cache of its own, so that nothing of the machine is seen.
pub struct Place {
    pub folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a name has a folder")).expect("a folder");
        fs::write(&path, text).expect("a file");
        path
    }

    /// The program, in this place, with nothing from outside.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_monosem"));
        command.current_dir(self.folder.path()).args(args);
        command.env("MONOSEM_CACHE", self.path("cache"));
        // The same on machines with a GPU.
        command.env("MONOSEM_LIBCUDA", "there-is-no-driver.so");
        command.env("HF_ENDPOINT", "http://127.0.0.1:9").env_remove("HF_TOKEN");
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
            command.env_remove(proxy);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }

    /// Runs it, expects success, and returns what it printed.
    pub fn succeed(&self, args: &[&str]) -> String {
        succeeded(&self.run(args))
    }

    /// Runs it, expects the exit code, and returns what it said.
    pub fn fail(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        said
    }

    /// All results of a run of the profile `name`.
    pub fn results(&self, out: &str, name: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path(out).join(name).join("results.json")).expect("results.json");
        serde_json::from_str(&text).expect("results.json is an array")
    }
}

pub fn succeeded(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/golden").join(name)
}

/// Words that are the tokens of the tiny models, which know 97 of them; the first is the end of text.
fn words() -> Vec<String> {
    std::iter::once("<|endoftext|>".to_owned()).chain((1..97).map(|i| format!("w{i}"))).collect()
}

/// A `tokenizer.json` of one token per word.
pub fn tokenizer_json() -> String {
    let vocab: BTreeMap<String, usize> = words().into_iter().enumerate().map(|(i, word)| (word, i)).collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{
            "id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<|endoftext|>" },
    })
    .to_string()
}

/// JSON lines of documents in which words follow each other with some regularity.
pub fn documents(n: usize, length: usize) -> String {
    let words = words();
    let mut state = 1_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut lines = String::new();
    for _ in 0..n {
        let mut at = draw(96);
        let text: Vec<&str> = (0..length)
            .map(|_| {
                at = if draw(3) == 0 { draw(96) } else { (at * 7 + 3) % 96 };
                words[usize::try_from(at).expect("a small number") + 1].as_str()
            })
            .collect();
        lines += &(serde_json::json!({ "text": text.join(" ") }).to_string() + "\n");
    }
    lines
}

/// A folder in Hugging Face layout: one of the golden models with a tokenizer.
pub fn model_folder(place: &Place, golden_name: &str) -> PathBuf {
    let folder = place.path(&format!("models/{golden_name}"));
    fs::create_dir_all(&folder).expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(golden_name).join(file), folder.join(file)).expect("a golden file");
    }
    fs::write(folder.join("tokenizer.json"), tokenizer_json()).expect("a file");
    folder
}

/// A hub on this machine: paths to contents; what was asked for is recorded.
pub struct Hub {
    pub address: String,
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that went away is its own business.
                let _ = answer(stream, &files, &log);
            }
        });
        Self { address, asked }
    }

    /// A hub that has a golden model as `tiny/NAME` and a text as `datasets/tiny/text:text.jsonl`.
    pub fn with_model(name: &str) -> Self {
        let mut files = BTreeMap::new();
        for file in ["config.json", "model.safetensors"] {
            let content = fs::read(golden(name).join(file)).expect("a golden file");
            files.insert(format!("/tiny/{name}/resolve/main/{file}"), content);
        }
        files.insert(format!("/tiny/{name}/resolve/main/tokenizer.json"), tokenizer_json().into_bytes());
        files.insert("/datasets/tiny/text/resolve/main/text.jsonl".into(), documents(80, 120).into_bytes());
        Self::start(files)
    }
}

fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let mut parts = request.split_whitespace();
    let (method, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    log.lock().expect("no panic while it was held").push(path.to_owned());
    let found = files.get(path);
    let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
    let body: &[u8] = found.map_or(b"", Vec::as_slice);
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len())?;
    if method != "HEAD" {
        stream.write_all(body)?;
    }
    stream.flush()
}
