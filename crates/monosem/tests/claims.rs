//! `interp` and `patch`: on a dictionary in a folder, with no profile and no graph.

mod support;

use std::fs;

use serde_json::Value;
use support::Place;

const HOOK: &str = "blocks.1.hook_resid_post";

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
    let features: Vec<Value> = serde_json::from_str(json.split("\ninterp").next().unwrap()).unwrap();
    let numbers: Vec<u64> = features.iter().map(|feature| feature["feature"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [3, 1, 5]);
    let page = fs::read_to_string(place.path("interp/report.html")).unwrap();
    assert!(page.contains("feature"), "a page about features");

    let json = place.succeed(
        &[&["patch", "ioi"][..], &at, &["--task", "toy", "--prompts", "6", "--thresholds", "4", "--json"]].concat(),
    );
    let found: Value = serde_json::from_str(&json).unwrap();
    assert!(found["ioi_accuracy"].as_f64().unwrap() > 0.9, "{}", found["ioi_accuracy"]);
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

    place.write("nan/dictionary.json", "{}");
    say(&["patch", "ioi", "--dictionary", "nan", "--model", "toy"], 1, &["dictionary.json"]);
}
