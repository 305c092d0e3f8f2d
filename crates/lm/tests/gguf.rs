//! GGUF files: the tiny Llama rewritten as one must give the same logits, and no damage to one may do more than give an error.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::{Meta, Tensor, write};
use monosem_hooks::HookedModel;
use monosem_lm::{LanguageModel, LmError, LoadOptions, Tokenizer};
use ndarray::{Array2, Array3};
use proptest::prelude::*;
use safetensors::SafeTensors;

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden/llama-tiny");

const NAMES: [(&str, &str); 11] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("model.layers.", "blk."),
    ("post_attention_layernorm", "ffn_norm"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
];

/// The tensors of the tiny Llama under GGUF's names, with query and key rows in GGUF's order.
fn tensors() -> Vec<Tensor> {
    let bytes = std::fs::read(Path::new(LLAMA).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let mut values: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let shape = view.shape().to_vec();
        if name.contains("q_proj") || name.contains("k_proj") {
            let (head_dim, width) = (8, shape[1]);
            let rows: Vec<&[f32]> = values.chunks_exact(width).collect();
            // Row 2j + b of a head in a GGUF file is row b * head_dim / 2 + j of the original.
            let permuted = (0..rows.len()).flat_map(|r| {
                let (head, within) = (r / head_dim, r % head_dim);
                rows[head * head_dim + (within % 2) * head_dim / 2 + within / 2].to_vec()
            });
            values = permuted.collect();
        }
        let name = NAMES.iter().fold(name.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours));
        Tensor { name: name.replace("mlp.down_proj", "ffn_down"), shape, values }
    };
    let mut all: Vec<Tensor> = file.iter().map(tensor).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn metadata() -> Vec<(String, Meta)> {
    let count = |key: &str, n| (format!("llama.{key}"), Meta::U32(n));
    let mut tokens: Vec<String> = ["<s>", "</s>"].map(str::to_owned).into();
    tokens.extend(('a'..='z').map(String::from));
    tokens.extend(["th", "the", "\u{120}"].map(str::to_owned));
    let kinds = (0..tokens.len()).map(|i| if i < 2 { 3 } else { 1 }).collect();
    let own = |key: &str, value| (format!("tokenizer.ggml.{key}"), value);
    vec![
        ("general.architecture".into(), Meta::Text("llama")),
        count("block_count", 2),
        count("context_length", 64),
        count("embedding_length", 48),
        count("feed_forward_length", 96),
        count("attention.head_count", 6),
        count("attention.head_count_kv", 2),
        ("llama.rope.freq_base".into(), Meta::F32(100_000.0)),
        ("llama.attention.layer_norm_rms_epsilon".into(), Meta::F32(1e-5)),
        own("model", Meta::Text("gpt2")),
        own("pre", Meta::Text("smollm")),
        own("tokens", Meta::Texts(tokens)),
        own("token_type", Meta::I32s(kinds)),
        own("merges", Meta::Texts(vec!["t h".into(), "th e".into()])),
        own("bos_token_id", Meta::U32(0)),
        own("eos_token_id", Meta::U32(1)),
    ]
}

fn load(bytes: &[u8]) -> (Result<LanguageModel, LmError>, Result<Tokenizer, LmError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (LanguageModel::load(&path, &LoadOptions::default()), Tokenizer::load(&path))
}

fn problem<T>(result: Result<T, LmError>) -> String {
    let message = result.err().expect("this file must not load").to_string();
    assert!(message.contains("model.gguf"), "names the file: {message}");
    message
}

fn logits(model: &LanguageModel) -> Array3<f32> {
    let tokens = Array2::from_shape_fn((2, 20), |(i, j)| ((i * 31 + j * 7) % 97) as u32);
    model.forward(tokens.view(), &mut |_, _| ControlFlow::Continue(())).continue_value().unwrap()
}

#[test]
fn a_model_gives_the_same_logits_from_either_format() {
    let (model, tokenizer) = load(&write(&metadata(), &tensors()));
    let theirs = LanguageModel::load(Path::new(LLAMA), &LoadOptions::default()).unwrap();
    assert_eq!(logits(&model.unwrap()), logits(&theirs));
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.encode("the h</s>").unwrap(), [29, 30, 9, 1]);
    assert_eq!(tokenizer.token(30).unwrap(), " ");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1)));
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let with = |key: &str, value: Meta| {
        let mut metadata = metadata();
        metadata.retain(|(k, _)| k != key);
        metadata.push((key.to_owned(), value));
        load(&write(&metadata, &tensors()))
    };
    let without = |key: &str| {
        let mut metadata = metadata();
        metadata.retain(|(k, _)| k != key);
        load(&write(&metadata, &tensors()))
    };
    let message = problem(with("general.architecture", Meta::Text("mamba")).0);
    assert!(message.contains("mamba") && message.contains("llama"), "{message}");
    assert!(problem(without("llama.block_count").0).contains("llama.block_count"));
    assert!(problem(with("llama.block_count", Meta::U32(3)).0).contains("blk.2.attn_q.weight"));
    assert!(problem(with("llama.feed_forward_length", Meta::U32(95)).0).contains("expected [95, 48]"));
    assert!(problem(with("llama.attention.head_count_kv", Meta::U32(0)).0).contains("is 0"));
    assert!(problem(with("llama.attention.head_count", Meta::U32(7)).0).contains("divisor"));
    assert!(problem(with("llama.rope.freq_base", Meta::Text("x")).0).contains("llama.rope.freq_base"));
    assert!(problem(with("llama.rope.scaling.type", Meta::Text("yarn")).0).contains("none or linear"));
    assert!(problem(with("general.alignment", Meta::U32(7)).0).contains("general.alignment"));
    let message = problem(with("tokenizer.ggml.pre", Meta::Text("tekken")).1);
    assert!(message.contains("tekken") && message.contains("smollm"), "lists what is supported: {message}");
    assert!(problem(with("tokenizer.ggml.model", Meta::Text("bert")).1).contains("byte-level BPE"));
    assert!(problem(with("tokenizer.ggml.eos_token_id", Meta::U32(999)).1).contains("eos_token_id"));
    assert!(problem(with("tokenizer.ggml.merges", Meta::Texts(vec!["th".into()])).1).contains("two tokens"));
    assert!(problem(with("tokenizer.ggml.merges", Meta::Texts(vec!["q q".into()])).1).contains("tokenizer"));
    assert!(problem(with("tokenizer.ggml.token_type", Meta::I32s(vec![1])).1).contains("1 entries for 31"));
}

#[test]
fn a_missing_tensor_is_named_with_its_shape() {
    let mut tensors = tensors();
    tensors.retain(|t| t.name != "blk.1.ffn_down.weight");
    let message = problem(load(&write(&metadata(), &tensors)).0);
    assert!(message.contains("blk.1.ffn_down.weight") && message.contains("[48, 96]"), "{message}");
}

#[test]
fn counts_that_cannot_be_true_are_refused_before_anything_is_allocated() {
    let whole = write(&metadata(), &tensors());
    // The number of tensors, the number of entries, the length of the first key.
    for at in [8, 16, 24] {
        for lie in [u64::MAX, 1 << 62, 1 << 40] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            let (model, tokenizer) = load(&bytes);
            assert!(problem(model).contains("room for"));
            problem(tokenizer);
        }
    }
    assert!(problem(load(b"GGUF").0).contains("ends inside"));
    assert!(problem(load(b"").0).contains("empty"));
    assert!(problem(load(&[7; 500]).0).contains("not a GGUF file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_truncated_file_is_an_error(cut in 0usize..2000, from_end: bool) {
        let whole = write(&metadata(), &tensors());
        let length = if from_end { whole.len() - 1 - cut } else { cut };
        problem(load(&whole[..length]).0);
    }

    #[test]
    fn flipped_bits_never_panic(flips in proptest::collection::vec((0usize..3500, 0u8..8), 1..4)) {
        let mut bytes = write(&metadata(), &tensors());
        for (at, bit) in flips {
            bytes[at] ^= 1 << bit;
        }
        let (model, tokenizer) = load(&bytes);
        // Some bits do no harm; then the model must run.
        if let Ok(model) = model
            && model.max_context() >= 20
            && model.d_vocab() >= 97
        {
            let _ = logits(&model);
        }
        if let Ok(tokenizer) = tokenizer {
            let _ = tokenizer.encode("the cat 12");
        }
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        let bytes = [&b"GGUF\x03\0\0\0"[..], &tail].concat();
        problem(load(&bytes).0);
    }
}
