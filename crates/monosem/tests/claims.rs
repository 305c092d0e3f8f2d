//! `interp` and `patch`: on a dictionary in a folder, with no profile and no graph.

mod support;

use std::fs;
use std::process::Stdio;

use monosem_dictionary::LinearDictionary;
use serde_json::Value;
use support::Place;

const HOOK: &str = "blocks.1.hook_resid_post";

const UNKNOWN_NAMES: &str = r#"
names = ["Mary", "John", "Xqzzwv", "Wvqxzz"]
templates = [
    { order = "ABBA", text = "When [IO] and [S] went to the store, [S] gave a drink to" },
    { order = "ABBA", text = "When [IO] and [S] went to the school, [S] gave a drink to" },
]
"#;

/// A place with the activations of the toy model and a dictionary of them.
fn place_with_dictionary() -> Place {
    let place = Place::new();
    place.succeed(&[
        "capture",
        "--model",
        "toy",
        "--text",
        "toy-language",
        "--tokens",
        "40000",
        "--hook",
        HOOK,
        "--out",
        "store",
    ]);
    let train = ["--ratio", "2", "--alpha", "0.004", "--steps", "600", "--batch", "256", "--out", "dictionary"];
    place.succeed(&[&["train", "--activations", "store"][..], &train].concat());
    place
}

#[test]
fn a_dictionary_is_interpreted_and_patched() {
    let place = place_with_dictionary();
    let at = ["--dictionary", "dictionary", "--model", "toy"];

    let text = ["--text", "toy-language", "--tokens", "40000", "--fragment", "32"];
    let shown = ["--features", "3,1,5", "--json", "--out", "interp"];
    let json = place.succeed(&[&["interp"][..], &at, &text, &shown].concat());
    let features: Vec<Value> = serde_json::from_str(&json).unwrap();
    let numbers: Vec<u64> = features.iter().map(|feature| feature["feature"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [3, 1, 5]);
    // Whatever the company of other features.
    let shown = ["--features", "5", "--json"];
    let alone: Vec<Value> =
        serde_json::from_str(&place.succeed(&[&["interp"][..], &at, &text, &shown].concat())).unwrap();
    assert_eq!(alone[0]["explanation"], features[2]["explanation"]);
    let page = fs::read_to_string(place.path("interp/report.html")).unwrap();
    assert!(page.contains("feature"), "a page about features");

    let json = place.succeed(
        &[&["patch", "ioi"][..], &at, &["--task", "toy", "--prompts", "6", "--thresholds", "4", "--json"]].concat(),
    );
    let found: Value = serde_json::from_str(&json).unwrap();
    assert!(found["accuracy"].as_f64().unwrap() > 0.9, "{}", found["accuracy"]);
    let sets = found["descent"]["sets"].as_array().unwrap();
    let size = |set: &Value| set["features"].as_array().unwrap().len();
    assert!(sets.windows(2).all(|pair| size(&pair[0]) >= size(&pair[1])), "each set is within the one before");
    assert_eq!(size(sets.last().unwrap()), 0);

    let prompt = ["--text", "When Mary and John went to the store, John gave a drink to", "--tokens", "1", "--json"];
    let run = |more: &[&str]| -> Value {
        serde_json::from_str(&place.succeed(&[&["patch", "run"][..], &at, &prompt, more].concat())).unwrap()
    };
    // Codes multiplied by one are as they were.
    let same = run(&["--features", "0,1,2", "--scale", "1"]);
    assert_eq!(same["continuation"], same["continuation_patched"]);
    assert_eq!(same["continuation"], " Mary");
    let list: Vec<String> = (0..128).map(|feature| feature.to_string()).collect();
    let ablated = run(&["--features", &list.join(","), "--scale", "0"]);
    assert_ne!(ablated["continuation"], ablated["continuation_patched"], "without any feature the answer is another");
}

#[test]
fn a_text_in_one_piece_is_divided_into_parts() {
    let place = place_with_dictionary();
    let lines = fs::read_to_string(toy_text(&place)).unwrap();
    let documents = lines.lines().take(400).map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text: Vec<String> = documents.map(|document| document["text"].as_str().unwrap().to_owned()).collect();
    place.write("one.txt", &text.join(" "));
    let arguments = ["interp", "--dictionary", "dictionary", "--model", "toy", "--text", "one.txt", "--first", "40"];
    let done = place.run(&[&arguments[..], &["--fragment", "32", "--json"]].concat());
    assert!(String::from_utf8_lossy(&done.stderr).contains("only 1 documents"), "{done:?}");
    let features: Vec<Value> = serde_json::from_slice(&done.stdout).unwrap();
    assert!(features.iter().filter(|feature| feature["score"].is_number()).count() > 10);
}

/// The file of the generated language, in the cache.
fn toy_text(place: &Place) -> std::path::PathBuf {
    let files = fs::read_dir(place.path("cache/generated")).unwrap().map(|entry| entry.unwrap().path());
    files.into_iter().find(|path| path.extension().is_some_and(|e| e == "jsonl")).unwrap()
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let place = Place::new();
    let mut child =
        place.command(&["graph", "--profile", "toy", "--format", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    if let Ok(full) = full {
        let done = place.command(&["profiles"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && said.contains("cannot write to standard output"), "{said}");
    }
}

#[test]
fn mistakes_are_told_in_a_sentence() {
    let place = place_with_dictionary();
    let say = |args: &[&str], code: i32, words: &[&str]| {
        let said = place.fail(args, code);
        assert!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
    };
    let at = ["--dictionary", "dictionary", "--model", "toy"];
    let with = |command: &[&'static str], more: &[&'static str]| -> Vec<&'static str> { [command, &at, more].concat() };
    say(&with(&["patch", "run"], &["--text", "x", "--features", "999", "--scale", "0"]), 1, &["999", "128"]);
    say(&with(&["patch", "run"], &["--text", "", "--features", "1", "--scale", "0"]), 1, &["0 tokens"]);
    say(&with(&["patch", "run"], &["--text", "x", "--features", "1"]), 2, &["--scale"]);
    say(&with(&["patch", "ioi"], &["--task", "nowhere.toml"]), 1, &["nowhere.toml", "english, toy"]);
    say(&with(&["patch", "ioi"], &["--hook", "blocks.9.hook_resid_post"]), 1, &["blocks.9"]);
    say(&with(&["patch", "ioi"], &["--hook", "blocks.1.mlp.hook_post"]), 1, &["256", "64"]);
    say(&with(&["interp"], &["--text", "toy-language", "--features", "4000"]), 1, &["4000", "128"]);
    say(&with(&["interp"], &["--text", "toy-language", "--fragment", "1"]), 1, &["fragments of 1"]);
    say(&with(&["interp"], &["--text", "toy-language", "--context", "32"]), 1, &["fragments of 64", "contexts of 32"]);
    say(&with(&["interp"], &["--text", "toy-language", "--context", "129"]), 1, &["--context 129", "128"]);
    say(&with(&["interp"], &["--text", "toy-language", "--features", "3,3"]), 1, &["3", "twice"]);
    say(&with(&["patch", "run"], &["--text", "x", "--features", "1", "--scale", "nan"]), 2, &["--scale", "finite"]);
    say(&with(&["patch", "ioi"], &["--low", "0"]), 2, &["--low", "above 0"]);
    say(&with(&["patch", "ioi"], &["--prompts", "99999999999"]), 2, &["--prompts", "10000"]);
    say(&["interp", "--dictionary", "dictionary", "--model", "tiny", "--text", "x"], 2, &["tiny", "`toy`"]);

    // A word that the vocabulary does not know is no name, though it is one token.
    place.write("task.toml", UNKNOWN_NAMES);
    say(&with(&["patch", "ioi"], &["--task", "task.toml"]), 1, &["too few names", "2 are single tokens"]);

    // Weights that are finite and overflow.
    let mut huge = LinearDictionary::load(&place.path("dictionary")).unwrap();
    huge.w_enc *= 1e30;
    huge.w_dec *= 1e30;
    huge.save(&place.path("huge"), serde_json::json!({ "hook": HOOK })).unwrap();
    let at_huge = ["--dictionary", "huge", "--model", "toy"];
    say(&[&["patch", "ioi"][..], &at_huge, &["--task", "toy", "--prompts", "4"]].concat(), 1, &["not finite"]);
    let prompt = ["--text", "Mary gave a drink to", "--features", "0", "--set", "1"];
    say(&[&["patch", "run"][..], &at_huge, &prompt].concat(), 1, &["not finite"]);
    say(&["eval", "--dictionary", "huge", "--activations", "store"], 1, &["not finite"]);

    place.write("nan/dictionary.json", "{}");
    say(&["patch", "ioi", "--dictionary", "nan", "--model", "toy"], 1, &["dictionary.json"]);
}
