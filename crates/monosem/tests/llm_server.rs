//! The whole of `interp` against a real server, and against the same model in this process: `cargo xtask test --with-llm-server` runs it. By hand: a server in
//! `MONOSEM_TEST_LLM_URL` (up to `/v1`), its model's name in `MONOSEM_TEST_LLM_MODEL` and its file in `MONOSEM_TEST_LLM_FILE`.

mod support;

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use support::Place;

const SCORERS: &str = "patterns,simulation,chat-simulation,detection,fuzzing,intruder,surprisal";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("set {name}"))
}

/// Every verdict's exchanges, and the verdicts.
fn interp(place: &Place, llm: &str, out: &str) -> Vec<Value> {
    let at = ["interp", "--dictionary", "dictionary", "--model", "toy", "--text", "toy-language", "--tokens", "40000"];
    let few = ["--fragment", "16", "--features", "5", "--score", "1", "--controls", "1", "--quiet-below", "0.2"];
    let asked = ["--llm", llm, "--scorers", SCORERS, "--llm-cache", out, "--out", out];
    place.succeed(&[&at[..], &few, &asked].concat());
    let text = fs::read_to_string(place.path(out).join("explanations.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.flat_map(|record| record["verdicts"].as_array().unwrap().clone()).collect()
}

/// What a scorer's prompts came to, by their text.
fn exchanges(verdicts: &[Value], scorer: &str) -> BTreeMap<String, String> {
    let of = verdicts.iter().filter(|verdict| verdict["scorer"] == scorer);
    let exchanges = of.flat_map(|verdict| verdict["exchanges"].as_array().cloned().unwrap_or_default());
    exchanges.map(|e| (e["text"].as_str().unwrap().to_owned(), e["reply"].as_str().unwrap().to_owned())).collect()
}

#[test]
#[ignore = "needs a server: see the head of this file"]
fn a_server_and_the_same_model_in_this_process_agree() {
    let place = Place::new();
    let capture = ["--model", "toy", "--text", "toy-language", "--tokens", "40000", "--out", "store"];
    place.succeed(&[&["capture", "--hook", "blocks.1.hook_resid_post"][..], &capture].concat());
    let train = ["--ratio", "2", "--alpha", "0.004", "--steps", "600", "--batch", "256", "--out", "dictionary"];
    place.succeed(&[&["train", "--activations", "store"][..], &train].concat());

    let asking = "[asking]\nper_prompt = 1\nresamples = 50\nintruder_trials = 2\nintruder_choices = 2\nwindow = 16\n";
    let (url, model) = (variable("MONOSEM_TEST_LLM_URL"), variable("MONOSEM_TEST_LLM_MODEL"));
    let server =
        format!("[server]\nbase_url = \"{url}\"\nmodel = \"{model}\"\ntimeout_s = 900\nconcurrency = 1\n{asking}");
    place.write("server.toml", &server);
    place.write("local.toml", &format!("local = \"{}\"\n{asking}", variable("MONOSEM_TEST_LLM_FILE")));
    let local = interp(&place, "local.toml", "local");
    let served = interp(&place, "server.toml", "served");
    assert_eq!(local.len(), served.len());

    // Every scorer was asked, and what became of each reply is known.
    for scorer in SCORERS.split(',').skip(1) {
        let asked = |verdicts: &[Value]| -> u64 {
            verdicts.iter().filter(|v| v["scorer"] == scorer).map(|v| v["asked"].as_u64().unwrap()).sum()
        };
        assert!(asked(&served) > 0 && asked(&local) == asked(&served), "{scorer}");
    }

    // Log-likelihoods of the same texts: llama.cpp computes with activations of 8 bits, we with 32.
    let nats = |reply: &str| reply.strip_suffix(" nats").and_then(|nats| nats.parse::<f64>().ok());
    let (here, there) = (exchanges(&local, "surprisal"), exchanges(&served, "surprisal"));
    assert!(here.keys().eq(there.keys()) && !here.is_empty());
    let mut compared = 0;
    for (text, reply) in &here {
        let (Some(here), Some(there)) = (nats(reply), nats(&there[text])) else { continue };
        println!("{here:.2} nats here, {there:.2} there");
        assert!((here - there).abs() < 0.04 * here.abs(), "{here} {there}: {text}");
        compared += 1;
    }
    // A server whose scores belong to the next token knows those of likely tokens only, and these texts are unlikely ones.
    println!("{compared} of {} log-likelihoods compared", here.len());

    // Expected digits at the same places.
    let (here, there) = (exchanges(&local, "simulation"), exchanges(&served, "simulation"));
    let (mut pairs, mut apart) = (0, 0.0);
    for (text, reply) in &here {
        let values = |reply: &str| -> Vec<Option<f64>> { reply.split(' ').map(|v| v.parse().ok()).collect() };
        for (here, there) in values(reply).into_iter().zip(values(&there[text])) {
            let (Some(here), Some(there)) = (here, there) else { continue };
            pairs += 1;
            apart += f64::abs(here - there);
        }
    }
    println!("{pairs} simulated values, apart by {:.2} on average", apart / f64::from(pairs));
    assert!(pairs > 0, "nothing to compare");
    assert!(apart / f64::from(pairs) < 1.0);
}
