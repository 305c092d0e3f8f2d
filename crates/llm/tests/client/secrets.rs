use std::fs;

use monosem_llm::{Client, ClientConfig, Endpoint, Key, LlmError, Secret};

use crate::cache::files;
use crate::server::{Answer, Server};
use crate::{client, config, question};

const KEY: &str = "sk-hidden-0123456789";
const TEAM: &str = "team-hidden-abc";

fn with_secrets(server: &Server, folder: &std::path::Path) -> ClientConfig {
    let file = folder.join("key");
    fs::write(&file, format!("  {KEY}\n")).unwrap();
    let mut config = ClientConfig { key: Key::File(file), cache: Some(folder.join("cache")), ..config(server) };
    config.headers.insert("X-Team".into(), Secret::new(TEAM));
    config
}

#[test]
fn secrets_reach_the_server_and_nothing_else() {
    let said = format!("key {KEY} of {TEAM}: {} bad", "long ".repeat(200));
    let server = Server::start(move |request, _| match request.question().as_str() {
        "refuse" => Answer::error(401, &said),
        "fail" => Answer::error(500, &said),
        "form" => Answer { status: 200, ..Answer::error(200, &said) },
        "page" => Answer { status: 403, body: format!("<html>{said}</html>").into_bytes(), ..Answer::default() },
        _ => Answer::chat("fine"),
    });
    let folder = tempfile::tempdir().unwrap();
    let config = with_secrets(&server, folder.path());
    let client = client(config.clone());
    client.chat(&question("x")).unwrap();
    let seen = &server.seen()[0];
    assert_eq!(seen.headers["authorization"], format!("Bearer {KEY}"));
    assert_eq!(seen.headers["x-team"], TEAM);

    let mut texts = vec![format!("{client:?}"), format!("{config:?}"), serde_json::to_string(&config).unwrap()];
    for text in ["refuse", "fail", "form", "page"] {
        let error = client.chat(&question(text)).unwrap_err();
        assert!(error.to_string().contains("(hidden)"), "{error}");
        assert!(error.to_string().len() < 500, "cut to what a person reads");
        texts.extend([error.to_string(), format!("{error:?}")]);
    }
    let kept = files(&folder.path().join("cache"));
    assert_eq!(kept.len(), 1);
    texts.extend(kept.iter().map(|path| fs::read_to_string(path).unwrap()));
    for text in texts {
        assert!(!text.contains("sk-hidden") && !text.contains("team-hidden"), "{text}");
    }
}

#[test]
fn a_key_comes_from_the_environment_or_a_file() {
    let server = Server::echo();
    // Cargo sets this one for each test.
    let from = |name: &str| ClientConfig { key: Key::Env(name.into()), ..config(&server) };
    client(from("CARGO_PKG_NAME")).chat(&question("x")).unwrap();
    assert_eq!(server.seen()[0].headers["authorization"], "Bearer monosem-llm");

    let fault = |config: ClientConfig| Client::new(config, None).map(drop).unwrap_err();
    let error = fault(from("MONOSEM_NO_SUCH_KEY"));
    assert_eq!(
        error.to_string(),
        "no key for the server: the environment variable `MONOSEM_NO_SUCH_KEY` is not set; set it, or name another one in `key`"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let from_file = || ClientConfig { key: Key::File(file.clone()), ..config(&server) };
    let error = fault(from_file()).to_string();
    assert!(error.contains(&*file.to_string_lossy()), "{error}");
    fs::write(&file, " \n").unwrap();
    assert!(fault(from_file()).to_string().contains("empty"));
    fs::write(&file, "two words").unwrap();
    let error = fault(from_file());
    assert!(matches!(error, LlmError::Key { .. }) && !error.to_string().contains("two words"), "{error}");

    let mut config = config(&server);
    config.headers.insert("x-a".into(), Secret::new("env:MONOSEM_NO_SUCH_HEADER"));
    assert!(fault(config).to_string().contains("MONOSEM_NO_SUCH_HEADER"));
}

#[test]
fn a_key_does_not_travel_in_the_clear() {
    let server = Server::echo();
    let far = ClientConfig { base_url: "http://models.example.com/v1".into(), ..config(&server) };
    let with_key = ClientConfig { key: Key::Env("CARGO_PKG_NAME".into()), ..far.clone() };
    let error = Client::new(with_key.clone(), None).map(drop).unwrap_err();
    assert!(matches!(&error, LlmError::Key { why } if why.contains("https")), "{error}");
    let mut with_header = far.clone();
    with_header.headers.insert("x-key".into(), Secret::new("env:CARGO_PKG_NAME"));
    assert!(matches!(Client::new(with_header, None), Err(LlmError::Config { key: "headers", .. })));
    Client::new(far, None).unwrap();
    Client::new(ClientConfig { base_url: "https://models.example.com/v1".into(), ..with_key }, None).unwrap();
}

#[test]
fn a_proxy_is_used_but_never_to_reach_this_machine() {
    let proxy = Server::echo();
    let address = proxy.address.replace("http://", "http://user:hidden-word@");
    let mut far = config(&proxy);
    far.base_url = "http://models.invalid/v1".into();
    far.proxy = Some(Secret::new(&address));
    let through = client(far.clone());
    through.chat(&question("x")).unwrap();
    let seen = &proxy.seen()[0];
    assert_eq!(seen.target, "http://models.invalid/v1/chat/completions");
    assert!(seen.headers["proxy-authorization"].starts_with("Basic "));
    assert!(!format!("{through:?} {far:?}").contains("hidden-word"));

    let around = client(ClientConfig { proxy: Some(Secret::new("none")), ..far });
    let error = around.chat(&question("x")).unwrap_err();
    assert!(matches!(error, LlmError::Unreachable { .. }), "{error}");
    assert_eq!(proxy.count(), 1);

    let server = Server::echo();
    let dead = ClientConfig { proxy: Some(Secret::new("http://127.0.0.1:9")), ..config(&server) };
    client(dead).chat(&question("x")).unwrap();
    assert_eq!(server.count(), 1);
}
