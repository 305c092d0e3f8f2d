//! The laws of packing and splitting.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const EOS: u32 = 1000;

fn config(context: usize) -> CorpusConfig {
    let splits = SplitFractions { held_out: 0.3, interpretation: 0.2 };
    CorpusConfig { context, max_tokens: None, file_order: FileOrder::Sorted, field: "text".into(), seed: 3, splits }
}

#[expect(clippy::unnecessary_wraps, reason = "the signature of a tokenizer")]
fn encode(text: &str) -> Result<Vec<u32>, EncodeError> {
    Ok(text.bytes().map(u32::from).collect())
}

fn write(folder: &tempfile::TempDir, documents: &[String]) -> PathBuf {
    let path = folder.path().join("text.jsonl");
    let lines: Vec<String> = documents.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn ids_in(contexts: &Contexts) -> BTreeSet<u32> {
    contexts.documents.iter().copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn contexts_hold_every_document_in_order(
        texts in proptest::collection::vec("[a-z]{0,30}", 30..60),
        context in 1usize..9,
        seed: u64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&folder, &texts);
        let config = CorpusConfig { seed, ..config(context) };
        let (streams, n) = tokenise(&[&path], &config, EOS, &encode).unwrap();
        prop_assert_eq!(n, texts.len());
        for (split, stream) in Split::ALL.into_iter().zip(streams) {
            let mut expected = Vec::new();
            for (i, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
                if Split::of_document(i as u32, seed, &config.splits) == split {
                    expected.extend(text.bytes().map(|b| (u32::from(b), i as u32)).chain([(EOS, i as u32)]));
                }
            }
            expected.truncate(expected.len() / context * context);
            let contexts = stream.cut(false).unwrap();
            let found: Vec<_> =
                contexts.tokens.iter().copied().zip(contexts.documents.iter().copied()).collect();
            prop_assert_eq!(&found, &expected);
            // Shuffling moves whole contexts and nothing else.
            let rows = |c: &Contexts| {
                let mut rows: Vec<_> = c.tokens.rows().into_iter().zip(c.documents.rows())
                    .map(|(t, d)| (t.to_vec(), d.to_vec())).collect();
                rows.sort();
                rows
            };
            let before = rows(&contexts);
            prop_assert_eq!(before, rows(&contexts.shuffled(seed, split)));
        }
    }

    #[test]
    fn max_tokens_is_respected_and_gives_a_beginning(
        texts in proptest::collection::vec("[a-z]{20,40}", 60..80),
        max in 60usize..900,
        seed in 0u64..50,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&folder, &texts);
        let all = CorpusConfig { seed, ..config(6) };
        let some = CorpusConfig { max_tokens: Some(max), ..all.clone() };
        let (streams, read) = tokenise(&[&path], &some, EOS, &encode).unwrap();
        prop_assert!(read <= texts.len());
        let (whole, _) = tokenise(&[&path], &all, EOS, &encode).unwrap();
        let mut total = 0;
        for (split, (part, whole)) in Split::ALL.into_iter().zip(streams.into_iter().zip(whole)) {
            let (part, whole) = (part.cut(false).unwrap(), whole.cut(false).unwrap());
            let n = part.tokens.nrows();
            prop_assert_eq!(n, some.quota(split).min(whole.tokens.nrows()));
            prop_assert_eq!(part.tokens, whole.tokens.slice(ndarray::s![..n, ..]));
            total += n * 6;
        }
        prop_assert!(total <= max);
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_splits_share_no_document(
        texts in proptest::collection::vec("[a-z]{10,30}", 80..100),
        seed: u64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&folder, &texts);
        let config = CorpusConfig { seed, ..config(4) };
        let corpus = build(&[&path], &config, EOS, &encode).unwrap();
        prop_assert_eq!(&corpus, &build(&[&path], &config, EOS, &encode).unwrap());
        let (train, held, interp) = (ids_in(&corpus.train), ids_in(&corpus.held_out), ids_in(&corpus.interpretation));
        prop_assert!(train.is_disjoint(&held) && train.is_disjoint(&interp) && held.is_disjoint(&interp));
        // Documents added at the end leave the others where they were.
        let mut longer = texts.clone();
        longer.extend(texts);
        let longer = build(&[&write(&folder, &longer)], &config, EOS, &encode).unwrap();
        prop_assert!(held.is_subset(&ids_in(&longer.held_out)));
        prop_assert!(interp.is_subset(&ids_in(&longer.interpretation)));
    }
}

#[test]
fn shares_come_out_near_what_was_asked_for() {
    let fractions = SplitFractions { held_out: 0.1, interpretation: 0.05 };
    let mut counts = [0; 3];
    for index in 0..20_000 {
        counts[Split::of_document(index, 7, &fractions) as usize] += 1;
    }
    for (split, count) in Split::ALL.into_iter().zip(counts) {
        let share = f64::from(count) / 20_000.0;
        assert!((share - fractions.share(split)).abs() < 0.01, "{split}: {share}");
    }
    // Pinned: a change here would change every split that anybody has published.
    let first: Vec<usize> = (0..12).map(|i| Split::of_document(i, 0, &config(1).splits) as usize).collect();
    assert_eq!(first, PINNED);
}

const PINNED: [usize; 12] = [0, 1, 2, 2, 0, 0, 1, 0, 1, 1, 2, 1];

#[test]
fn contexts_survive_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..60).map(|i| format!("document number {i}")).collect();
    let corpus = build(&[&write(&folder, &texts)], &config(5), EOS, &encode).unwrap();
    let path = folder.path().join("train.safetensors");
    corpus.train.save(&path).unwrap();
    assert_eq!(Contexts::load(&path).unwrap(), corpus.train);
    let bytes = fs::read(&path).unwrap();
    corpus.train.save(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    let error = Contexts::load(&path).unwrap_err().to_string();
    assert!(error.contains("train.safetensors") && error.contains("whole"), "{error}");
    let empty = Contexts { tokens: ndarray::Array2::zeros((0, 5)), documents: ndarray::Array2::zeros((0, 5)) };
    empty.save(&path).unwrap();
    assert_eq!(Contexts::load(&path).unwrap(), empty);
}

#[test]
fn too_little_text_and_bad_settings_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, &["one".into()]);
    let error = build(&[&path], &config(4), EOS, &encode).unwrap_err();
    assert!(matches!(error, CorpusError::Short { .. }), "{error}");
    // A split without a share may be empty.
    let splits = SplitFractions { held_out: 0.0, interpretation: 0.0 };
    let corpus = build(&[&path], &CorpusConfig { splits, ..config(4) }, EOS, &encode).unwrap();
    assert_eq!((corpus.train.tokens.dim(), corpus.held_out.tokens.dim()), ((1, 4), (0, 4)));
    let error = build(&[&path], &CorpusConfig { splits, ..config(5) }, EOS, &encode).unwrap_err().to_string();
    assert!(error.contains("train split got 4 tokens from 1 documents"), "{error}");
    fs::write(&path, "\n").unwrap();
    assert!(matches!(build(&[&path], &config(4), EOS, &encode), Err(CorpusError::Empty { .. })));

    let refuse = |_: &str| -> Result<Vec<u32>, EncodeError> { Err("no such word".into()) };
    let path = write(&folder, &["one".into()]);
    let error = build(&[&path], &config(4), EOS, &refuse).unwrap_err().to_string();
    assert!(error.contains("text.jsonl:1") && error.contains("no such word"), "{error}");

    for (bad, key) in [
        (CorpusConfig { context: 0, ..config(4) }, "context"),
        (CorpusConfig { max_tokens: Some(3), ..config(4) }, "max_tokens"),
        (CorpusConfig { field: String::new(), ..config(4) }, "field"),
        (CorpusConfig { splits: SplitFractions { held_out: f64::NAN, interpretation: 0.0 }, ..config(4) }, "held_out"),
        (CorpusConfig { splits: SplitFractions { held_out: 0.6, interpretation: 0.4 }, ..config(4) }, "splits"),
    ] {
        let error = bad.validate().unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

fn ids_file(folder: &tempfile::TempDir, dtype: safetensors::Dtype, shape: [usize; 2], data: &[u8]) -> PathBuf {
    let path = folder.path().join("ids.safetensors");
    let view = safetensors::tensor::TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let mask = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![3], &[1, 2, 3]).unwrap();
    fs::write(&path, safetensors::serialize([("input_ids", view), ("attention_mask", mask)], None).unwrap()).unwrap();
    path
}

#[test]
fn token_ids_of_every_width_are_taken_as_they_are() {
    use safetensors::Dtype::{I32, I64, U16, U32};
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<u16> = (0..200).map(|i| i * 7).collect();
    let mut results = Vec::new();
    for dtype in [I64, I32, U32, U16] {
        let data: Vec<u8> = values
            .iter()
            .flat_map(|&v| match dtype {
                I64 => i64::from(v).to_le_bytes().to_vec(),
                U16 => v.to_le_bytes().to_vec(),
                _ => u32::from(v).to_le_bytes().to_vec(),
            })
            .collect();
        let path = ids_file(&folder, dtype, [50, 4], &data);
        results.push(from_token_ids(&path, &config(4), Some(2000)).unwrap());
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    let corpus = &results[0];
    assert_eq!((corpus.n_documents, corpus.n_tokens), (50, 200));
    for contexts in [&corpus.train, &corpus.held_out, &corpus.interpretation] {
        for (tokens, documents) in contexts.tokens.rows().into_iter().zip(contexts.documents.rows()) {
            let first = documents[0];
            assert!(documents.iter().all(|d| *d == first));
            assert_eq!(tokens.to_vec(), (0..4).map(|j| (first * 4 + j) * 7).collect::<Vec<_>>());
        }
    }
    let some = CorpusConfig { max_tokens: Some(80), ..config(4) };
    let path = folder.path().join("ids.safetensors");
    assert_eq!(from_token_ids(&path, &some, None).unwrap().n_tokens, 80);
}

#[test]
fn bad_token_ids_are_named_with_row_and_column() {
    use safetensors::Dtype::{F32, I64};
    let folder = tempfile::tempdir().unwrap();
    let mut ids = vec![5i64; 40];
    ids[13] = -100;
    let bytes = |ids: &[i64]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let path = ids_file(&folder, I64, [10, 4], &bytes(&ids));
    let error = from_token_ids(&path, &config(4), None).unwrap_err().to_string();
    assert!(error.contains("row 3, column 1: -100"), "{error}");
    ids[13] = 300;
    let path = ids_file(&folder, I64, [10, 4], &bytes(&ids));
    let error = from_token_ids(&path, &config(4), Some(300)).unwrap_err().to_string();
    assert!(error.contains("expected 0 to 299"), "{error}");
    let error = from_token_ids(&path, &config(8), None).unwrap_err().to_string();
    assert!(error.contains("have 4 tokens, the context has 8"), "{error}");
    let whole = fs::read(&path).unwrap();
    for cut in [4, 60, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = from_token_ids(&path, &config(4), None).unwrap_err();
        assert!(matches!(error, CorpusError::Format { .. }), "{error}");
    }
    let path = ids_file(&folder, F32, [5, 4], &[0; 80]);
    let error = from_token_ids(&path, &config(4), None).unwrap_err().to_string();
    assert!(error.contains("F32") && error.contains("I64"), "{error}");
    let other = folder.path().join("other.safetensors");
    build(&[&write(&folder, &vec!["some words".into(); 60])], &config(4), EOS, &encode)
        .unwrap()
        .train
        .save(&other)
        .unwrap();
    let error = from_token_ids(&other, &config(4), None).unwrap_err().to_string();
    assert!(error.contains("tensors present") && error.contains("tokens"), "{error}");
}

#[test]
fn a_seeded_order_samples_a_folder_and_is_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..40_u8 {
        fs::write(folder.path().join(format!("{i:02}.txt")), [b'A' + i].repeat(10)).unwrap();
    }
    let splits = SplitFractions { held_out: 0.0, interpretation: 0.0 };
    let config = CorpusConfig { max_tokens: Some(110), file_order: FileOrder::Seeded, splits, ..config(11) };
    let first = build(&[folder.path()], &config, EOS, &encode).unwrap();
    assert_eq!(first, build(&[folder.path()], &config, EOS, &encode).unwrap());
    let letters: BTreeSet<u32> = first.train.tokens.iter().copied().filter(|t| *t != EOS).collect();
    assert_eq!(letters.len(), 10);
    assert!(letters.iter().any(|letter| *letter >= u32::from(b'A' + 20)), "{letters:?}");
    let sorted = CorpusConfig { file_order: FileOrder::Sorted, ..config };
    let sorted = build(&[folder.path()], &sorted, EOS, &encode).unwrap();
    assert!(sorted.train.tokens.iter().all(|t| *t == EOS || *t < u32::from(b'A' + 10)));
}
