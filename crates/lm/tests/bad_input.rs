//! Folders in Hugging Face layout with something wrong in them: every error names the file and what was expected.

use std::fs;
use std::path::Path;

use monosem_lm::{LanguageModel, LmError, LoadOptions, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden");

/// A copy of a golden model to damage.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(GOLDEN).join(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn problem(folder: &Path) -> String {
    LanguageModel::load(folder, &LoadOptions::default()).err().expect("this model must not load").to_string()
}

/// Sets keys of `config.json` (null removes one) and returns what loading says.
fn with_config(name: &str, changes: &Value) -> Result<LanguageModel, LmError> {
    let folder = copy(name);
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(&path, config.to_string()).unwrap();
    LanguageModel::load(folder.path(), &LoadOptions::default())
}

fn said(name: &str, changes: &Value) -> String {
    let message = with_config(name, changes).err().expect("this configuration must not load").to_string();
    assert!(
        message.contains(name.split('-').next().unwrap())
            || message.contains("config.json")
            || message.contains("model.safetensors")
    );
    message
}

#[test]
fn a_wrong_configuration_is_explained() {
    let message = said("llama-tiny", &json!({"model_type": "mamba"}));
    assert!(["mamba", "gpt_neox", "gpt2", "llama"].iter().all(|w| message.contains(w)), "{message}");
    assert!(said("llama-tiny", &json!({"hidden_size": null})).contains("\"hidden_size\" is missing"));
    assert!(said("llama-tiny", &json!({"hidden_size": "big"})).contains("expected a whole number"));
    assert!(said("llama-tiny", &json!({"hidden_size": -3})).contains("is -3"));
    assert!(said("llama-tiny", &json!({"num_key_value_heads": 4})).contains("divisor of the 6 heads"));
    assert!(said("llama-tiny", &json!({"num_key_value_heads": 0})).contains("is 0"));
    assert!(said("llama-tiny", &json!({"head_dim": 7})).contains("even number"));
    assert!(said("llama-tiny", &json!({"hidden_act": "mish"})).contains("gelu_new"));
    assert!(said("llama-tiny", &json!({"intermediate_size": 1u64 << 60})).contains("mlp width"));
    assert!(said("llama-tiny", &json!({"intermediate_size": 1u64 << 27})).contains("expected [134217728, 48]"));
    assert!(
        said("llama-tiny", &json!({"tie_word_embeddings": false}))
            .contains("\"lm_head.weight\" of shape [97, 48] is missing")
    );
    assert!(said("llama-tiny", &json!({"num_hidden_layers": 3})).contains("model.layers.2.self_attn.q_proj.weight"));
    let yarn = json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}});
    let message = said("llama-tiny", &yarn);
    assert!(message.contains("yarn") && message.contains("default, linear or llama3"), "{message}");
    let message = said("llama-tiny", &json!({"rope_parameters": {"rope_type": "linear"}}));
    assert!(message.contains("factor"), "{message}");
    assert!(said("neox-tiny", &json!({"num_attention_heads": 0})).contains("divisor of the model width 64"));
    assert!(said("neox-tiny", &json!({"rope_parameters": null, "rotary_pct": 7})).contains("0 to 1"));
    assert!(
        said("gpt2-tiny", &json!({"scale_attn_by_inverse_layer_idx": true}))
            .contains("scale_attn_by_inverse_layer_idx")
    );
    assert!(said("gpt2-tiny", &json!({"n_inner": 100})).contains("expected [32, 100]"));
}

#[test]
fn configurations_of_transformers_4_load_too() {
    let new = with_config("llama-tiny", &json!({})).unwrap();
    let old = json!({"rope_parameters": null, "rope_theta": 100_000.0, "rope_scaling": null, "dtype": null, "torch_dtype": "float32"});
    assert_eq!(with_config("llama-tiny", &old).unwrap().config(), new.config());
    let new = with_config("neox-tiny", &json!({})).unwrap();
    let old = json!({"rope_parameters": null, "rotary_pct": 0.25, "rotary_emb_base": 10_000});
    assert_eq!(with_config("neox-tiny", &old).unwrap().config(), new.config());
    let linear = json!({"rope_parameters": null, "rope_theta": 1e5, "rope_scaling": {"type": "linear", "factor": 2.0}});
    assert_ne!(with_config("llama-tiny", &linear).unwrap().config(), new.config());
}

#[test]
fn absent_and_damaged_files_are_named() {
    let nowhere = problem(Path::new("/nonexistent/model"));
    assert!(nowhere.contains("cannot read /nonexistent/model"), "{nowhere}");
    let folder = copy("gpt2-tiny");
    let weights = folder.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    assert!(problem(folder.path()).contains("model.safetensors: not a whole safetensors file"));
    fs::write(&weights, []).unwrap();
    assert!(problem(folder.path()).contains("the file is empty"));
    fs::remove_file(&weights).unwrap();
    assert!(problem(folder.path()).contains("neither model.safetensors nor model.safetensors.index.json"));
    fs::write(folder.path().join("config.json"), "{\"model_type\": ").unwrap();
    assert!(problem(folder.path()).contains("config.json"));
    fs::write(folder.path().join("config.json"), "[]").unwrap();
    assert!(problem(folder.path()).contains("not a JSON object"));
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(problem(folder.path()).contains("config.json"));
}

#[test]
fn tokenizers_that_are_absent_or_damaged_are_named() {
    let said = |path: &Path| Tokenizer::load(path).err().expect("this tokenizer must not load").to_string();
    let folder = copy("gpt2-tiny");
    assert!(said(folder.path()).contains("tokenizer.json"));
    let path = folder.path().join("tokenizer.json");
    for text in ["", "{}", "{\"model\": {\"type\": \"BPE\"}}", "not json"] {
        fs::write(&path, text).unwrap();
        assert!(said(folder.path()).contains("tokenizer.json: not a tokenizer"), "{text}");
    }
}

#[test]
fn a_tokenizer_json_is_read_with_its_special_tokens() {
    let folder = copy("gpt2-tiny");
    let vocab =
        json!({"<|endoftext|>": 0, "h": 1, "i": 2, "\u{120}": 3, "hi": 4, "\u{120}hi": 5, "\u{c3}": 6, "\u{a9}": 7});
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let end = json!({
        "id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end], "normalizer": null, "pre_tokenizer": level,
        "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["h", "i"], ["\u{120}", "hi"]]}
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    // By number from config.json, then by text from tokenizer_config.json, whichever form it has.
    assert_eq!(Tokenizer::load(folder.path()).unwrap().eos(), Some(0));
    for eos in [json!("hi"), json!({"content": "hi"})] {
        fs::write(folder.path().join("tokenizer_config.json"), json!({"eos_token": eos}).to_string()).unwrap();
        assert_eq!(Tokenizer::load(folder.path()).unwrap().eos(), Some(4));
    }
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("hi hi<|endoftext|>\u{e9}").unwrap(), [4, 5, 0, 6, 7]);
    assert_eq!(tokenizer.decode(&[4, 5, 0, 6, 7]).unwrap(), "hi hi<|endoftext|>\u{e9}");
    assert_eq!(tokenizer.token(5).unwrap(), " hi");
    assert_eq!(tokenizer.token(6).unwrap(), "\u{fffd}");
    assert_eq!((tokenizer.vocab_size(), tokenizer.hash().len()), (8, 64));
}

#[test]
fn shards_are_joined_and_their_index_is_checked() {
    use safetensors::tensor::{SafeTensors, TensorView, serialize};
    let folder = copy("neox-tiny");
    let whole = fs::read(folder.path().join("model.safetensors")).unwrap();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&whole).unwrap();
    let mut map = serde_json::Map::new();
    let mut shards: [Vec<(String, TensorView<'_>)>; 2] = Default::default();
    for (i, (name, view)) in file.tensors().into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("model-0000{}-of-00002.safetensors", i % 2 + 1)));
        shards[i % 2].push((name, view));
    }
    for (i, shard) in shards.into_iter().enumerate() {
        let path = folder.path().join(format!("model-0000{}-of-00002.safetensors", i + 1));
        fs::write(path, serialize(shard, None).unwrap()).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let model = LanguageModel::load(folder.path(), &LoadOptions::default()).unwrap();
    let original = LanguageModel::load(&Path::new(GOLDEN).join("neox-tiny"), &LoadOptions::default()).unwrap();
    assert_eq!(model.config(), original.config());
    assert_ne!(model.weights_hash(), original.weights_hash());
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(problem(folder.path()).contains("model-00002-of-00002.safetensors"));
    fs::write(&index, json!({"weight_map": {"x": "../secret"}}).to_string()).unwrap();
    assert!(problem(folder.path()).contains("not a plain file name"));
    fs::write(&index, json!({"weight_map": {}}).to_string()).unwrap();
    assert!(problem(folder.path()).contains("lists no file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_safetensors_never_panic(cut in 0usize..125_000, flips in proptest::collection::vec((0usize..4000, 0u8..8), 0..4)) {
        let folder = copy("gpt2-tiny");
        let path = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        for (at, bit) in &flips {
            bytes[*at] ^= 1 << bit;
        }
        fs::write(&path, &bytes).unwrap();
        let _ = LanguageModel::load(folder.path(), &LoadOptions::default());
        bytes.truncate(cut);
        fs::write(&path, &bytes).unwrap();
        prop_assert!(LanguageModel::load(folder.path(), &LoadOptions::default()).is_err());
    }

    #[test]
    fn damaged_configurations_never_panic(flips in proptest::collection::vec((0usize..700, 0u8..8), 1..6), which in 0usize..3) {
        let folder = copy(["neox-tiny", "gpt2-tiny", "llama-tiny"][which]);
        let path = folder.path().join("config.json");
        let mut bytes = fs::read(&path).unwrap();
        for (at, bit) in flips {
            bytes[at] ^= 1 << bit;
        }
        fs::write(&path, &bytes).unwrap();
        let _ = LanguageModel::load(folder.path(), &LoadOptions::default());
    }
}
