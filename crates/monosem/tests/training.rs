//! `train` and `export`: every family, transcoders, several at once, and what is said when the settings are bad.

mod support;

use std::fs;

use serde_json::Value;
use support::{Place, documents, model_folder};

const HOOKS: [&str; 2] = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"];

/// A place with a store of two hook points, `acts`.
fn place_with_store() -> Place {
    let place = Place::new();
    let text = place.write("text.jsonl", &documents(60, 100)).display().to_string();
    let model = model_folder(&place, "llama-tiny").display().to_string();
    let hooks = ["--hook", HOOKS[0], "--hook", HOOKS[1], "--context", "32", "--out", "acts"];
    place.succeed(&[&["capture", "--model", &model, "--text", &text][..], &hooks].concat());
    place
}

/// The arguments of a short training run at the second hook point.
fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let few = ["--ratio", "2", "--steps", "40", "--batch", "128", "--metrics-every", "10"];
    [&["train", "--activations", "acts", "--hook", HOOKS[1]][..], &few, more].concat()
}

fn fvu(place: &Place, dictionary: &str) -> f64 {
    let args = ["eval", "--dictionary", dictionary, "--activations", "acts", "--hook", HOOKS[1], "--json"];
    let rows: Vec<Value> = serde_json::from_str(&place.succeed(&args)).unwrap();
    rows.iter().find(|row| row["metric"] == "fvu").unwrap()["value"].as_f64().unwrap()
}

fn metrics(place: &Place, folder: &str) -> Vec<Value> {
    let lines = fs::read_to_string(place.path(folder).join("metrics.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_family_trains_and_is_exported() {
    let place = place_with_store();
    for family in ["tied", "relu", "top-k", "batch-top-k", "jump-relu", "gated", "matryoshka"] {
        let sizes = ["--k", "8", "--initial-threshold", "0.1", "--lr", "3e-3", "--lr-warmup-steps", "5"];
        let args = ["--family", family, "--out", family, "--sparsity-warmup-steps", "10", "--clip-norm", "1"];
        place.succeed(&train(&[&args[..], &sizes].concat()));
        let of_training = fvu(&place, family);
        assert!(of_training > 0.0 && of_training < 1.0, "{family}: {of_training}");
        let lines = metrics(&place, family);
        assert_eq!(lines.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [10, 20, 30, 40]);
        for key in ["loss", "fvu_batch", "l0", "dead", "lr", "alpha", "vectors_per_s"] {
            assert!(lines[0][key].is_number(), "{key} in {}", lines[0]);
        }
        // What others read is the same dictionary, read back.
        let out = format!("{family}-saelens");
        place.succeed(&["export", "--dictionary", family, "--format", "saelens", "--out", &out]);
        assert!((fvu(&place, &out) - of_training).abs() < 1e-5, "{family}");
    }
    place.succeed(&["export", "--dictionary", "top-k", "--format", "sparsify", "--out", "for-sparsify"]);
    assert!((fvu(&place, "for-sparsify") - fvu(&place, "top-k")).abs() < 1e-5);
    let said = place.fail(&["export", "--dictionary", "tied", "--format", "sparsify", "--out", "no"], 1);
    assert!(said.contains("Relu"), "{said}");
    place.succeed(&["export", "--dictionary", "gated", "--format", "saelens", "--gated", "--out", "gated-again"]);
    assert!((fvu(&place, "gated-again") - fvu(&place, "gated")).abs() < 1e-5);
}

#[test]
fn members_train_together_as_they_would_alone() {
    let place = place_with_store();
    place.write(
        "members.toml",
        "[[member]]\nname = \"small\"\nn_latents = 16\n\
         [[member]]\nname = \"sparse\"\nalpha = 0.02\nseed = 3\n\
         [[member]]\nname = \"chosen\"\nfamily = { kind = \"top-k\", k = 4 }\n",
    );
    let printed = place.succeed(&train(&["--members", "members.toml", "--out", "together"]));
    assert_eq!(printed.lines().count(), 3, "{printed}");
    place.succeed(
        &train(&["--latents", "16", "--out", "alone"])
            .into_iter()
            .filter(|a| !["--ratio", "2"].contains(a))
            .collect::<Vec<_>>(),
    );
    let weights = |folder: &str| fs::read(place.path(folder).join("dictionary.safetensors")).unwrap();
    assert_eq!(weights("together/small"), weights("alone"));
    let lines = metrics(&place, "together");
    assert_eq!(lines.len(), 12);
    assert!(lines.iter().any(|line| line["member"] == "chosen" && line["alpha"] == 0.0));
    // Finished: asked again it changes nothing, and no line comes twice.
    place.succeed(&train(&["--members", "members.toml", "--out", "together"]));
    assert_eq!(weights("together/small"), weights("alone"));
    assert_eq!(metrics(&place, "together").len(), 12);
}

#[test]
fn a_transcoder_predicts_another_hook_point() {
    let place = place_with_store();
    let said = place.fail(&train(&["--target-hook", HOOKS[0], "--out", "no"]), 1);
    assert!(said.contains("tied") && said.contains("transcoder"), "{said}");
    let args = ["--target-hook", HOOKS[0], "--family", "top-k", "--k", "8", "--lr", "1e-2", "--out", "transcoder"];
    place.succeed(&train(&args));
    let of = fs::read_to_string(place.path("transcoder/dictionary.json")).unwrap();
    assert!(of.contains(HOOKS[0]) && of.contains(HOOKS[1]), "{of}");
    let fvu: Vec<f64> = metrics(&place, "transcoder").iter().map(|line| line["fvu_batch"].as_f64().unwrap()).collect();
    assert!(fvu.is_sorted_by(|a, b| a > b) && fvu[3] < 0.7 * fvu[0], "{fvu:?}");
    let args = ["eval", "--dictionary", "transcoder", "--activations", "acts", "--hook", HOOKS[1]];
    let said = place.fail(&args, 1);
    assert!(said.contains("is a transcoder") && said.contains(HOOKS[0]), "{said}");
}

#[test]
fn training_stops_early_on_held_out_activations() {
    let place = place_with_store();
    let early = ["--held-out", "acts", "--early-every", "5", "--early-patience", "1", "--early-min-improvement", "0.5"];
    place.succeed(&train(&[&early[..], &["--out", "early"]].concat()));
    let of: Value = serde_json::from_str(&fs::read_to_string(place.path("early/dictionary.json")).unwrap()).unwrap();
    let steps = of["metadata"]["steps"].as_u64().unwrap();
    assert!(steps < 40 && steps.is_multiple_of(5), "{steps}");
}

#[test]
fn without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() {
    let place = place_with_store();
    place.succeed(&train(&["--out", "auto"]));
    place.succeed(&train(&["--device", "cpu", "--out", "cpu"]));
    let weights = |name: &str| fs::read(place.path(name).join("dictionary.safetensors")).unwrap();
    assert_eq!(weights("auto"), weights("cpu"));
    let said = place.fail(&train(&["--device", "cuda", "--out", "cuda"]), 1);
    assert!(said.contains("--device cuda: ") && said.contains("--device cpu"), "{said}");
    assert!(!place.path("cuda").exists(), "nothing is begun");
}

#[test]
fn bad_settings_are_named_in_a_sentence() {
    let place = place_with_store();
    let say = |more: &[&str], words: &[&str]| {
        let said = place.fail(&train(&[more, &["--out", "no"]].concat()), 1);
        for word in words {
            assert!(said.contains(word), "{more:?} says {said:?}, without {word:?}");
        }
    };
    say(&["--alpha=-1"], &["alpha is -1"]);
    say(&["--family", "top-k", "--k", "100000"], &["k is 100000", "n_latents"]);
    say(&["--family", "top-k", "--alpha", "0.1"], &["alpha", "top-k"]);
    say(&["--aux-k", "4"], &["aux_k", "tied"]);
    say(&["--clip-norm", "0"], &["clip_norm"]);
    say(&["--lr", "1e18"], &["diverged", "lower the learning rate"]);
    place.write("members.toml", "[[member]]\nname = \"a\"\nalhpa = 1\n");
    say(&["--members", "members.toml"], &["members.toml", "member 0", "alhpa"]);
    place.write("members.toml", "[[member]]\nname = \"../a\"\n");
    say(&["--members", "members.toml"], &["members.toml", "../a"]);
    place.write("members.toml", "[[member]]\nname = \"a\"\n[[member]]\nname = \"a\"\n");
    say(&["--members", "members.toml"], &["two named \"a\""]);
    place.write("members.toml", "name = 1\n");
    say(&["--members", "members.toml"], &["[[member]]"]);
    say(&["--members", "none.toml"], &["none.toml"]);
    // A batch of the members' own is one that all have.
    place.write("members.toml", "[[member]]\nname = \"a\"\nbatch = 64\n");
    // Long enough to leave a checkpoint, which rows in another order do not go on from.
    let long = |more: &[&'static str]| {
        let args = train(&[&["--members", "members.toml", "--out", "own-batch"][..], more].concat());
        args.into_iter().map(|arg| if arg == "40" { "150" } else { arg }).collect::<Vec<_>>()
    };
    place.succeed(&long(&[]));
    let said = place.fail(&long(&["--seed", "9"]), 1);
    assert!(said.contains("seed 0, not 9"), "{said}");
}
