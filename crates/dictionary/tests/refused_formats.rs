//! What the readers and writers of other packages' formats refuse, and what they say; what was written is read back.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use monosem_dictionary::formats::saelens::{self, Export, Form};
use monosem_dictionary::formats::{Format, dictionary_learning, gemma_scope, sparsify};
use monosem_dictionary::{Activation, Dictionary, DictionaryError, LinearDictionary};
use ndarray::{Array1, Array2};
use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden/formats")).join(name)
}

fn read(folder: &str, file: &str) -> Vec<u8> {
    fs::read(golden(folder).join(file)).unwrap()
}

/// One sentence with each of `words` in it.
#[track_caller]
fn says(result: Result<LinearDictionary, DictionaryError>, words: &[&str]) {
    let message = result.unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
    assert!(!message.contains('\n') && message.len() < 400, "{message:?}");
}

/// The zip file `bytes` with each entry through `change`.
fn rezipped(bytes: &[u8], change: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let name = entry.name().unwrap().into_owned();
        writer
            .start_file(name.as_str(), SimpleFileOptions::default().compression_method(CompressionMethod::Stored))
            .unwrap();
        writer.write_all(&change(&name, content)).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn saelens_says_what_it_cannot_be() {
    says(saelens::load(&golden("saelens-skip-transcoder")), &["saelens-skip-transcoder/cfg.json", "W_skip"]);
    says(saelens::load(&golden("no-such-folder")), &["cannot read", "cfg.json"]);
    let weights = read("saelens-standard", "sae_weights.safetensors");
    let config = String::from_utf8(read("saelens-standard", "cfg.json")).unwrap();
    let with = |from: &str, to: &str| {
        let changed = config.replace(from, to);
        assert_ne!(changed, config);
        saelens::parse(changed.as_bytes(), &weights)
    };
    let none = r#""normalize_activations": "none""#;
    says(with(none, r#""normalize_activations": "layer_norm""#), &["cfg.json", "layer_norm", "expected \"none\""]);
    let average = r#""normalize_activations": "expected_average_only_in""#;
    says(with(none, average), &["expected_average_only_in", "fold_activation_norm_scaling_factor"]);
    says(with(r#""standard""#, r#""temporal""#), &["cfg.json", "temporal", "save_inference_model"]);
    says(with(r#""standard""#, r#""topk""#), &["cfg.json", "no key \"k\""]);
    says(with(r#""standard""#, r#""gated""#), &["sae_weights.safetensors", "r_mag", "b_enc"]);
    says(with(r#""d_sae": 18"#, r#""d_sae": 19"#), &["W_enc", "[7, 18]", "[7, 19]"]);
    says(with(r#""d_sae": 18"#, r#""d_sae": 0"#), &["cfg.json", "d_sae 0"]);
    says(with(r#""d_in": 7"#, r#""d_out": 7"#), &["cfg.json", "d_in"]);
    says(saelens::parse(b"", &weights), &["cfg.json", "not a SAELens configuration"]);
    says(saelens::parse(config.as_bytes(), b"{}"), &["sae_weights.safetensors", "not a whole safetensors file"]);
}

/// Before version 6 a top-k autoencoder was a `standard` one with another `activation_fn`; read as ReLU it would have hundreds of codes a row.
#[test]
fn configurations_from_before_version_6_are_read_as_saelens_migrates_them() {
    let weights = read("saelens-standard", "sae_weights.safetensors");
    let config = |more: &str| {
        format!(r#"{{"architecture": "standard", "d_in": 7, "d_sae": 18, "apply_b_dec_to_input": true{more}}}"#)
    };
    let parsed = |more: &str| saelens::parse(config(more).as_bytes(), &weights);
    let expected = saelens::load(&golden("saelens-standard")).unwrap();
    assert_eq!(parsed(r#", "activation_fn_str": "relu", "normalize_activations": false"#).unwrap(), expected);
    let top_k =
        parsed(r#", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "sae_lens_version": "5.11.0""#)
            .unwrap();
    assert_eq!(top_k, LinearDictionary { activation: Activation::TopK { k: 3 }, ..expected });
    says(parsed(r#", "activation_fn_str": "tanh-relu""#), &["cfg.json", "tanh-relu"]);
}

#[test]
fn sparsify_says_what_it_cannot_be() {
    let weights = read("sparsify-topk", "sae.safetensors");
    let config = String::from_utf8(read("sparsify-topk", "cfg.json")).unwrap();
    let with = |from: &str, to: &str| {
        let changed = config.replace(from, to);
        assert_ne!(changed, config);
        sparsify::parse(changed.as_bytes(), &weights)
    };
    says(with(r#""skip_connection": false"#, r#""skip_connection": true"#), &["cfg.json", "W_skip"]);
    says(with(r#""topk""#, r#""groupmax""#), &["groupmax", "expected \"topk\""]);
    says(
        with(r#""num_latents": 18"#, r#""num_latents": 0"#),
        &["sae.safetensors", "encoder.weight", "[18, 7]", "[224, 7]"],
    );
    says(with(r#""k": 4"#, r#""k": -4"#), &["cfg.json", "-4"]);
}

#[test]
fn what_is_not_a_state_dict_is_refused_by_name() {
    let bytes = read("dictionary-learning-AutoEncoder", "ae.pt");
    let config = read("dictionary-learning-AutoEncoder", "config.json");
    let parse = |bytes: &[u8]| dictionary_learning::parse(Cursor::new(bytes), Some(&config));
    let pickled = |pickle: &[u8]| {
        let change = |name: &str, content| if name.ends_with(".pkl") { pickle.to_vec() } else { content };
        parse(&rezipped(&bytes, change))
    };
    assert!(parse(&rezipped(&bytes, |_, content| content)).is_ok());
    says(
        pickled(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R."),
        &["ae.pt", "posix.system", "state_dict()", "byte 2"],
    );
    says(pickled(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."), &["ae.pt", "builtins.eval"]);
    says(
        pickled(b"\x80\x02cdictionary_learning.dictionary\nAutoEncoder\n."),
        &["dictionary_learning.dictionary.AutoEncoder"],
    );
    says(pickled(b"\x80\x02}."), &["no tensor"]);
    says(pickled(b"\x80\x02}"), &["ends at byte 3"]);
    says(pickled(b"\x80\x02K\x01."), &["not a dict"]);
    says(parse(b"\x80\x02}."), &["ae.pt", "not a whole zip file"]);
    says(gemma_scope::parse(Cursor::new(&bytes)), &["params.npz", "no array \"W_enc\""]);
    // A flipped bit in a weight, which a checksum of the container tells.
    let weights = rezipped(&bytes, |_, content| content);
    let mut damaged = weights.clone();
    let at =
        weights.windows(8).position(|window| window == b"data/0PK" || window.starts_with(b"/data/0")).unwrap() + 20;
    damaged[at] ^= 1;
    says(parse(&damaged), &["ae.pt", "data/0"]);
}

#[test]
fn what_only_the_configuration_tells_is_asked_for() {
    let bytes = read("dictionary-learning-BatchTopKSAE", "ae.pt");
    let parse = |config: Option<&[u8]>| dictionary_learning::parse(Cursor::new(&bytes), config);
    says(parse(None), &["ae.pt", "AutoEncoderTopK", "BatchTopKSAE", "trainer.dict_class", "config.json"]);
    says(parse(Some(br#"{"trainer": {"dict_class": "AutoEncoderTopK", "k": 5}}"#)), &["\"k\" is 4", "expected 5"]);
    says(parse(Some(br#"{"trainer": {"dict_class": "IdentityDict"}}"#)), &["config.json", "IdentityDict"]);
    says(parse(Some(b"{}")), &["config.json", "trainer"]);
    let top_k = parse(Some(br#"{"trainer": {"dict_class": "AutoEncoderTopK"}}"#)).unwrap();
    assert_eq!(top_k.activation, Activation::TopK { k: 4 });
}

#[test]
fn arrays_of_another_kind_are_named() {
    let bytes = read("gemma-scope", "params.npz");
    let changed = |of: &str, from: &[u8], to: &[u8]| {
        let change = |name: &str, mut content: Vec<u8>| {
            if name == format!("{of}.npy") {
                let at = content.windows(from.len()).position(|window| window == from).unwrap();
                content.splice(at..at + from.len(), to.iter().copied());
            }
            content
        };
        gemma_scope::parse(Cursor::new(rezipped(&bytes, change)))
    };
    says(changed("W_enc", b"<f4", b">f4"), &["params.npz", "W_enc", ">f4"]);
    says(changed("W_enc", b"<f4", b"<i4"), &["W_enc", "<i4"]);
    says(changed("b_enc", b"(18,)", b"(19,)"), &["b_enc", "[19]", "[18]"]);
    says(changed("W_dec", b"(18, 7)", b"(7, 18)"), &["W_dec", "7 rows", "18"]);
    says(changed("threshold", b"NUMPY", b"numpy"), &["threshold", "not a .npy array"]);
    says(LinearDictionary::load_any(&golden("gemma-scope-compressed")), &["params.npz", "W_enc.npy", "is compressed"]);
}

#[test]
fn a_folder_is_recognised_or_the_message_says_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    says(
        LinearDictionary::load_any(folder.path()),
        &["dictionary.json", "sae_weights.safetensors", "ae.pt", "params.npz"],
    );
    says(LinearDictionary::load_any(&folder.path().join("nothing")), &["nothing", "no such file"]);
    let dictionary = LinearDictionary::random(12, 4, Activation::TopK { k: 2 }, 1);
    dictionary.save(folder.path(), serde_json::Value::Null).unwrap();
    assert_eq!(Format::of(folder.path()).unwrap(), Format::Monosem);
    assert_eq!(LinearDictionary::load_any(folder.path()).unwrap(), dictionary);
    sparsify::save(&dictionary, folder.path(), false).unwrap();
    says(LinearDictionary::load_any(folder.path()), &["several", "dictionary.json", "sae.safetensors"]);
    assert_eq!(LinearDictionary::load_any(&folder.path().join("sae.safetensors")).unwrap(), dictionary);
    assert_eq!(LinearDictionary::load_any(&folder.path().join("dictionary.json")).unwrap(), dictionary);
    says(LinearDictionary::load_any(&folder.path().join("cfg.json")), &["cfg.json", "expected one of"]);
    // Under another name.
    fs::copy(golden("gemma-scope").join("params.npz"), folder.path().join("layer-3.npz")).unwrap();
    assert!(LinearDictionary::load_any(&folder.path().join("layer-3.npz")).is_ok());
}

#[test]
fn what_a_format_cannot_say_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let random = |activation| LinearDictionary::random(12, 4, activation, 1);
    let unsupported = |result: Result<(), DictionaryError>, words: &[&str]| {
        assert!(matches!(&result, Err(DictionaryError::Unsupported { .. })), "{result:?}");
        says(result.map(|()| LinearDictionary::identity(1)), words);
    };
    unsupported(sparsify::save(&random(Activation::Relu), folder.path(), false), &["cfg.json", "top-k", "Relu"]);
    let mut wide = random(Activation::TopK { k: 2 });
    (wide.w_dec, wide.b_dec) = (Array2::ones((12, 6)), Array1::ones(6));
    unsupported(sparsify::save(&wide, folder.path(), true), &["from 4 to 6"]);
    unsupported(saelens::save(&wide, folder.path(), &Export::default()), &["TopK", "from 4 to 6"]);
    unsupported(saelens::save(&random(Activation::Linear), folder.path(), &Export::default()), &["Linear"]);
    let gated = Export { form: Form::Gated, ..Export::default() };
    unsupported(saelens::save(&random(Activation::TopK { k: 2 }), folder.path(), &gated), &["Gated", "TopK"]);
    let frequencies = Array1::from(vec![0.5, 1.5]);
    assert!(saelens::save_sparsity(frequencies.view(), folder.path()).unwrap_err().to_string().contains("latent 1"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_written_is_read(seed in 0u64..1000, n in 1usize..30, d in 1usize..9, d_out in 1usize..9, k in 0usize..40, kind in 0usize..3) {
        let folder = tempfile::tempdir().unwrap();
        let vector = |length, seed| LinearDictionary::random(1, length, Activation::Linear, seed).w_enc.row(0).to_owned();
        let activation = [Activation::Relu, Activation::JumpRelu, Activation::TopK { k }][kind];
        let d_out = if kind == 2 { d } else { d_out };
        let dictionary = LinearDictionary {
            w_enc: LinearDictionary::random(n, d, activation, seed).w_enc,
            b_enc: vector(n, seed + 1),
            w_dec: LinearDictionary::random(n, d_out, activation, seed + 2).w_enc,
            b_dec: vector(d_out, seed + 3),
            activation,
            threshold: (activation == Activation::JumpRelu).then(|| vector(n, seed + 4)),
        };
        let x = LinearDictionary::random(20, d, Activation::Linear, seed + 5).w_enc * 3.0;
        let codes = dictionary.encode(x.view());
        let same = |read: &LinearDictionary| {
            let read = read.encode(x.view());
            (read.to_dense() - codes.to_dense()).iter().all(|e| e.abs() < 1e-5)
        };

        let plain = folder.path().join("plain");
        saelens::save(&dictionary, &plain, &Export::default()).unwrap();
        let read = LinearDictionary::load_any(&plain).unwrap();
        let expected = if let Activation::TopK { k } = activation { Activation::TopK { k: k.min(n) } } else { activation };
        prop_assert_eq!(&read, &LinearDictionary { activation: expected, ..dictionary.clone() });

        if kind == 2 {
            for transcode in [false, true] {
                let folder = folder.path().join(format!("sparsify-{transcode}"));
                sparsify::save(&dictionary, &folder, transcode).unwrap();
                let read = LinearDictionary::load_any(&folder).unwrap();
                prop_assert!(same(&read));
                prop_assert!((&read.b_enc - &dictionary.b_enc).iter().all(|e| e.abs() < 1e-5));
            }
        } else if d_out == d {
            let gated = folder.path().join("gated");
            saelens::save(&dictionary, &gated, &Export { form: Form::Gated, ..Export::default() }).unwrap();
            prop_assert!(same(&LinearDictionary::load_any(&gated).unwrap()));
        }
    }
}
