//! SmolLM2-135M-Instruct from its GGUF file: ids and logits against values that were taken down once from an independent implementation.
//!
//! The file (98 MB) is fetched by `cargo xtask test`. Without it these tests fail and say so.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use monosem_hooks::{HookPoint, HookedModel, Site};
use monosem_lm::{Family, LanguageModel, LoadOptions, Precision, Tokenizer};
use ndarray::{Array2, Array3, s};

const PROMPT: &str = "When Mary and John went to the store, John gave a drink to";
const IDS: [u32; 14] = [2427, 5099, 284, 2322, 3514, 288, 260, 4249, 28, 2322, 4502, 253, 5968, 288];

fn file() -> PathBuf {
    if let Some(path) = std::env::var_os("MONOSEM_SMOLLM2_GGUF") {
        return PathBuf::from(path);
    }
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = folder("MONOSEM_CACHE").or_else(|| Some(folder("XDG_CACHE_HOME")?.join("monosem")));
    let cache = cache.or_else(|| Some(folder("HOME")?.join(".cache/monosem"))).unwrap_or_default();
    let path = cache.join("assets/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        path.exists(),
        "{} is not there: run `cargo xtask test`, which fetches it, or set MONOSEM_SMOLLM2_GGUF to the file",
        path.display()
    );
    path
}

fn logits(model: &LanguageModel, tokens: &Array2<u32>) -> Array3<f32> {
    model.forward(tokens.view(), &mut |_, _| ControlFlow::Continue(())).continue_value().unwrap()
}

#[test]
fn ids_and_logits_are_the_known_ones() {
    let path = file();
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!(tokenizer.encode(PROMPT).unwrap(), IDS);
    let model = LanguageModel::load(&path, &LoadOptions::default()).unwrap();
    let tokens = Array2::from_shape_vec((1, IDS.len()), IDS.to_vec()).unwrap();
    let logits = logits(&model, &tokens);
    for (token, want) in [(5099, 11.037), (260, 7.2816), (2322, 4.9174)] {
        let got = logits[(0, IDS.len() - 1, token)];
        assert!((got - want).abs() < 1e-2, "the logit of {:?} is {got}, not {want}", tokenizer.token(token as u32));
        println!("{token}: {got}");
    }
}

#[test]
fn the_configuration_is_the_published_one() {
    let model = LanguageModel::load(&file(), &LoadOptions::default()).unwrap();
    let c = model.config();
    assert_eq!((c.family, c.n_layers, c.d_model, c.d_mlp), (Family::Llama, 30, 576, 1536));
    assert_eq!((c.n_heads, c.n_kv_heads, c.head_dim, c.d_vocab, c.max_context), (9, 3, 64, 49152, 8192));
    assert!(c.tied_embeddings && !c.qkv_bias && !c.mlp_bias);
    assert_eq!(model.weights_hash(), blake3_of(&file()));
}

fn blake3_of(path: &Path) -> String {
    blake3::hash(&std::fs::read(path).unwrap()).to_hex().to_string()
}

#[test]
fn texts_survive_the_way_to_ids_and_back() {
    let tokenizer = Tokenizer::load(&file()).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (49152, Some(1), Some(2)));
    for text in [
        PROMPT,
        "",
        " two  spaces\n\tand tabs",
        "1234 apples, 5.6%",
        "na\u{ef}ve caf\u{e9} \u{65e5}\u{672c}\u{8a9e} \u{1f600}",
        "it's WE'LL",
    ] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let pieces = tokenizer.pieces(text).unwrap();
        assert_eq!(pieces.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
        assert_eq!(pieces.iter().map(|(_, part)| *part).collect::<String>(), text);
        // Whatever is a character by itself has its own part.
        for (id, part) in &pieces {
            let token = tokenizer.token(*id).unwrap();
            assert!(token == *part || token.contains('\u{FFFD}'), "{token:?} {part:?}");
        }
    }
    assert_eq!(tokenizer.token(5099).unwrap(), " Mary");
    assert_eq!(tokenizer.token(0).unwrap(), "<|endoftext|>");
    assert_eq!(tokenizer.token(49152), None);
    assert_eq!(tokenizer.encode("2024").unwrap().len(), 4, "every digit alone");
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [2]);
    assert!(tokenizer.chat_template().unwrap().contains("<|im_start|>") && !tokenizer.begins_with_bos());
    assert!(tokenizer.decode(&[49152]).unwrap_err().to_string().contains("no token 49152"));
}

#[test]
fn passes_agree_whatever_the_padding_the_batch_and_the_threads() {
    let model = LanguageModel::load(&file(), &LoadOptions::default()).unwrap();
    let stop = HookPoint::new(3, Site::ResidPost);
    let residual = |tokens: &Array2<u32>, threads: usize| {
        let mut found = None;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // The hook need not be `Send`, so the pass is started from within the pool.
        pool.install(|| {
            let _ = model.forward(tokens.view(), &mut |point, x| {
                if point != stop {
                    return ControlFlow::Continue(());
                }
                found = Some(x.to_owned());
                ControlFlow::Break(())
            });
        });
        found.unwrap()
    };
    let tokens =
        Array2::from_shape_fn(
            (3, 100),
            |(i, j)| if i == 1 && j < IDS.len() { IDS[j] } else { (i * 977 + j * 31) as u32 },
        );
    let one = residual(&tokens, 1);
    assert_eq!(one, residual(&tokens, 2), "bitwise the same on two threads");
    let mut padded = tokens.clone();
    padded.slice_mut(s![.., 60..]).fill(0);
    assert_eq!(one.slice(s![.., ..60, ..]), residual(&padded, 2).slice(s![.., ..60, ..]), "padding reaches nothing");
    let alone = residual(&tokens.slice(s![1..2, ..]).to_owned(), 2);
    let norm = |x: &Array3<f32>| x.iter().map(|v| v * v).sum::<f32>().sqrt();
    let difference = &alone - &one.slice(s![1..2, .., ..]);
    assert!(norm(&difference) < 1e-5 * norm(&alone), "{} of {}", norm(&difference), norm(&alone));
}

#[test]
fn bf16_moves_activations_by_little() {
    let layer = HookPoint::new(17, Site::ResidPost);
    let tokens = Array2::from_shape_vec((1, IDS.len()), IDS.to_vec()).unwrap();
    let [exact, rounded] = [Precision::F32, Precision::Bf16].map(|precision| {
        let model = LanguageModel::load(&file(), &LoadOptions { precision, ..LoadOptions::default() }).unwrap();
        let mut found = None;
        let _ = model.forward(tokens.view(), &mut |point, x| {
            if point == layer {
                found = Some(x.to_owned());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found.unwrap()
    });
    let norm = |x: &Array3<f32>| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    // Position 0 is an attention sink whose norm would hide the others.
    let (exact, rounded) = (exact.slice(s![.., 1.., ..]).to_owned(), rounded.slice(s![.., 1.., ..]).to_owned());
    let relative = norm(&(&rounded - &exact)) / norm(&exact);
    println!("relative error {relative:e}");
    assert!(relative > 0.0 && relative < 0.01, "{relative}");
}
