use std::fs;
use std::path::{Path, PathBuf};

use monosem_llm::{Client, ClientConfig, Dialect, Endpoint, LlmError, Request};

use crate::server::{Answer, Server};
use crate::{client, config, question};

fn cached(server: &Server, folder: &Path) -> Client {
    client(ClientConfig { cache: Some(folder.into()), ..config(server) })
}

/// All files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn a_reply_is_kept_with_its_question() {
    let server = Server::echo();
    let folder = tempfile::tempdir().unwrap();
    let reply = cached(&server, folder.path()).chat(&question("why \"so\"?")).unwrap();
    let found = files(folder.path());
    let [path] = &found[..] else { panic!("{found:?}") };
    let name = path.file_stem().unwrap().to_str().unwrap();
    assert_eq!(name.len(), 64);
    assert_eq!(path.parent().unwrap().file_name().unwrap().to_str(), Some(&name[..2]));
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(kept["question"]["request"]["messages"][0]["content"], "why \"so\"?");
    assert_eq!(kept["question"]["request"]["source"], "test");
    assert_eq!((&kept["question"]["model"], &kept["question"]["kind"]), (&"model-a".into(), &"chat".into()));
    assert_eq!(kept["reply"]["text"], reply.text);
    assert_eq!(blake3::hash(kept_question(path).as_bytes()).to_hex().as_str(), name, "the name is the question's hash");
}

/// The question as it stands in the file.
fn kept_question(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let end = text.find(",\"blake3\":").unwrap();
    text["{\"question\":".len()..end].to_owned()
}

#[test]
fn another_question_model_or_source_is_another_reply() {
    let server = Server::echo();
    let folder = tempfile::tempdir().unwrap();
    let first = cached(&server, folder.path());
    let same = question("x");
    for request in [
        same.clone(),
        Request { temperature: 0.5, ..same.clone() },
        Request { seed: 4, ..same.clone() },
        Request { max_tokens: 51, ..same.clone() },
        Request { top_logprobs: 1, ..same.clone() },
        Request { source: "another".into(), ..same.clone() },
        same.clone(),
    ] {
        first.chat(&request).unwrap();
    }
    assert_eq!((server.count(), first.spent().cached), (6, 1));
    let other = ClientConfig { model: "model-b".into(), cache: Some(folder.path().into()), ..config(&server) };
    client(other).chat(&same).unwrap();
    assert_eq!(server.count(), 7);
    // How it is asked does not matter: a slash at the end, the dialect, the headers.
    let mut alike = ClientConfig { cache: Some(folder.path().into()), server: Dialect::Vllm, ..config(&server) };
    alike.base_url.push('/');
    alike.headers.insert("x-team".into(), "blue".into());
    client(alike).chat(&same).unwrap();
    assert_eq!(server.count(), 7);
}

#[test]
fn a_damaged_file_counts_as_none_and_is_replaced() {
    let server = Server::echo();
    let folder = tempfile::tempdir().unwrap();
    let reply = cached(&server, folder.path()).chat(&question("x")).unwrap();
    let path = files(folder.path()).remove(0);
    let good = fs::read(&path).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let damaged = [
        good[..good.len() / 2].to_vec(),
        Vec::new(),
        b"{}".to_vec(),
        text.replace("\"reply_tokens\":5", "\"reply_tokens\":6").into_bytes(),
        text.replace(&reply.text[..8], "deadbeef").into_bytes(),
        vec![0xff; 100],
    ];
    for (index, bytes) in damaged.into_iter().enumerate() {
        assert_ne!(bytes, good);
        fs::write(&path, bytes).unwrap();
        assert_eq!(cached(&server, folder.path()).chat(&question("x")).unwrap(), reply);
        assert_eq!(server.count(), index + 2, "asked again");
        assert_eq!(fs::read(&path).unwrap(), good, "and replaced");
    }
    assert_eq!(files(folder.path()).len(), 1, "no half-written file is left");
}

#[test]
fn a_reply_that_cannot_be_kept_is_an_error() {
    let server = Server::echo();
    let folder = tempfile::tempdir().unwrap();
    // A file stands where each subfolder would.
    for number in 0..256 {
        fs::write(folder.path().join(format!("{number:02x}")), "").unwrap();
    }
    let error = cached(&server, folder.path()).chat(&question("x")).unwrap_err();
    let LlmError::Cache { path, why } = &error else { panic!("{error}") };
    assert!(path.starts_with(folder.path()) && why.contains("reply"), "{error}");
    assert!(error.ends_the_run());
    assert_eq!(server.count(), 1);

    let file = folder.path().join("00");
    let no_folder = ClientConfig { cache: Some(file), ..config(&server) };
    assert!(matches!(Client::new(no_folder, None), Err(LlmError::Cache { .. })), "noticed before anything is paid for");
}

#[test]
fn failures_are_not_kept() {
    let server = Server::start(|_, before| match before {
        0 => Answer::error(400, "not now"),
        _ => Answer::chat("a"),
    });
    let folder = tempfile::tempdir().unwrap();
    let client = cached(&server, folder.path());
    client.chat(&question("x")).unwrap_err();
    assert!(files(folder.path()).is_empty());
    client.chat(&question("x")).unwrap();
}
