//! The hub's protocol against a local server that misbehaves in the ways that real ones do. No public network.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use monosem_assets::{AssetError, Assets, HubConfig, ModelSource, Progress, Secret, TextSource};
use sha2::{Digest, Sha256};
use support::{Answer, Seen, Server};

const CONFIG: &[u8] = br#"{"model_type": "gpt_neox"}"#;
const TOKENIZER: &[u8] = br#"{"version": "1.0"}"#;

/// Bytes that begin like a safetensors file.
fn weights() -> Vec<u8> {
    let mut bytes = 2u64.to_le_bytes().to_vec();
    bytes.extend(b"{}");
    bytes.extend((0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8));
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A hub with one small repository; `special` may answer first.
fn hub(special: impl Fn(&Seen, usize) -> Option<Answer> + Send + Sync + 'static) -> Server {
    Server::start(move |request, before| {
        if let Some(answer) = special(request, before) {
            return answer;
        }
        match request.path.rsplit('/').next().unwrap() {
            "config.json" => Answer::file(CONFIG, "\"c\"", request),
            "tokenizer.json" => Answer::file(TOKENIZER, "\"t\"", request),
            "model.safetensors" => Answer::file(&weights(), "\"w\"", request),
            _ => Answer::status(404).with("X-Error-Code", "EntryNotFound"),
        }
    })
}

fn config(server: &Server) -> HubConfig {
    HubConfig {
        endpoint: server.address.clone(),
        attempts: 3,
        read_timeout: Duration::from_millis(400),
        backoff: Duration::from_millis(5),
        max_wait: Duration::from_millis(50),
        ..HubConfig::default()
    }
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn source() -> ModelSource {
    "hf:owner/name".parse().unwrap()
}

fn get(cache: &Path, server: &Server) -> Result<std::path::PathBuf, AssetError> {
    Assets::new(cache, config(server)).model(&source(), &mut go_on)
}

/// Fetches the model in a fresh cache and compares the weights.
fn get_whole(server: &Server) {
    let cache = tempfile::tempdir().unwrap();
    let folder = get(cache.path(), server).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert!(!folder.join("model.safetensors.part").exists());
}

#[test]
fn a_model_is_fetched_once() {
    let server = hub(|_, _| None);
    let cache = tempfile::tempdir().unwrap();
    let folder = get(cache.path(), &server).unwrap();
    assert_eq!(folder, cache.path().join("hub/models/owner/name/main"));
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), CONFIG);
    assert_eq!(server.seen().len(), 4, "three files and the optional one");
    assert_eq!(get(cache.path(), &server).unwrap(), folder);
    assert_eq!(server.seen().len(), 4, "the second call needs no network");

    // A touched file is hashed again, a damaged one fetched again, each without a full download.
    let path = folder.join("model.safetensors");
    fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    get(cache.path(), &server).unwrap();
    assert_eq!(server.seen().len(), 4);
    let mut bytes = weights();
    bytes[1000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    get(cache.path(), &server).unwrap();
    assert_eq!(fs::read(&path).unwrap(), weights());
    fs::write(&path, &bytes[..500]).unwrap();
    get(cache.path(), &server).unwrap();
    assert_eq!(fs::read(&path).unwrap(), weights());
    assert_eq!(server.seen_for("/config.json").len(), 1);
}

#[test]
fn shards_follow_the_index_and_stay_in_the_folder() {
    let index =
        br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let server = hub(move |request, _| match request.path.rsplit('/').next().unwrap() {
        "model.safetensors" => Some(Answer::status(404).with("X-Error-Code", "EntryNotFound")),
        "model.safetensors.index.json" => Some(Answer::file(index, "\"i\"", request)),
        "model-00001-of-00002.safetensors" | "model-00002-of-00002.safetensors" => {
            Some(Answer::file(&weights(), "\"s\"", request))
        }
        _ => None,
    });
    let cache = tempfile::tempdir().unwrap();
    let folder = get(cache.path(), &server).unwrap();
    assert!(folder.join("model-00002-of-00002.safetensors").is_file());

    let evil = hub(|request, _| match request.path.rsplit('/').next().unwrap() {
        "model.safetensors" => Some(Answer::status(404)),
        "model.safetensors.index.json" => {
            Some(Answer::file(br#"{"weight_map": {"a": "../../escape"}}"#, "\"i\"", request))
        }
        _ => None,
    });
    let error = get(tempfile::tempdir().unwrap().path(), &evil).unwrap_err();
    assert!(matches!(&error, AssetError::Corrupt { why, .. } if why.contains("../../escape")), "{error}");
}

#[test]
fn redirects_are_followed_without_the_token() {
    let elsewhere = Server::start(|request, _| Answer::file(&weights(), "\"cdn\"", request));
    let target = format!("{}/signed?key=hidden", elsewhere.address);
    let server = hub(move |request, _| {
        request.path.ends_with("model.safetensors").then(|| {
            Answer::status(302)
                .with("Location", &target)
                .with("X-Linked-ETag", &format!("\"{}\"", sha256(&weights())))
                .with("X-Linked-Size", &weights().len().to_string())
                .with("X-Repo-Commit", "0123abcd")
        })
    });
    let cache = tempfile::tempdir().unwrap();
    let assets = Assets::new(cache.path(), HubConfig { token: Some(Secret::new("hf_secret")), ..config(&server) });
    let folder = assets.model(&source(), &mut go_on).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(server.seen_for("/config.json")[0].header("authorization"), Some("Bearer hf_secret"));
    assert_eq!(elsewhere.seen().len(), 1);
    assert_eq!(elsewhere.seen()[0].header("authorization"), None, "another port is another host");
    assert!(!format!("{assets:?}").contains("hf_secret"));
}

#[test]
fn all_files_come_from_the_commit_of_the_first() {
    let server = hub(|request, _| {
        request
            .path
            .ends_with("/main/config.json")
            .then(|| Answer::file(CONFIG, "\"c\"", request).with("X-Repo-Commit", "c0ffee"))
    });
    get_whole(&server);
    assert_eq!(server.seen_for("/resolve/c0ffee/model.safetensors").len(), 1);
}

#[test]
fn a_cut_connection_goes_on_where_it_broke() {
    let server = hub(|request, before| {
        (request.path.ends_with("model.safetensors") && before < 2)
            .then(|| Answer { cut_after: Some(100_000), ..Answer::file(&weights(), "\"w\"", request) })
    });
    get_whole(&server);
    let ranges: Vec<_> = server.seen_for("model.safetensors").iter().map(Seen::from).collect();
    assert_eq!(ranges[0], None);
    assert!(ranges[1].is_some_and(|from| from > 0) && ranges[2] > ranges[1], "{ranges:?}");
    assert_eq!(server.seen_for("model.safetensors")[1].header("if-range"), Some("\"w\""));
}

#[test]
fn a_stopped_download_is_resumed_by_the_next_process() {
    let server = hub(|request, before| {
        (request.path.ends_with("model.safetensors") && before == 0).then(|| Answer {
            slow: Some((20_000, Duration::from_millis(60))),
            ..Answer::file(&weights(), "\"w\"", request)
        })
    });
    let cache = tempfile::tempdir().unwrap();
    let mut stop = |p: Progress| {
        let stop = p.note == "model.safetensors" && p.done_bytes > 0;
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = Assets::new(cache.path(), config(&server)).model(&source(), &mut stop).unwrap_err();
    assert!(matches!(error, AssetError::Stopped { .. }), "{error}");
    let part = cache.path().join("hub/models/owner/name/main/model.safetensors.part");
    let kept = fs::metadata(&part).unwrap().len();
    assert!(kept > 0 && kept < weights().len() as u64);
    let folder = get(cache.path(), &server).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(server.seen_for("model.safetensors")[1].from(), Some(kept as usize));
    assert_eq!(server.seen_for("/config.json").len(), 1);
}

#[test]
fn a_file_that_changed_while_resuming_is_not_mixed() {
    let old: Vec<u8> = weights().iter().map(|b| b ^ 0xff).collect();
    // A server that honours If-Range starts over; one that ignores it is caught by its own tag.
    for honours in [true, false] {
        let old = old.clone();
        let server = hub(move |request, before| {
            if !request.path.ends_with("model.safetensors") {
                return None;
            }
            let mut request = request.clone();
            if !honours {
                request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("if-range"));
            }
            Some(match before {
                0 => Answer { cut_after: Some(50_000), ..Answer::file(&old, "\"old\"", &request) },
                _ => Answer::file(&weights(), "\"new\"", &request),
            })
        });
        get_whole(&server);
    }
}

#[test]
fn a_server_without_ranges_starts_over() {
    let server = hub(|request, before| {
        let whole = Answer { body: weights(), ..Answer::status(200).with("ETag", "\"w\"") };
        let cut = (before == 0).then_some(70_000);
        request.path.ends_with("model.safetensors").then_some(Answer { cut_after: cut, ..whole })
    });
    get_whole(&server);
    assert_eq!(server.seen_for("model.safetensors").len(), 2);
}

#[test]
fn refusals_say_what_to_do_and_keep_the_token() {
    for (status, code, words) in [
        (401, "RepoNotFound", "does not exist or is private"),
        (403, "GatedRepo", "accept its terms"),
        (401, "", "set HF_TOKEN"),
    ] {
        let server = hub(move |_, _| Some(Answer::status(status).with("X-Error-Code", code)));
        let cache = tempfile::tempdir().unwrap();
        let token = Some(Secret::new("hf_secret"));
        let assets = Assets::new(cache.path(), HubConfig { token, ..config(&server) });
        let error = assets.model(&source(), &mut go_on).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(matches!(error, AssetError::Denied { .. }) && text.contains(words), "{text}");
        assert!(!text.contains("hf_secret"), "{text}");
        assert_eq!(server.seen().len(), 1, "a refusal is not tried again");
    }
}

#[test]
fn a_missing_file_or_revision_is_named() {
    let server = hub(|request, _| request.path.ends_with("tokenizer.json").then(|| Answer::status(404)));
    let error = get(tempfile::tempdir().unwrap().path(), &server).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("`main`"), "{error}");

    let server = hub(|_, _| Some(Answer::status(404).with("X-Error-Code", "RevisionNotFound")));
    let source: ModelSource = "hf:owner/name@step1".parse().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let error = Assets::new(cache.path(), config(&server)).model(&source, &mut go_on).unwrap_err().to_string();
    assert!(error.contains("`step1`") && error.contains("no such revision"), "{error}");

    let server = hub(|request, _| request.path.contains("safetensors").then(|| Answer::status(404)));
    let error = get(tempfile::tempdir().unwrap().path(), &server).unwrap_err().to_string();
    assert!(error.contains("no safetensors weights"), "{error}");
}

#[test]
fn server_errors_are_tried_again_and_then_given_up() {
    let server = hub(|_, before| (before == 0).then(|| Answer::status(500)));
    get_whole(&server);
    assert_eq!(server.seen_for("/config.json").len(), 2);

    let server = hub(|_, _| Some(Answer::status(503)));
    let error = get(tempfile::tempdir().unwrap().path(), &server).unwrap_err().to_string();
    assert_eq!(server.seen().len(), 3);
    assert!(error.contains("503") && error.contains("after 3 attempts") && error.contains("--profile toy"), "{error}");
}

#[test]
fn too_many_requests_waits_as_told_within_reason() {
    let server = hub(|request, before| {
        let wait = if request.path.ends_with("config.json") { "0" } else { "86400" };
        (before == 0).then(|| Answer::status(429).with("Retry-After", wait))
    });
    let start = Instant::now();
    get_whole(&server);
    assert!(start.elapsed() < Duration::from_secs(5), "a day is capped at `max_wait`");
}

#[test]
fn a_wrong_length_is_noticed() {
    // Announces more than it sends, every time.
    let server = hub(|request, _| {
        request.path.ends_with("model.safetensors").then(|| Answer {
            body: weights(),
            announce: Some(weights().len() + 5),
            ..Answer::status(200)
        })
    });
    let error = get(tempfile::tempdir().unwrap().path(), &server).unwrap_err();
    assert!(matches!(error, AssetError::Network { .. }), "{error}");
    // The hub and the server behind it disagree.
    let server = hub(|request, _| {
        request
            .path
            .ends_with("model.safetensors")
            .then(|| Answer::file(&weights(), "\"w\"", request).with("X-Linked-Size", "17"))
    });
    let error = get(tempfile::tempdir().unwrap().path(), &server).unwrap_err().to_string();
    assert!(error.contains("announced 17 bytes"), "{error}");
}

#[test]
fn a_wrong_digest_is_fetched_again_and_then_reported() {
    let linked = format!("\"{}\"", sha256(&weights()));
    let tag = linked.clone();
    let server = hub(move |request, before| {
        let mut body = weights();
        body[77] ^= u8::from(before == 0);
        let answer = Answer::file(&body, "\"w\"", request).with("X-Linked-ETag", &tag);
        request.path.ends_with("model.safetensors").then_some(answer)
    });
    get_whole(&server);
    assert_eq!(server.seen_for("model.safetensors").len(), 2);

    let server = hub(move |request, _| {
        let answer = Answer { body: vec![0; 64], ..Answer::status(200).with("X-Linked-ETag", &linked) };
        request.path.ends_with("model.safetensors").then_some(answer)
    });
    let cache = tempfile::tempdir().unwrap();
    let error = get(cache.path(), &server).unwrap_err();
    assert!(matches!(&error, AssetError::Corrupt { why, .. } if why.contains("sha256")), "{error}");
    let folder = cache.path().join("hub/models/owner/name/main");
    assert!(!folder.join("model.safetensors").exists() && !folder.join("model.safetensors.part").exists());
}

#[test]
fn a_login_page_is_not_a_model() {
    let server = hub(|_, _| Some(Answer { body: b"<html>log in</html>".to_vec(), ..Answer::status(200) }));
    let error = get(tempfile::tempdir().unwrap().path(), &server).unwrap_err().to_string();
    assert!(error.contains("not JSON"), "{error}");
}

#[test]
fn slow_is_not_silent() {
    // A server that takes longer than the timeout in all, but never between two pieces.
    let server = hub(|request, _| {
        request.path.ends_with("model.safetensors").then(|| Answer {
            slow: Some((50_000, Duration::from_millis(100))),
            ..Answer::file(&weights(), "\"w\"", request)
        })
    });
    get_whole(&server);
    assert_eq!(server.seen_for("model.safetensors").len(), 1);
    // A server that falls silent: the timeout ends the wait, and the rest is fetched.
    let server = hub(|request, before| {
        (request.path.ends_with("model.safetensors") && before == 0).then(|| Answer {
            cut_after: Some(60_000),
            silence: Some(Duration::from_secs(20)),
            ..Answer::file(&weights(), "\"w\"", request)
        })
    });
    let start = Instant::now();
    get_whole(&server);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(server.seen_for("model.safetensors")[1].from().is_some());
}

#[test]
fn nobody_listening_says_how_to_go_on() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let settings = HubConfig { endpoint: closed, attempts: 2, backoff: Duration::ZERO, ..HubConfig::default() };
    let cache = tempfile::tempdir().unwrap();
    let error = Assets::new(cache.path(), settings).model(&source(), &mut go_on).unwrap_err().to_string();
    for words in ["hf:owner/name", "config.json", "--profile toy", "name their folder"] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_dataset_file_is_one_file() {
    let server = Server::start(|request, _| match request.path.as_str() {
        "/datasets/owner/texts/resolve/v1/data/part.jsonl" => Answer::file(b"{\"text\": \"a\"}\n", "\"d\"", request),
        _ => Answer::status(404),
    });
    let cache = tempfile::tempdir().unwrap();
    let assets = Assets::new(cache.path(), config(&server));
    let source: TextSource = "hf:datasets/owner/texts@v1:data/part.jsonl".parse().unwrap();
    let path = assets.text(&source, &mut go_on).unwrap();
    assert_eq!(path, cache.path().join("hub/datasets/owner/texts/v1/data/part.jsonl"));
    assets.text(&source, &mut go_on).unwrap();
    assert_eq!(server.seen().len(), 1);
    let other: TextSource = "hf:datasets/owner/texts@v1:data/none.jsonl".parse().unwrap();
    assert!(matches!(assets.text(&other, &mut go_on), Err(AssetError::NotFound { .. })));
}

#[test]
fn two_at_once_fetch_once() {
    let server = hub(|request, _| {
        request.path.ends_with("model.safetensors").then(|| Answer {
            slow: Some((100_000, Duration::from_millis(50))),
            ..Answer::file(&weights(), "\"w\"", request)
        })
    });
    let cache = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| get(cache.path(), &server).unwrap())).collect();
        for thread in threads {
            let folder = thread.join().unwrap();
            assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
        }
    });
    assert_eq!(server.seen_for("model.safetensors").len(), 1);
}

#[test]
fn settings_are_checked() {
    for (endpoint, token) in [("huggingface.co", None), ("ftp://x", None), ("https://x", Some(Secret::new("a b")))] {
        let settings = HubConfig { endpoint: endpoint.into(), token, ..HubConfig::default() };
        let error = Assets::new("unused", settings).model(&source(), &mut go_on).unwrap_err();
        assert!(matches!(error, AssetError::Config { .. }), "{error}");
    }
}
