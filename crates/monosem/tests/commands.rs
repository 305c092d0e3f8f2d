//! One command at a time, and what is said when the input is bad.

mod support;

use std::fs;

use support::{Place, documents, model_folder};

fn text_and_model(place: &Place) -> (String, String) {
    let text = place.write("text.jsonl", &documents(60, 100));
    (text.display().to_string(), model_folder(place, "llama-tiny").display().to_string())
}

#[test]
fn capture_train_and_eval_on_a_model_in_a_folder() {
    let place = Place::new();
    let (text, model) = text_and_model(&place);
    let hook = "blocks.1.hook_resid_post";
    let capture = |out: &str| {
        let args = ["capture", "--model", &model, "--text", &text, "--hook", hook, "--context", "32", "--out", out];
        place.succeed(&args)
    };
    assert!(capture("acts").contains(hook));
    // Asked again for what is there, it does it again from the last whole shard: nothing to do, nothing changed.
    let shard = place.path("acts").join(hook).join("activations-00000.safetensors");
    let before = fs::read(&shard).unwrap();
    capture("acts");
    assert_eq!(before, fs::read(&shard).unwrap());

    let train =
        ["train", "--activations", "acts", "--ratio", "2", "--alpha", "1e-3", "--steps", "150", "--batch", "128"];
    place.succeed(&[&train[..], &["--out", "dictionary"]].concat());
    let args = ["eval", "--dictionary", "dictionary", "--activations", "acts", "--json"];
    let rows: Vec<serde_json::Value> = serde_json::from_str(&place.succeed(&args)).unwrap();
    let fvu = rows.iter().find(|row| row["metric"] == "fvu").unwrap()["value"].as_f64().unwrap();
    assert!(fvu > 0.0 && fvu < 0.8, "{fvu}");
    let printed = place.succeed(&[
        "eval",
        "--dictionary",
        "dictionary",
        "--activations",
        "acts",
        "--model",
        &model,
        "--text",
        &text,
        "--contexts",
        "4",
    ]);
    assert!(printed.contains("loss_recovered") && printed.contains("perplexity"), "{printed}");
}

#[test]
fn token_ids_and_imported_activations() {
    let place = Place::new();
    let (_, model) = text_and_model(&place);
    let ids: Vec<u8> = (0..40 * 16_i64).flat_map(|i| (i * i % 97).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![40, 16], &ids).unwrap();
    fs::write(place.path("ids.safetensors"), safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
    let args = ["capture", "--model", &model, "--ids", "ids.safetensors", "--context", "16", "--out", "acts"];
    let hooks = ["--hook", "blocks.0.hook_resid_post", "--hook", "blocks.1.attn.hook_z", "--drop-positions", "none"];
    let printed = place.succeed(&[&args[..], &hooks].concat());
    assert!(printed.contains("640 rows of blocks.1.attn.hook_z"), "{printed}");

    // A shard is a plain safetensors file, so it can be imported as activations made elsewhere.
    let shard = "acts/blocks.1.attn.hook_z/activations-00000.safetensors";
    let printed = place.succeed(&["import", shard, "--hook", "blocks.1.attn.hook_z", "--out", "imported"]);
    assert!(printed.contains("640 rows"), "{printed}");
    let said = place.fail(&["train", "--activations", "acts", "--steps", "1", "--out", "d"], 1);
    assert!(said.contains("--hook") && said.contains("blocks.0.hook_resid_post"), "{said}");
}

#[test]
fn bad_input_is_named_in_a_sentence() {
    let place = Place::new();
    let (text, model) = text_and_model(&place);
    let say = |args: &[&str], code: i32, words: &[&str]| {
        let said = place.fail(args, code);
        for word in words {
            assert!(said.contains(word), "{args:?} says {said:?}, without {word:?}");
        }
    };
    say(&["reproduce", "--profile", "smolm"], 1, &["smollm2", "toy", "pythia-70m", "pythia-410m"]);
    say(&["reproduce", "--profile", "none.toml"], 1, &["none.toml"]);
    say(&["reproduce", "--profile", "toy", "--only", "sae"], 1, &["planted-uncorrelated"]);
    say(&["reproduce", "--profile", "toy", "--device", "cuda"], 1, &["--device cpu"]);
    place.write("key.toml", "base = \"toy\"\n[planted]\nalpha = [1.0]\n");
    say(&["reproduce", "--profile", "key.toml"], 1, &["key.toml", "`alpha`", "`alphas`"]);
    let capture = |model: &str, text: &str, hook: &str, code: i32, words: &[&str]| {
        say(
            &["capture", "--model", model, "--text", text, "--hook", hook, "--context", "32", "--out", "x"],
            code,
            words,
        );
    };
    let hook = "blocks.1.hook_resid_post";
    capture("gpt5", &text, hook, 2, &["smollm2-135m", "hf:"]);
    capture(&model, "brow", hook, 2, &["brown", ".jsonl"]);
    capture(&model, &text, "blocks.1.hook_q", 2, &["hook_resid_post", "mlp.hook_post"]);
    capture(&model, &text, "blocks.9.hook_resid_post", 1, &["blocks.9.hook_resid_post"]);
    let name = "hf:tiny/none";
    capture(name, &text, hook, 1, &[name]);

    let config = fs::read_to_string(format!("{model}/config.json")).unwrap();
    fs::write(format!("{model}/config.json"), config.replace("\"llama\"", "\"mamba\"")).unwrap();
    capture(&model, &text, hook, 1, &["mamba", "llama", "gpt2", "gpt_neox"]);
    fs::write(format!("{model}/config.json"), &config).unwrap();
    let weights = fs::read(format!("{model}/model.safetensors")).unwrap();
    fs::write(format!("{model}/model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    capture(&model, &text, hook, 1, &["model.safetensors"]);
    fs::write(format!("{model}/model.safetensors"), &weights).unwrap();
    fs::write(format!("{model}/tokenizer.json"), "{\"model\":").unwrap();
    capture(&model, &text, hook, 1, &["tokenizer.json"]);
    say(&["eval", "--dictionary", "none", "--activations", "none"], 1, &["none"]);
}

#[test]
fn the_graph_prints_in_every_format() {
    let place = Place::new();
    let print = |format: &str| place.succeed(&["graph", "--profile", "smollm2", "--format", format]);
    assert!(print("text").contains("capture-held-out"));
    assert!(print("dot").starts_with("digraph"));
    let nodes: Vec<serde_json::Value> = serde_json::from_str(&print("json")).unwrap();
    assert!(nodes.len() > 10);
    let workflow = print("snakemake");
    assert_eq!(workflow.matches("\nrule node_").count(), nodes.len());
    assert!(place.succeed(&["profiles"]).contains("pythia-410m"));
}
