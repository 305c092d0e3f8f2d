use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{Array2, Array3, s};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

use super::*;
use crate::SplitRule;

/// A file's tensors, as they will be written.
type Tensors = BTreeMap<&'static str, (Dtype, Vec<usize>, Vec<u8>)>;

const CONFIG_TEXT: &str = r#"{"model_name": "m", "cache_ctx_len": 4, "dataset_row": "text", "n_splits": 2}"#;

fn config() -> GatherConfig {
    let split = SplitRule::Documents { explain_top: 3, explain_random: 2, score_top: 2, score_random: 2 };
    GatherConfig { split, explain_min: 1, quiet: 2, quiet_below: 0.0, seed: 5 }
}

fn go_on(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn integers(values: impl IntoIterator<Item = i64>, dtype: Dtype) -> Vec<u8> {
    let bytes = dtype.bitsize() / 8;
    values.into_iter().flat_map(|value| value.to_le_bytes()[..bytes].to_vec()).collect()
}

fn floats(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let bytes = |value: &f32| match dtype {
        Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

/// Tensors of entries (row, position, latent less the first, activation), with tokens `[rows, ctx_len]` 0, 1, 2, ....
fn tensors(entries: &[(i64, i64, i64, f32)], types: [Dtype; 3], rows: usize, ctx_len: usize) -> Tensors {
    let places = entries.iter().flat_map(|(row, at, latent, _)| [*row, *at, *latent]);
    let activations: Vec<f32> = entries.iter().map(|entry| entry.3).collect();
    let tokens = integers(0..(rows * ctx_len) as i64, types[2]);
    BTreeMap::from([
        ("locations", (types[0], vec![entries.len(), 3], integers(places, types[0]))),
        ("activations", (types[1], vec![entries.len()], floats(&activations, types[1]))),
        ("tokens", (types[2], vec![rows, ctx_len], tokens)),
    ])
}

const AS_DELPHI: [Dtype; 3] = [Dtype::U16, Dtype::F16, Dtype::I64];

/// 2 rows of 4 tokens and a few entries.
fn small() -> Tensors {
    tensors(&[(0, 0, 1, 0.5), (0, 3, 0, 1.0), (1, 2, 0, 2.0), (1, 2, 2, 3.0)], AS_DELPHI, 2, 4)
}

fn write(folder: &Path, name: &str, tensors: &Tensors) -> PathBuf {
    let view = |(dtype, shape, bytes)| TensorView::new(dtype, shape, bytes).unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| (*name, view((*dtype, shape.clone(), &bytes[..]))));
    let path = folder.join(name);
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG), CONFIG_TEXT).unwrap();
    folder
}

/// A cache of latents 10 to 12, and 13 to 15 in a second file, in a folder of its own.
fn cache_of(first: &Tensors) -> (TempDir, Result<DelphiCache, DelphiError>) {
    let folder = folder();
    write(folder.path(), "10_12.safetensors", first);
    let mut second = small();
    for name in ["locations", "activations"] {
        let (dtype, ..) = second[name];
        let shape = if name == "locations" { vec![0, 3] } else { vec![0] };
        second.insert(name, (dtype, shape, Vec::new()));
    }
    if let Some(tokens) = first.get("tokens") {
        second.insert("tokens", tokens.clone());
    } else {
        second.remove("tokens");
    }
    write(folder.path(), "13_15.safetensors", &second);
    let cache = DelphiCache::open(folder.path());
    (folder, cache)
}

/// What opening a cache with this first file, or gathering from it, ends with.
fn refusal(first: &Tensors) -> String {
    let (_folder, cache) = cache_of(first);
    let gathered = cache.and_then(|cache| cache.gather(&[14, 11], 2, None, &config(), &mut go_on));
    gathered.unwrap_err().to_string()
}

fn with(mut tensors: Tensors, name: &'static str, tensor: (Dtype, Vec<usize>, Vec<u8>)) -> Tensors {
    tensors.insert(name, tensor);
    tensors
}

/// What a gatherer makes of dense activations `[rows, ctx_len, latents]`.
fn direct(dense: &Array3<f32>, features: &[usize], fragment: usize, documents: Option<&[u32]>) -> Vec<FeatureExamples> {
    let (rows, ctx_len, _) = dense.dim();
    let per_row = ctx_len / fragment;
    let cut = Array3::from_shape_fn((rows * per_row, fragment, features.len()), |(i, at, feature)| {
        dense[[i / per_row, i % per_row * fragment + at, feature]]
    });
    let document = |row| documents.map_or(row as u32, |documents| documents[row]);
    let documents: Vec<u32> = (0..rows * per_row).map(|i| document(i / per_row)).collect();
    let mut gatherer = Gatherer::of(features, &config());
    gatherer.add(0, &documents, cut.view());
    gatherer.finish()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/golden/delphi")
}

/// What the encoders returned while delphi wrote its caches, and the tokens.
fn golden_dense(name: &str) -> (Array3<f32>, Array2<u32>) {
    let bytes = fs::read(golden().join("dense.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (dense, tokens) = (file.tensor(name).unwrap(), file.tensor("tokens").unwrap());
    let values = dense.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let ids = tokens.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    let shape: [usize; 3] = dense.shape().try_into().unwrap();
    let rows: [usize; 2] = tokens.shape().try_into().unwrap();
    (Array3::from_shape_vec(shape, values).unwrap(), Array2::from_shape_vec(rows, ids).unwrap())
}

#[test]
fn caches_that_delphi_wrote_hold_what_the_encoders_returned() {
    for hook in ["h.0", "h.1"] {
        let (dense, tokens) = golden_dense(hook);
        let cache = DelphiCache::open(&golden().join(hook)).unwrap();
        assert_eq!(cache.latents().collect::<Vec<_>>(), [0..=5, 6..=12, 13..=19]);
        assert_eq!(cache.tokens().unwrap(), tokens);
        let features: Vec<usize> = (0..20).collect();
        for fragment in [1, 4, 5, 12] {
            let (fragments, found) = cache.gather(&features, fragment, None, &config(), &mut go_on).unwrap();
            assert_eq!(found, direct(&dense, &features, fragment, None), "{hook} in fragments of {fragment}");
            let per_row = 12 / fragment;
            for (i, of_fragment) in fragments.tokens.outer_iter().enumerate() {
                let start = i % per_row * fragment;
                assert_eq!(of_fragment, tokens.slice(s![i / per_row, start..start + fragment]));
                assert_eq!(fragments.documents[i] as usize, i / per_row);
            }
            assert_eq!(fragments.tokens.dim(), (8 * per_row, fragment));
        }
    }
}

#[test]
fn golden_values_by_hand() {
    let cache = DelphiCache::open(&golden().join("h.0")).unwrap();
    let DelphiConfig { model_name, ctx_len, dataset_column, .. } = cache.config();
    assert_eq!((&model_name[..], *ctx_len, dataset_column.as_deref()), ("random-gpt2", Some(12), Some("text")));
    assert_eq!(cache.tokens().unwrap().row(0).to_vec(), [45, 39, 24, 18, 13, 13, 41, 41, 9, 32, 48, 49]);
    let (_, found) = cache.gather(&[7, 0, 1, 19], 12, None, &config(), &mut go_on).unwrap();
    let counted: Vec<_> = found.iter().map(|f| (f.feature, f.moments.n, f.moments.nonzero, f.moments.max)).collect();
    // Latent 1 is at most 2.76e-5, a subnormal number of float16.
    let expected =
        [(7, 96, 0, 0.0), (0, 96, 22, 3.398_437_5), (1, 96, 4, 462.0 / 16_777_216.0), (19, 96, 32, 4.113_281_2)];
    assert_eq!(counted, expected);
    assert!(!found[0].enough && found[0].explain.is_empty());
}

#[test]
fn wide_caches_have_locations_of_32_bits() {
    let (dense, _) = golden_dense("wide");
    let cache = DelphiCache::open(&golden().join("wide/h.0")).unwrap();
    assert_eq!(cache.latents().collect::<Vec<_>>(), [0..=69_999]);
    let features = [0, 3, 65_535, 65_536, 69_999];
    let (_, found) = cache.gather(&features, 4, None, &config(), &mut go_on).unwrap();
    assert_eq!(found, direct(&dense, &features, 4, None));
    let (_, silent) = cache.gather(&[4], 4, None, &config(), &mut go_on).unwrap();
    assert_eq!((silent[0].moments.n, silent[0].moments.nonzero), (96, 0));
}

#[test]
fn caches_without_tokens_take_given_ones() {
    let open = || DelphiCache::open(&golden().join("no-tokens/h.0")).unwrap();
    let error = open().gather(&[2], 4, None, &config(), &mut go_on).unwrap_err();
    assert!(matches!(error, DelphiError::NoTokens { .. }) && error.to_string().contains("save_tokens=True"), "{error}");
    let other = DelphiCache::open(&golden().join("h.1")).unwrap();
    let tokens = other.tokens().unwrap().clone();
    let (dense, _) = golden_dense("h.0");
    let features = [2, 13];
    let picked = dense.select(ndarray::Axis(2), &features);
    let cache = open().with_tokens(tokens.clone()).unwrap();
    let (_, found) = cache.gather(&features, 6, None, &config(), &mut go_on).unwrap();
    assert_eq!(found, direct(&picked, &features, 6, None));

    let error = open().with_tokens(tokens.slice(s![.., ..8]).to_owned()).unwrap_err().to_string();
    assert!(error.contains("config.json: contexts of 12 tokens, but the tokens have rows of 8"), "{error}");
    let error = other.with_tokens(tokens.clone()).unwrap_err().to_string();
    assert!(error.contains("tokens of its own"), "{error}");
    let error = open().with_tokens(Array2::zeros((0, 12))).unwrap_err().to_string();
    assert!(error.contains("shape [0, 12]"), "{error}");
    let cache = open().with_tokens(tokens.slice(s![..5, ..]).to_owned()).unwrap();
    let error = cache.gather(&[2], 4, None, &config(), &mut go_on).unwrap_err().to_string();
    assert!(error.contains("there are 5 rows of tokens"), "{error}");
}

#[test]
fn a_row_is_on_one_side_only() {
    let cache = DelphiCache::open(&golden().join("h.1")).unwrap();
    let features: Vec<usize> = (0..20).collect();
    let (fragments, found) = cache.gather(&features, 3, None, &config(), &mut go_on).unwrap();
    let rows = |examples: &[crate::Example]| -> Vec<u32> {
        examples.iter().map(|e| fragments.documents[e.fragment as usize]).collect()
    };
    for feature in found {
        let explain = rows(&feature.explain);
        assert!(!rows(&feature.score_top).iter().any(|row| explain.contains(row)));
        assert!(!rows(&feature.score_random).iter().any(|row| explain.contains(row)));
    }
}

#[test]
fn damaged_files_are_refused() {
    let fine = small();
    assert!(cache_of(&fine).1.is_ok());
    let cases = [
        (
            with(fine.clone(), "locations", (Dtype::F32, vec![4, 3], vec![0; 48])),
            "`locations` is F32, expected integers",
        ),
        (with(fine.clone(), "locations", (Dtype::U8, vec![4, 3], vec![0; 12])), "`locations` is U8"),
        (with(fine.clone(), "activations", (Dtype::I64, vec![4], vec![0; 32])), "`activations` is I64, expected F16"),
        (with(fine.clone(), "tokens", (Dtype::F32, vec![2, 4], vec![0; 32])), "`tokens` is F32"),
        (with(fine.clone(), "locations", (Dtype::U16, vec![6, 2], vec![0; 24])), "[6, 2], expected [n, 3]"),
        (with(fine.clone(), "locations", (Dtype::U16, vec![12], vec![0; 24])), "[12], expected [n, 3]"),
        (with(fine.clone(), "activations", (Dtype::F16, vec![3], vec![0; 6])), "shape [3], expected [4]"),
        (with(fine.clone(), "activations", (Dtype::F16, vec![4, 1], vec![0; 8])), "shape [4, 1], expected [4]"),
        (with(fine.clone(), "tokens", (Dtype::I64, vec![8], vec![0; 64])), "[8], expected [rows, ctx_len]"),
        (with(fine.clone(), "tokens", (Dtype::I64, vec![0, 4], vec![])), "expected at least one token"),
        (with(fine.clone(), "tokens", (Dtype::I64, vec![4, 2], vec![0; 64])), "config.json: contexts of 4 tokens"),
        (
            with(fine.clone(), "tokens", (Dtype::I64, vec![2, 4], integers([0, 1, -3, 0, 0, 0, 0, 0], Dtype::I64))),
            "token 2 of row 0 is -3",
        ),
        (
            with(
                fine.clone(),
                "tokens",
                (Dtype::I64, vec![2, 4], integers([0, 1, 2, 3, 4, 1 << 32, 0, 0], Dtype::I64)),
            ),
            "token 1 of row 1 is 4294967296",
        ),
    ];
    for (tensors, expected) in cases {
        let error = refusal(&tensors);
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        assert!(error.contains(".safetensors: ") || error.contains("config.json: "), "{error}");
    }
    for name in ["locations", "activations"] {
        let mut tensors = fine.clone();
        tensors.remove(name);
        let error = refusal(&tensors);
        assert!(error.contains(&format!("no tensor `{name}`; it has [")), "{error}");
    }
}

#[test]
fn wrong_entries_are_refused() {
    let [u16s, f16s, _] = AS_DELPHI;
    let refused = |entries: &[(i64, i64, i64, f32)], places, activations, expected: &str| {
        let error = refusal(&tensors(entries, [places, activations, Dtype::I64], 2, 4));
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        assert!(error.contains("10_12.safetensors: entry "), "{error}");
    };
    let fine = (0, 1, 1, 1.0);
    refused(&[fine, (2, 0, 0, 1.0)], u16s, f16s, "entry 1, row 2, position 0, latent 0: there are 2 rows");
    refused(&[(0, 4, 0, 1.0)], u16s, f16s, "rows have 4 tokens");
    refused(&[(0, 0, 3, 1.0)], u16s, f16s, "the file is of latents 10 to 12, counted from 10");
    // Latents by their full number, as the first versions wrote them.
    refused(&[(0, 0, 11, 1.0)], Dtype::I64, Dtype::F32, "counted from 10");
    refused(&[(0, 0, -1, 1.0)], Dtype::I32, f16s, "latent -1: the file is of");
    refused(&[(-1, 0, 0, 1.0)], Dtype::I16, f16s, "row -1,");
    refused(&[(0, 0, i64::MAX, 1.0)], Dtype::U64, f16s, "the file is of");
    refused(&[fine, fine], u16s, f16s, "entry 1, row 0, position 1, latent 1: the same place as the entry before");
    refused(&[fine, (1, 0, 0, 1.0), fine], u16s, f16s, "comes after row 1, position 0; expected rising order");
    refused(&[fine, (0, 1, 0, 1.0)], u16s, f16s, "expected rising order");
    refused(&[(0, 0, 0, -1.0)], u16s, f16s, "activation -1, expected 0 to");
    refused(&[(0, 0, 0, f32::NAN)], u16s, f16s, "activation NaN");
    refused(&[(0, 0, 0, 70_000.0)], u16s, f16s, "activation inf: beyond 65504 delphi cannot store it");
    refused(&[(0, 0, 0, f32::INFINITY)], u16s, Dtype::F32, "activation inf, expected 0 to");
    refused(&[(0, 0, 0, f32::MAX)], u16s, Dtype::F32, "expected 0 to 8.5");
    // Also of a latent that was not asked for, and in what is dropped at the end of the last row.
    let (_folder, cache) = cache_of(&tensors(&[fine, (1, 3, 2, -2.0)], AS_DELPHI, 2, 4));
    let error = cache.unwrap().gather(&[11], 3, None, &config(), &mut go_on).unwrap_err().to_string();
    assert!(error.contains("row 1, position 3, latent 2: activation -2"), "{error}");
}

#[test]
fn positions_that_may_have_wrapped_are_refused() {
    let tensors = tensors(&[(0, 5, 0, 1.0)], [Dtype::U16, Dtype::F16, Dtype::U32], 1, 65_537);
    let (folder, cache) = cache_of(&tensors);
    assert!(cache.unwrap_err().to_string().contains("rows of 65537"));
    fs::write(folder.path().join(CONFIG), r#"{"model_name": "m"}"#).unwrap();
    let cache = DelphiCache::open(folder.path()).unwrap();
    let error = cache.gather(&[11], 8, None, &config(), &mut go_on).unwrap_err().to_string();
    assert!(error.contains("`locations` are U16, too narrow for positions up to 65537"), "{error}");
}

#[test]
fn truncated_files_and_false_headers_are_refused() {
    let (folder, cache) = cache_of(&small());
    drop(cache);
    let path = folder.path().join("10_12.safetensors");
    let whole = fs::read(&path).unwrap();
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        DelphiCache::open(folder.path()).unwrap_err().to_string()
    };
    for length in 0..whole.len() {
        let error = error(&whole[..length]);
        assert!(error.contains("10_12.safetensors: truncated or not a safetensors file"), "{length}: {error}");
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(error(&longer).contains("bytes of data, its header says"));
    let sized = |size: u64| [&size.to_le_bytes()[..], &whole[8..]].concat();
    assert!(error(&sized(u64::MAX)).contains("a header of 18446744073709551615 bytes"));
    assert!(error(&sized(3)).contains("truncated or not"));
    let lying = |header: &str| {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        assert!(error(&bytes).contains("truncated or not"), "{header}");
    };
    lying(r#"{"locations":{"dtype":"U16","shape":[4294967296,4294967296,3],"data_offsets":[0,6]}}"#);
    lying(r#"{"locations":{"dtype":"U64","shape":[2305843009213693951],"data_offsets":[0,18446744073709551608]}}"#);
    lying(r#"{"locations":{"dtype":"U16","shape":[1,3],"data_offsets":[6,0]}}"#);
    lying(r#"{"locations":{"dtype":"U16","shape":[1,3],"data_offsets":[0,6]}}"#);
    lying("[]");
}

#[test]
fn folders_that_are_no_cache_are_refused() {
    let error = |folder: &Path| DelphiCache::open(folder).unwrap_err().to_string();
    assert!(error(&golden().join("none")).contains("cannot read"));
    let parent = error(&golden());
    // dense.safetensors lies there as well, which is no file of a cache.
    assert!(parent.contains("dense.safetensors: the name does not say which latents"), "{parent}");
    let parent = error(&golden().join("wide"));
    assert!(parent.contains(r#"expected the folder of one hook point; those of ["h.0"] are"#), "{parent}");

    let (folder, _) = cache_of(&small());
    let path = folder.path();
    for name in [
        "a_b.safetensors",
        "7.safetensors",
        "5_3.safetensors",
        "-1_3.safetensors",
        "1_2_3.safetensors",
        "_.safetensors",
    ] {
        let made = write(path, name, &small());
        let error = error(path);
        assert!(error.contains(name) && error.contains("expected FIRST_LAST.safetensors"), "{error}");
        fs::remove_file(made).unwrap();
    }
    let made = write(path, "12_12.safetensors", &small());
    let overlap = error(path);
    assert!(
        overlap.contains("12_12.safetensors: of latent 12, which") && overlap.contains("10_12.safetensors"),
        "{overlap}"
    );
    fs::remove_file(made).unwrap();

    let mut without = small();
    without.remove("tokens");
    let made = write(path, "0_9.safetensors", &without);
    assert!(error(path).contains("shape of `tokens`: [2, 4], but none in"), "{}", error(path));
    let other = with(small(), "tokens", (Dtype::I64, vec![2, 4], vec![0; 64]));
    fs::remove_file(made).unwrap();
    write(path, "16_18.safetensors", &other);
    let cache = DelphiCache::open(path).unwrap();
    assert!(cache.gather(&[11], 2, None, &config(), &mut go_on).is_ok());
    let error_of = cache.gather(&[16], 2, None, &config(), &mut go_on).unwrap_err().to_string();
    assert!(error_of.contains("16_18.safetensors: token 1 of row 0 is 0, but 1 in"), "{error_of}");

    for (text, expected) in [
        ("{", "not a cache's configuration"),
        ("{}", "missing field `model_name`"),
        (r#"{"model_name": "m", "ctx_len": -4}"#, "invalid value"),
        (r#"{"model_name": "m", "ctx_len": 5}"#, "contexts of 5 tokens, but the tokens have rows of 4"),
        (&"[".repeat(1 << 20), "not a cache's"),
        (&" ".repeat((1 << 20) + 1), "longer than"),
    ] {
        fs::write(path.join(CONFIG), text).unwrap();
        let error = error(path);
        assert!(error.contains("config.json: ") && error.contains(expected), "{error} lacks {expected}");
    }
    fs::remove_file(path.join(CONFIG)).unwrap();
    assert!(error(path).contains("config.json: missing; delphi writes it last"));
}

#[test]
fn questions_that_a_cache_cannot_answer() {
    let (_folder, cache) = cache_of(&small());
    let cache = cache.unwrap();
    let gather = |features: &[usize], fragment, config: &GatherConfig| {
        cache.gather(features, fragment, None, config, &mut go_on).unwrap_err().to_string()
    };
    assert!(gather(&[11, 9], 2, &config()).contains("no file is of latent 9, only of 10 to 12, 13 to 15"));
    assert!(gather(&[11], 0, &config()).contains("fragments of 0 tokens: expected 1 to 4"));
    assert!(gather(&[11], 5, &config()).contains("fragments of 5 tokens: expected 1 to 4"));
    assert!(gather(&[11], 2, &GatherConfig { explain_min: 0, ..config() }).contains("`explain_min` is 0"));
    let mut seen = Vec::new();
    let stop = &mut |done| {
        seen.push(done);
        if done >= 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = cache.gather_in(1, &[11], 2, None, &config(), stop).unwrap_err();
    assert!(matches!(error, DelphiError::Stopped { done: 2, fragments: 4 }), "{error}");
    assert_eq!(seen, [1, 2]);
    let (fragments, found) = cache.gather(&[], 2, None, &config(), &mut go_on).unwrap();
    assert_eq!((fragments.tokens.dim(), found.len()), ((4, 2), 0));
    let panics = |features: &[usize], documents: Option<&[u32]>| {
        catch_unwind(AssertUnwindSafe(|| cache.gather(features, 2, documents, &config(), &mut go_on))).is_err()
    };
    assert!(panics(&[11, 11], None) && panics(&[11], Some(&[0; 3])) && !panics(&[11], Some(&[7, 7])));
}

/// A cache and what to gather of it.
#[derive(Debug, Clone)]
struct Case {
    /// `[rows, ctx_len, latents]`, 0 where there is no entry.
    dense: Array3<f32>,
    /// The number of the first latent, and how many each file has.
    first: usize,
    splits: Vec<usize>,
    types: [Dtype; 3],
    fragment: usize,
    features: Vec<usize>,
    documents: Option<Vec<u32>>,
    batch: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1..7_usize, 1..9_usize, prop::collection::vec(1..5_usize, 1..5), 0..100_000_usize, 1..400_usize);
    sizes.prop_flat_map(|(rows, ctx_len, splits, first, batch)| {
        let n: usize = splits.iter().sum();
        let value = prop_oneof![3 => Just(0.0_f32), 1 => (1..4000_i32).prop_map(|v| v as f32 / 256.0)];
        let dense = prop::collection::vec(value, rows * ctx_len * n)
            .prop_map(move |values| Array3::from_shape_vec((rows, ctx_len, n), values).unwrap());
        let integer =
            || prop::sample::select(vec![Dtype::U16, Dtype::I16, Dtype::U32, Dtype::I32, Dtype::U64, Dtype::I64]);
        let float = prop::sample::select(vec![Dtype::F16, Dtype::BF16, Dtype::F32]);
        let features = prop::sample::subsequence((0..n).collect::<Vec<_>>(), 0..=n).prop_shuffle();
        let documents = prop::option::of(prop::collection::vec(0..4_u32, rows));
        let rest = (integer(), float, integer(), 1..=ctx_len, features, documents);
        (dense, rest).prop_map(move |(dense, (places, activations, tokens, fragment, features, documents))| Case {
            dense,
            first,
            splits: splits.clone(),
            types: [places, activations, tokens],
            fragment,
            features,
            documents,
            batch,
        })
    })
}

proptest! {
    #[test]
    fn what_is_written_is_gathered(case in cases()) {
        let (rows, ctx_len, _) = case.dense.dim();
        let stored = |value: f32| match case.types[1] {
            Dtype::F16 => f16::from_f32(value).to_f32(),
            Dtype::BF16 => bf16::from_f32(value).to_f32(),
            _ => value,
        };
        let dense = case.dense.mapv(stored);
        let folder = folder();
        fs::write(folder.path().join(CONFIG), format!(r#"{{"model_name": "m", "ctx_len": {ctx_len}}}"#)).unwrap();
        let mut start = 0;
        for split in &case.splits {
            let part = dense.slice(s![.., .., start..start + split]);
            let entries: Vec<_> = part
                .indexed_iter()
                .filter(|(_, value)| **value != 0.0)
                .map(|((row, at, latent), value)| (row as i64, at as i64, latent as i64, *value))
                .collect();
            let name = format!("{}_{}.safetensors", case.first + start, case.first + start + split - 1);
            write(folder.path(), &name, &tensors(&entries, case.types, rows, ctx_len));
            start += split;
        }
        let cache = DelphiCache::open(folder.path()).unwrap();
        let features: Vec<usize> = case.features.iter().map(|feature| case.first + feature).collect();
        let documents = case.documents.as_deref();
        let (fragments, found) =
            cache.gather_in(case.batch, &features, case.fragment, documents, &config(), &mut go_on).unwrap();
        let picked = dense.select(ndarray::Axis(2), &case.features);
        prop_assert_eq!(found, direct(&picked, &features, case.fragment, documents));
        let per_row = ctx_len / case.fragment;
        for ((i, at), token) in fragments.tokens.indexed_iter() {
            prop_assert_eq!(*token as usize, i / per_row * ctx_len + i % per_row * case.fragment + at);
        }
    }

    /// Whatever is in a file: an error or an answer, and no panic.
    #[test]
    fn changed_bytes_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (folder, _) = cache_of(&small());
        let path = folder.path().join("10_12.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(cache) = DelphiCache::open(folder.path()) {
            let _ = cache.gather(&[10, 11, 12, 13], 2, None, &config(), &mut go_on);
        }
    }
}
