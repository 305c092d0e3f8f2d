//! The toy model against transformers, and its tokenizer: `data/toy-model/train.py` made both and the golden values.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use monosem_hooks::HookedModel;
use monosem_lm::{Family, LanguageModel, LoadOptions, Tokenizer};
use ndarray::{Array2, Array3};
use safetensors::SafeTensors;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/toy-model")
}

fn golden() -> (Array2<u32>, Array3<f32>) {
    let bytes = std::fs::read(folder().join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (ids, logits) = (file.tensor("input_ids").unwrap(), file.tensor("logits").unwrap());
    let values = ids.data().chunks_exact(8).map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap());
    let tokens = Array2::from_shape_vec((ids.shape()[0], ids.shape()[1]), values.collect()).unwrap();
    let values = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let [batch, position, d_vocab] = logits.shape().try_into().unwrap();
    (tokens, Array3::from_shape_vec((batch, position, d_vocab), values.collect()).unwrap())
}

#[test]
fn logits_are_those_of_transformers() {
    let model = LanguageModel::load(&folder(), &LoadOptions::default()).unwrap();
    assert_eq!(model.config().family, Family::Llama);
    let (tokens, expected) = golden();
    let logits = model.forward(tokens.view(), &mut |_, _| ControlFlow::Continue(())).continue_value().unwrap();
    assert_eq!(logits.dim(), expected.dim());
    let far = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-3, "a logit is off by {far}");
}

#[test]
fn a_token_is_a_word_or_a_mark_with_its_space() {
    let tokenizer = Tokenizer::load(&folder()).unwrap();
    let model = LanguageModel::load(&folder(), &LoadOptions::default()).unwrap();
    assert_eq!(tokenizer.vocab_size(), model.config().d_vocab);
    let text = "When Mary and John went to the store, John (now 12 years old) said, \"Hello, Mary!\"";
    let ids = tokenizer.encode(text).unwrap();
    let pieces: Vec<String> = ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
    assert_eq!(pieces[..4], ["When", " Mary", " and", " John"]);
    assert_eq!(pieces[8..13], [",", " John", " (", "now", " 12"]);
    assert_eq!(pieces[16..], [" said", ",", " \"", "Hello", ",", " Mary", "!", "\""]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!((tokenizer.eos(), tokenizer.token(0).as_deref()), (Some(0), Some("<|endoftext|>")));
    let unknown = tokenizer.encode("Mary xylophone").unwrap();
    assert_eq!(tokenizer.token(unknown[1]).as_deref(), Some("<unk>"));
}
