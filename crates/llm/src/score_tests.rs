use super::*;

fn tokens(texts: &[&str]) -> Vec<RawToken> {
    texts.iter().map(|text| raw((*text).to_owned(), Some(-1.0), Vec::new())).collect()
}

fn fitted(prompt: &str, texts: &[&str]) -> Option<Vec<String>> {
    Some(fit(prompt, tokens(texts), true)?.into_iter().map(|token| token.text).collect())
}

#[test]
fn token_texts_make_up_the_prompt() {
    let is = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    assert_eq!(fitted("a b", &["a", " b"]), is(&["a", " b"]));
    assert_eq!(fitted("a b", &["a", " b", " c", "d"]), is(&["a", " b"]), "generated tokens are cut off");
    assert_eq!(fitted("a b", &["<s>", "a", " b", " c"]), is(&["a", " b"]), "a special token is none of the text");
    assert_eq!(fitted("a b", &["", "a", " b"]), is(&["a", " b"]));
    // Left out by the server: the places before and after it cannot be told apart.
    assert_eq!(fitted("<|im_start|>a b", &["a", " b"]), None);
    assert_eq!(fitted("a<|im_end|> b", &["a", "", " b"]), None);
    assert_eq!(fitted("a b", &["a", " c"]), None);
    assert_eq!(fitted("a b", &["a"]), None);
    assert_eq!(fitted("a b", &[]), None);
    // Characters spread over tokens, replaced or lost.
    assert_eq!(fitted("né!", &["n", "\u{fffd}", "\u{fffd}", "!"]), is(&["n", "", "é", "!"]));
    assert_eq!(fitted("né!", &["n", "", "", "!"]), is(&["n", "", "é", "!"]));
    assert_eq!(
        fitted("a 😀😀 b", &["a", " \u{fffd}", "\u{fffd}", "\u{fffd}", "\u{fffd}", " b"]),
        is(&["a", " ", "", "", "😀😀", " b"])
    );
    assert_eq!(fitted("é", &["", "", " more"]), is(&["", "é"]));
    assert_eq!(fitted("xéy z", &["x", "\u{fffd}", "\u{fffd}y", " z"]), is(&["x", "", "éy", " z"]));
    assert_eq!(fitted("a 😀! b", &["a", " ", "!", " b"]), is(&["a", " ", "😀!", " b"]), "a piece without a sign");
    assert_eq!(fitted("a😀xb", &["a", "b"]), None, "only characters in pieces may be missing");
}

fn vllm(texts: &[&str]) -> String {
    let entry = |text: &&str| {
        let own = serde_json::to_string(text).unwrap();
        format!(
            r#"{{"9": {{"logprob": -2.0, "rank": 3, "decoded_token": {own}}}, "1": {{"logprob": -0.5, "rank": 1, "decoded_token": "q"}}}}"#
        )
    };
    let entries = texts.iter().map(entry).collect::<Vec<_>>().join(",");
    format!(
        r#"{{"choices": [{{"text": "x", "prompt_logprobs": [null, {entries}]}}], "usage": {{"prompt_tokens": 3}}}}"#
    )
}

#[test]
fn vllms_first_token_is_what_the_others_leave_over() {
    let request =
        |text: &str| PromptRequest { text: text.into(), from: 0, top: 1, among: Vec::new(), source: String::new() };
    let texts = |text: &str, rest: &[&str]| -> Vec<String> {
        let raw = read_prompt(vllm(rest).as_bytes(), &request(text)).unwrap();
        raw.tokens.into_iter().map(|token| token.text).collect()
    };
    assert_eq!(texts("one two", &[" two"]), ["one", " two"]);
    assert_eq!(texts("one two", &["one", " two"]), ["one", " two"], "the first was a special token");
    assert_eq!(texts("one é", &[" \u{fffd}", "\u{fffd}"]), ["one", " ", "é"]);
    let raw = read_prompt(vllm(&[" two"]).as_bytes(), &request("one two")).unwrap();
    let scored = align(&raw, Alignment::OwnPlace, 1);
    assert_eq!(scored.tokens[0], ScoredToken { text: "one".into(), logprob: None, top: Vec::new() });
    let second = ScoredToken { text: " two".into(), logprob: Some(-2.0), top: vec![("q".into(), -0.5)] };
    assert_eq!(scored.tokens[1], second, "the prompt's own token comes first, not the likeliest");
    assert!(matches!(read_prompt(vllm(&["x"]).as_bytes(), &request("one two")), Err(Unusable::Final(_))));
}

#[test]
fn servers_that_do_not_score_prompts_are_told_from_those_that_do_it_wrongly() {
    let request = PromptRequest { text: "one two".into(), from: 0, top: 1, among: Vec::new(), source: String::new() };
    let read = |text: &str| read_prompt(text.as_bytes(), &request);
    let unsupported = |result| matches!(result, Err(Unusable::Unsupported(_)));
    assert!(unsupported(read(r#"{"choices": [{"text": " three"}]}"#)));
    assert!(unsupported(read(r#"{"choices": [{"text": " three", "logprobs": {"content": [{"token": " three"}]}}]}"#)));
    let own = r#"{"choices": [{"text": " three", "logprobs": {"tokens": [" three"], "token_logprobs": [-1]}}]}"#;
    assert!(unsupported(read(own)));
    let wrong = r#"{"choices": [{"text": "one two", "logprobs": {"tokens": ["one"], "token_logprobs": [-1]}}]}"#;
    assert!(matches!(read(wrong), Err(Unusable::Final(_))));
    let uneven = r#"{"choices": [{"text": "one two", "logprobs": {"tokens": ["one"], "token_logprobs": []}}]}"#;
    assert!(matches!(read(uneven), Err(Unusable::Form(_))));
}

#[test]
fn bodies_ask_in_the_servers_way() {
    let body = |dialect, top| {
        let request = PromptRequest { text: "a\"\n".into(), from: 0, top, among: Vec::new(), source: "s".into() };
        String::from_utf8(prompt_body(dialect, "m", &request)).unwrap()
    };
    let echo = r#"{"model":"m","prompt":"a\"\n","max_tokens":1,"temperature":0.0,"echo":true,"logprobs":30}"#;
    assert_eq!(body(Dialect::LlamaCpp, 30), echo);
    let vllm = r#"{"model":"m","prompt":"a\"\n","max_tokens":1,"temperature":0.0,"prompt_logprobs":20}"#;
    assert_eq!(body(Dialect::Vllm, 30), vllm);
    assert!(body(Dialect::OpenAi, 30).contains("\"logprobs\":5"));
    assert!(body(Dialect::LlamaCpp, 0).contains("\"logprobs\":1"), "the alignment needs one");
}

/// The probe, scored by a model that knows it by heart, with candidates for the token that lies `ahead`.
fn scored_probe(ahead: usize) -> Vec<RawToken> {
    let text = probe().text;
    let words: Vec<&str> = text.split_inclusive([' ', '\n']).collect();
    let top = |index: usize| {
        let best = words.get(index + ahead).copied().unwrap_or("The ");
        vec![("x".to_owned(), -4.0), (best.to_owned(), -0.1)]
    };
    words.iter().enumerate().map(|(index, word)| raw((*word).to_owned(), Some(-0.1), top(index))).collect()
}

#[test]
fn the_alignment_is_seen_in_the_probe() {
    assert_eq!(decide(&scored_probe(0)), Ok(Alignment::OwnPlace));
    assert_eq!(decide(&scored_probe(1)), Ok(Alignment::NextPlace));
    assert!(decide(&scored_probe(2)).unwrap_err().contains("cannot be told"));
    assert!(decide(&[]).is_err());
    let mut silent = scored_probe(0);
    silent.iter_mut().for_each(|token| token.top.clear());
    assert!(decide(&silent).is_err());
}

#[test]
fn both_alignments_come_to_the_same() {
    let usage = Usage::default();
    let own = align(&RawPrompt { tokens: scored_probe(0), usage }, Alignment::OwnPlace, 2);
    let next = align(&RawPrompt { tokens: scored_probe(1), usage }, Alignment::NextPlace, 2);
    assert_eq!(own, next);
    assert_eq!(own.tokens[5].logprob, Some(-0.1));
}
