//! `interp` with a language model behind a server that misbehaves: the scores are those of a server that does not, and no answer is paid for twice.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use support::Place;

const KEY: &str = "sk-never-to-be-seen";
const HEADER: &str = "header-never-to-be-seen";

/// A chat server whose answers depend on the question alone, and which fails now and then where asked to.
struct Server {
    address: String,
    /// Good answers, by question.
    answered: Arc<Mutex<HashMap<String, usize>>>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn start(faulty: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let (answered, requests) = (Arc::<Mutex<HashMap<String, usize>>>::default(), Arc::<AtomicUsize>::default());
        let (seen, count) = (Arc::clone(&answered), Arc::clone(&requests));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, count) = (Arc::clone(&seen), Arc::clone(&count));
                thread::spawn(move || serve(stream.unwrap(), faulty, &seen, &count));
            }
        });
        Self { address, answered, requests }
    }

    fn good_answers(&self) -> Vec<usize> {
        self.answered.lock().unwrap().values().copied().collect()
    }
}

fn serve(mut stream: TcpStream, faulty: bool, answered: &Mutex<HashMap<String, usize>>, requests: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let send = |stream: &mut TcpStream, status: &str, more: &str, body: &str, length: usize| {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n{more}content-length: {length}\r\n\r\n"
        );
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    };
    if first.starts_with("GET") {
        let models = r#"{"data": [{"id": "m", "owned_by": "vllm"}]}"#;
        return send(&mut stream, "200 OK", "", models, models.len());
    }
    let fault = requests.fetch_add(1, Ordering::SeqCst);
    let question: Value = serde_json::from_slice(&body).unwrap();
    let reply = answer(&question);
    let whole = json!({
        "choices": [{ "message": { "role": "assistant", "content": reply }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 2 },
    })
    .to_string();
    if faulty && fault % 3 == 1 {
        return match fault / 3 % 7 {
            0 => send(&mut stream, "429 Too Many Requests", "retry-after: 0\r\n", "{}", 2),
            1 => send(&mut stream, "429 Too Many Requests", "", "slow down", 9),
            2 => send(&mut stream, "500 Internal Server Error", "", "{\"error\": \"oops\"}", 17),
            3 => send(&mut stream, "200 OK", "", &whole[..whole.len() / 2], whole.len()),
            4 => send(&mut stream, "200 OK", "", "<html>", 6),
            5 => send(&mut stream, "200 OK", "", "{\"choices\": []}", 15),
            _ => send(&mut stream, "200 OK", "", "{\"choices\": [{\"text\": 3}]}", 26),
        };
    }
    *answered.lock().unwrap().entry(question["messages"].to_string()).or_default() += 1;
    send(&mut stream, "200 OK", "", &whole, whole.len());
}

/// What a model might say: of the right form, and one in twenty times not.
fn answer(question: &Value) -> String {
    let messages = question["messages"].as_array().unwrap();
    let task = messages[0]["content"].as_str().unwrap();
    let asked = messages.last().unwrap()["content"].as_str().unwrap();
    let number = |text: &str| text.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let lines =
        asked.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()) && !line.contains(" pieces:"));
    if number(asked).is_multiple_of(20) {
        "I am only a model.".into()
    } else if task.contains("one digit for each piece") {
        lines.map(|line| (number(line) / 3 % 2).to_string()).collect::<Vec<_>>().join(",")
    } else if task.contains("does not belong") {
        (number(asked) % 4 + 1).to_string()
    } else if task.contains("one line for each token") {
        let lines = asked.lines().filter_map(|line| line.split_once('\t'));
        lines.map(|(i, token)| format!("{i}\t{}", number(token) % 11)).collect::<Vec<_>>().join("\n")
    } else {
        format!("words of kind {}", number(asked) % 100)
    }
}

fn place_with_dictionary() -> Place {
    let place = Place::new();
    let capture = ["--model", "toy", "--text", "toy-language", "--tokens", "40000", "--out", "store"];
    place.succeed(&[&["capture", "--hook", "blocks.1.hook_resid_post"][..], &capture].concat());
    let train = ["--ratio", "2", "--alpha", "0.004", "--steps", "600", "--batch", "256", "--out", "dictionary"];
    place.succeed(&[&["train", "--activations", "store"][..], &train].concat());
    place
}

fn settings(place: &Place, name: &str, server: &Server, more: &str) {
    let text = format!(
        "[server]\nbase_url = \"{}\"\nmodel = \"m\"\nbackoff_s = 0.01\nkey = {{ env = \"TEST_KEY\" }}\nheaders = {{ x-team = \"env:TEST_HEADER\" }}\n\
         concurrency = 4\n{more}[asking]\nresamples = 50\nintruder_trials = 3\n",
        server.address
    );
    place.write(name, &text);
}

const SCORERS: &str = "patterns,chat-simulation,detection,fuzzing,intruder";

/// Runs the command; its exit code and what it said.
fn interp(place: &Place, settings: &str, cache: &str, out: &str) -> (i32, String) {
    let text = ["--model", "toy", "--text", "toy-language", "--tokens", "40000", "--fragment", "32", "--first", "6"];
    let asked = ["--explainer", "windows", "--scorers", SCORERS, "--controls", "3", "--quiet-below", "0.3"];
    let places = ["--dictionary", "dictionary", "--llm", settings, "--llm-cache", cache, "--out", out];
    let mut command = place.command(&[&["interp"][..], &text, &asked, &places].concat());
    let output = command.env("TEST_KEY", KEY).env("TEST_HEADER", HEADER).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code().unwrap(), said)
}

fn records(place: &Place, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(place.path(out).join("explanations.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn holds(folder: &Path, secret: &str) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, secret);
        }
        fs::read(&path).unwrap().windows(secret.len()).any(|part| part == secret.as_bytes())
    })
}

#[test]
fn a_server_that_fails_and_a_budget_change_nothing_but_the_time() {
    let place = place_with_dictionary();
    let faulty = Server::start(true);
    settings(&place, "few.toml", &faulty, "budget = { requests = 40 }\n");
    let (code, said) = interp(&place, "few.toml", "cache-a", "few");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("the budget of 40 requests is spent") && said.contains("goes on from there"), "{said}");
    assert!(records(&place, "few").len() < 12);

    // What was answered is not asked again; what failed is.
    settings(&place, "all.toml", &faulty, "attempts = 12\n");
    let (code, said) = interp(&place, "all.toml", "cache-a", "all");
    assert_eq!(code, 0, "{said}");
    let counts = faulty.good_answers();
    assert!(counts.len() > 50 && counts.iter().all(|count| *count == 1), "{counts:?}");

    let before = faulty.requests.load(Ordering::SeqCst);
    assert_eq!(interp(&place, "all.toml", "cache-a", "again").0, 0);
    assert_eq!(faulty.requests.load(Ordering::SeqCst), before, "a second run asks nothing");

    let good = Server::start(false);
    settings(&place, "good.toml", &good, "");
    assert_eq!(interp(&place, "good.toml", "cache-b", "good").0, 0);
    assert_eq!(good.good_answers().len(), counts.len());
    for out in ["all", "again"] {
        assert_eq!(records(&place, out), records(&place, "good"));
        let read = |out: &str| fs::read(place.path(out).join("results.json")).unwrap();
        assert_eq!(read(out), read("good"));
    }

    // Every example and every prompt is there, what went wrong with a reply too.
    let records = records(&place, "good");
    let of = |control: Option<&str>| records.iter().filter(|r| r["control"].as_str() == control).collect::<Vec<_>>();
    let (plain, shuffled, random) = (of(None), of(Some("shuffled")), of(Some("random-directions")));
    assert_eq!((plain.len(), random.len()), (6, 3));
    assert!(!shuffled.is_empty() && shuffled.iter().all(|record| record["verdicts"].as_array().unwrap().len() == 4));
    let exchanges = |record: &Value| -> Vec<Value> {
        let of = |verdict: &Value| verdict["exchanges"].as_array().cloned().unwrap_or_default();
        record["verdicts"].as_array().unwrap().iter().flat_map(of).collect()
    };
    let all: Vec<Value> = records.iter().flat_map(exchanges).collect();
    let problems = all.iter().filter(|exchange| exchange["problem"].is_string()).count();
    assert!(problems > 0 && problems * 5 < all.len(), "{problems} of {}", all.len());
    let scored = plain.iter().find(|record| !exchanges(record).is_empty()).expect("a scored feature");
    assert!(scored["asked"]["messages"][0]["content"].as_str().unwrap().contains("You study"));
    let purposes = |purpose: &str| {
        scored["examples"].as_array().unwrap().iter().filter(|example| example["purpose"] == purpose).count()
    };
    assert!(purposes("explain") >= 20 && purposes("score-top") == 5 && purposes("score-random") == 5);
    // No document is on both sides.
    let documents = |explain: bool| -> Vec<u64> {
        let examples = scored["examples"].as_array().unwrap().iter();
        let of_side = examples.filter(|example| (example["purpose"] == "explain") == explain);
        of_side.map(|example| example["document"].as_u64().unwrap()).collect()
    };
    assert!(documents(true).iter().all(|document| !documents(false).contains(document)));

    for secret in [KEY, HEADER] {
        assert!(!holds(place.folder.path(), secret), "{secret} was written somewhere");
        assert!(!said.contains(secret));
    }

    // Explanations that were made elsewhere are scored as they are.
    let import = ["--explanations", "good/explanations-6.jsonl", "--scorers", "detection", "--json"];
    let six: Vec<String> = plain.iter().map(|record| format!("{record}\n")).collect();
    place.write("good/explanations-6.jsonl", &six.concat());
    let text = ["--model", "toy", "--text", "toy-language", "--tokens", "40000", "--fragment", "32", "--first", "6"];
    let places = ["--dictionary", "dictionary", "--llm", &good.address, "--llm-model", "m", "--quiet-below", "0.3"];
    let json = place.succeed(&[&["interp"][..], &text, &places, &import].concat());
    let features: Vec<Value> = serde_json::from_str(&json).unwrap();
    for (feature, record) in features.iter().zip(&plain) {
        assert_eq!(feature["explanation"].as_str().unwrap(), record["explanation"].as_str().unwrap_or_default());
    }
}

#[test]
fn mistakes_are_told_before_any_work() {
    let place = place_with_dictionary();
    let say = |more: &[&str], code: i32, words: &[&str]| {
        let at =
            ["interp", "--dictionary", "dictionary", "--model", "toy", "--text", "toy-language", "--tokens", "20000"];
        let said = place.fail(&[&at[..], &["--fragment", "32"], more].concat(), code);
        assert!(words.iter().all(|word| said.contains(word)), "{more:?}: {said}");
    };
    say(&["--scorers", "detection"], 1, &["detection asks a language model", "--llm"]);
    say(&["--explainer", "windows"], 1, &["the explainer asks a language model"]);
    say(&["--scorers", "telepathy"], 2, &["telepathy", "expected one of patterns"]);
    say(&["--scorers", "patterns,patterns"], 1, &["twice"]);
    say(&["--llm", "gpt-4"], 2, &["expected local:MODEL"]);
    say(&["--llm", "http://127.0.0.1:9/v1", "--scorers", "detection"], 1, &["--llm-model"]);
    say(&["--llm", "none.toml", "--scorers", "detection"], 1, &["none.toml"]);
    say(&["--llm", "local:toy"], 1, &["nothing asks it"]);
    say(&["--explanations", "none.jsonl"], 1, &["none.jsonl"]);
    say(&["--quiet-below", "1.5"], 1, &["--quiet-below 1.5"]);
    place.write(
        "key.toml",
        "[server]\nbase_url = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\nkey = { env = \"NO_SUCH_KEY\" }\n",
    );
    say(&["--llm", "key.toml", "--scorers", "detection"], 1, &["NO_SUCH_KEY"]);
    place.write("prompts/detection.toml", "name = \"x\"\nversion = 1\nneeds = []\n");
    say(&["--prompts", "prompts"], 1, &["detection.toml"]);
    // Nobody is there: a sentence, after a few attempts.
    let nobody = "[server]\nbase_url = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\nattempts = 2\nbackoff_s = 0.01\n";
    place.write("nobody.toml", nobody);
    let args = ["--llm", "nobody.toml", "--scorers", "fuzzing", "--first", "3"];
    say(&args, 1, &["http://127.0.0.1:9 gave no answer in 2 attempts"]);
}

#[test]
fn a_model_in_this_process_needs_no_server() {
    let place = place_with_dictionary();
    // Prompts do not fit into the toy model's context of 128 tokens: its refusals are counted, and no feature gets a score it has not earned.
    let args =
        ["interp", "--dictionary", "dictionary", "--model", "toy", "--text", "toy-language", "--tokens", "40000"];
    let more = [
        "--fragment",
        "32",
        "--first",
        "4",
        "--llm",
        "local:toy",
        "--scorers",
        "simulation,surprisal",
        "--controls",
        "2",
    ];
    place.succeed(&[&args[..], &more, &["--quiet-below", "0.3", "--out", "local"]].concat());
    for record in records(&place, "local") {
        for verdict in record["verdicts"].as_array().unwrap() {
            assert!(verdict["value"].is_null() && !verdict["unscored"].is_null(), "{verdict}");
        }
    }
    let results: Vec<Value> = serde_json::from_slice(&fs::read(place.path("local/results.json")).unwrap()).unwrap();
    let refused = results.iter().find(|row| row["metric"] == "refused_replies").expect("refusals are counted");
    assert_eq!(refused["value"].as_f64(), refused["n"].as_f64());
}

/// A cache as delphi writes it: latent `l` of 5..9 is active on token `50 + l` of the toy model's.
fn write_cache(folder: &Path, rows: u32, length: u32) {
    let mixed = |row: u32, at: u32| u64::from(row * 32 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let token = |row: u32, at: u32| (mixed(row, at) % 60) as u32 + 40;
    let (mut locations, mut activations, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for (row, at) in (0..rows).flat_map(|row| (0..length).map(move |at| (row, at))) {
        tokens.extend(i64::from(token(row, at)).to_le_bytes());
        let latent = token(row, at).wrapping_sub(50);
        if (5..9).contains(&latent) {
            [row, at, latent - 5].iter().for_each(|n| locations.extend(n.to_le_bytes()));
            activations.extend((1.0 + latent as f32).to_le_bytes());
        }
    }
    use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
    let n = activations.len() / 4;
    let tensor = |dtype, shape: Vec<usize>, data| TensorView::new(dtype, shape, data).unwrap();
    let tensors = [
        ("locations", tensor(Dtype::U32, vec![n, 3], &locations)),
        ("activations", tensor(Dtype::F32, vec![n], &activations)),
        ("tokens", tensor(Dtype::I64, vec![rows as usize, length as usize], &tokens)),
    ];
    fs::create_dir_all(folder).unwrap();
    serialize_to_file(tensors, None, &folder.join("5_8.safetensors")).unwrap();
    let config = json!({
        "dataset_repo": "made/up", "dataset_split": "train", "dataset_name": "", "dataset_column": "text", "batch_size": 4,
        "cache_ctx_len": length, "n_tokens": rows * length, "n_splits": 1, "model_name": "toy",
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn latents_that_delphi_cached_are_explained_and_scored() {
    let place = Place::new();
    write_cache(&place.path("cache-of-delphi/h.0"), 400, 32);
    let server = Server::start(false);
    let args = [
        "interp-cache",
        "cache-of-delphi/h.0",
        "--model",
        "toy",
        "--fragment",
        "16",
        "--scorers",
        "patterns,detection",
    ];
    let llm = ["--llm", &server.address, "--llm-model", "m", "--controls", "2", "--out", "out", "--json"];
    let json = place.succeed(&[&args[..], &llm].concat());
    let features: Vec<Value> = serde_json::from_str(&json).unwrap();
    let numbers: Vec<u64> = features.iter().map(|feature| feature["feature"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [5, 6, 7, 8]);
    for feature in &features {
        assert!(feature["score"].as_f64().unwrap() > 0.99, "one token explains it: {feature}");
    }
    let records = records(&place, "out");
    assert!(records.iter().all(|record| record["control"].is_null() || record["control"] == "shuffled"));
    assert!(records.iter().any(|record| record["control"] == "shuffled"));

    let say = |args: &[&str], words: &str| assert!(place.fail(args, 1).contains(words), "{args:?}");
    say(&["interp-cache", "nowhere", "--model", "toy"], "nowhere");
    say(&["interp-cache", "cache-of-delphi/h.0", "--model", "toy", "--features", "99"], "99");
    say(&["interp-cache", "cache-of-delphi/h.0", "--model", "toy", "--features", "5,5"], "twice");
    say(&["interp-cache", "cache-of-delphi/h.0", "--model", "toy", "--fragment", "0"], "0");
}
