//! The toy language, its tokenizer and its model fit each other, and the model knows the rule that was planted.

use std::path::{Path, PathBuf};

use monosem_corpus::toy::{Property, PropertySet, ToyLanguage, labelled_contexts};
use monosem_lm::{LanguageModel, LoadOptions, Tokenizer};
use monosem_patching::{Half, IoiTask, accuracy};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&data("toy-model")).expect("the toy tokenizer loads")
}

#[test]
fn a_piece_is_a_token() {
    let tokenizer = tokenizer();
    for document in ToyLanguage::new(11).documents(300) {
        let ids = tokenizer.encode(&document.text()).expect("the language has no other words");
        let tokens: Vec<String> = ids.iter().map(|&id| tokenizer.token(id).expect("an id of the vocabulary")).collect();
        let pieces: Vec<&str> = document.pieces.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(tokens, pieces);
        assert_eq!(tokenizer.decode(&ids).expect("ids of the vocabulary"), document.text());
    }
}

#[test]
fn labels_hold_for_the_models_tokens() {
    let tokenizer = tokenizer();
    let eos = tokenizer.eos().expect("the toy tokenizer ends documents");
    let contexts = labelled_contexts(40, 6, 128, eos, &|text| Ok(tokenizer.encode(text)?)).expect("tokens align");
    assert!(contexts.tokens.nrows() > 40);
    for (&token, &bits) in contexts.tokens.iter().zip(&contexts.properties) {
        let text = tokenizer.token(token).expect("an id of the vocabulary");
        let name = text.trim_start();
        let held_out = ToyLanguage::held_out_names().any(|known| known == name);
        assert!(!held_out || PropertySet::from_bits(bits).contains(Property::Name), "{name}");
        assert!(token != eos || bits == 0);
    }
}

#[test]
fn the_model_finds_the_receiver_among_names_it_never_saw_receive() {
    let path = data("ioi/toy.toml");
    let text = std::fs::read_to_string(&path).expect("the toy task is there");
    let task = IoiTask::parse(&text, "data/ioi/toy.toml").expect("the toy task is well formed");
    assert!(task.names.iter().all(|name| ToyLanguage::held_out_names().any(|held_out| held_out == name)));
    let tokenizer = tokenizer();
    let model = LanguageModel::load(&data("toy-model"), &LoadOptions::default()).expect("the toy model loads");
    let encode = |text: &str| tokenizer.encode(text).expect("a text of the language");
    for half in [Half::Choose, Half::Report] {
        let prompts = task.prompts(200, 0, half, &encode).expect("enough names");
        let unknown = tokenizer.encode("xylophone").expect("a word")[0];
        assert!(prompts.iter().all(|prompt| !prompt.tokens.contains(&unknown)), "a word is not in the vocabulary");
        let share = accuracy(&model, &prompts).unwrap().share();
        assert!(share >= 0.95, "the receiver is above the giver in {share} of the prompts");
    }
}
