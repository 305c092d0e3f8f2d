//! Activations from other programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use monosem_activations::{ActivationError, Dtype, Manifest, Store, import};
use ndarray::Array2;
use safetensors::Dtype as Stored;
use safetensors::tensor::TensorView;

use crate::formula::{point, source};

const HOOK: &str = "blocks.2.hook_mlp_out";

/// Values that every type can hold.
fn rows(n: usize, width: usize) -> Array2<f32> {
    Array2::from_shape_fn((n, width), |(r, d)| (r as f32 - 3.0) * 0.5 + d as f32)
}

fn bytes_of(rows: &Array2<f32>, stored: Stored) -> Vec<u8> {
    let each = rows.iter().copied();
    match stored {
        Stored::F16 => each.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
        Stored::BF16 => each.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        Stored::F32 => each.flat_map(f32::to_le_bytes).collect(),
        _ => each.flat_map(|v| f64::from(v).to_le_bytes()).collect(),
    }
}

/// A .npy file as NumPy's format description (version 1.0) has it.
fn npy(path: &Path, descr: &str, fortran: bool, shape: &str, data: &[u8]) -> PathBuf {
    let order = if fortran { "True" } else { "False" };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
    path.to_owned()
}

type Tensors = Vec<(&'static str, Stored, Vec<usize>, Vec<u8>)>;

fn safetensors(path: &Path, tensors: &Tensors) -> PathBuf {
    let views: BTreeMap<_, _> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    path.to_owned()
}

fn run(files: &[PathBuf], out: &Path) -> Result<Manifest, ActivationError> {
    import(files, point(HOOK), &source(), Dtype::F32, out)
}

fn read(out: &Path) -> Array2<f32> {
    let acts = Store::open(out).unwrap().hook(point(HOOK)).unwrap();
    let mut rows = Array2::zeros((acts.len(), acts.width()));
    acts.rows(0, rows.view_mut()).unwrap();
    rows
}

#[test]
fn every_type_of_both_formats_becomes_the_same_store() {
    let folder = tempfile::tempdir().unwrap();
    let expected = rows(9, 5);
    let mut files = Vec::new();
    for (descr, stored) in [("<f2", Stored::F16), ("<f4", Stored::F32), ("<f8", Stored::F64)] {
        let path = folder.path().join(format!("{}.npy", &descr[1..]));
        files.push(npy(&path, descr, false, "(9, 5)", &bytes_of(&expected, stored)));
    }
    for stored in [Stored::F16, Stored::BF16, Stored::F32, Stored::F64] {
        let path = folder.path().join(format!("{stored}.safetensors"));
        let other = ("ids", Stored::I64, vec![2, 2], vec![0; 32]);
        files.push(safetensors(&path, &vec![("x", stored, vec![9, 5], bytes_of(&expected, stored)), other]));
    }
    for (i, file) in files.iter().enumerate() {
        let out = folder.path().join(format!("store{i}"));
        let manifest = run(std::slice::from_ref(file), &out).unwrap();
        assert!(manifest.columns.is_empty() && manifest.contexts.is_none());
        assert_eq!(read(&out), expected, "{}", file.display());
        let acts = Store::open(&out).unwrap().hook(point(HOOK)).unwrap();
        assert!(
            acts.token_ids().unwrap().is_none()
                && acts.documents().unwrap().is_none()
                && acts.positions().unwrap().is_none()
        );
    }
    let out = folder.path().join("all");
    assert_eq!(run(&files, &out).unwrap().rows, 9 * files.len());
    assert_eq!(read(&out).row(9 * 3 + 2), expected.row(2));
    Store::open(&out).unwrap().verify().unwrap();
}

#[test]
fn columns_that_every_file_has_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let data = || bytes_of(&rows(3, 2), Stored::F32);
    let small = |from: u32| (from..from + 3).flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let large = |from: i64| (from..from + 3).flat_map(i64::to_le_bytes).collect::<Vec<u8>>();
    let first = vec![
        ("activations", Stored::F32, vec![3, 2], data()),
        ("other", Stored::F32, vec![3, 2], data()),
        ("token_ids", Stored::U32, vec![3], small(10)),
        ("document", Stored::U32, vec![3], small(0)),
    ];
    let mut second = first.clone();
    second[2] = ("token_ids", Stored::I64, vec![3], large(13));
    second.truncate(3);
    let files = [
        safetensors(&folder.path().join("a.safetensors"), &first),
        safetensors(&folder.path().join("b.safetensors"), &second),
    ];
    let out = folder.path().join("store");
    assert_eq!(run(&files, &out).unwrap().columns, ["token_ids"]);
    let acts = Store::open(&out).unwrap().hook(point(HOOK)).unwrap();
    assert_eq!(acts.token_ids().unwrap(), Some((10..16).collect()));
    assert_eq!(acts.documents().unwrap(), None);

    second[2].3 = large(-1);
    let file = safetensors(&folder.path().join("c.safetensors"), &second);
    let text = run(&[file], &folder.path().join("no")).unwrap_err().to_string();
    assert!(text.contains("c.safetensors: `token_ids` has entries beyond u32"), "{text}");
}

#[test]
fn a_store_imports_its_own_shards() {
    let folder = tempfile::tempdir().unwrap();
    let file = npy(&folder.path().join("x.npy"), "<f4", false, "(9, 5)", &bytes_of(&rows(9, 5), Stored::F32));
    run(&[file], &folder.path().join("one")).unwrap();
    let shard = folder.path().join("one").join(HOOK).join("activations-00000.safetensors");
    run(&[shard], &folder.path().join("two")).unwrap();
    assert_eq!(read(&folder.path().join("two")), rows(9, 5));
}

#[test]
fn bad_values_are_named_by_both_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut bad = rows(9, 5);
    bad[[6, 1]] = f32::INFINITY;
    let good = npy(&folder.path().join("good.npy"), "<f4", false, "(9, 5)", &bytes_of(&rows(9, 5), Stored::F32));
    let bad = npy(&folder.path().join("bad.npy"), "<f4", false, "(9, 5)", &bytes_of(&bad, Stored::F32));
    let out = folder.path().join("store");
    let error = run(&[good.clone(), bad], &out).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ActivationError::NonFinite { row: 15, dimension: 1, .. }), "{text}");
    assert!(text.contains("row 6 of") && text.contains("bad.npy"), "{text}");
    // Nothing of it looks like a store, and the next attempt is not in its way.
    Store::open(&out).unwrap_err();
    run(std::slice::from_ref(&good), &out).unwrap();
    let text = run(&[good], &out).unwrap_err().to_string();
    assert!(text.contains("starts in a folder without a store"), "{text}");
}

#[test]
fn files_of_another_kind_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (out, at) = (folder.path().join("store"), |name: &str| folder.path().join(name));
    let fails = |files: &[PathBuf], part: &str| {
        let text = run(files, &out).unwrap_err().to_string();
        assert!(text.contains(part), "{part:?} in {text}");
    };
    let data = bytes_of(&rows(9, 5), Stored::F32);
    let five = npy(&at("five.npy"), "<f4", false, "(9, 5)", &data);
    fails(&[], "no row among them");
    fails(&[at("none.npy")], "none.npy");
    fails(&[at("x.csv")], "x.csv");
    std::fs::write(at("x.csv"), "1,2").unwrap();
    fails(&[at("x.csv")], "neither in .npy nor in .safetensors");
    std::fs::write(at("text.npy"), "1,2").unwrap();
    fails(&[at("text.npy")], "not a .npy file");
    std::fs::write(at("long.npy"), b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'").unwrap();
    fails(&[at("long.npy")], "a header of 4294967295 bytes");
    fails(&[npy(&at("a.npy"), ">f4", false, "(9, 5)", &data)], "type '>f4'; expected little-endian");
    fails(&[npy(&at("b.npy"), "<i4", false, "(9, 5)", &data)], "expected little-endian f16, f32 or f64");
    fails(&[npy(&at("c.npy"), "<f4", true, "(9, 5)", &data)], "ascontiguousarray");
    fails(&[npy(&at("d.npy"), "<f4", false, "(45,)", &data)], "expected [rows, width]");
    fails(&[npy(&at("e.npy"), "<f4", false, "(10, 5)", &data)], "180 bytes of data for 10 x 5");
    fails(&[npy(&at("f.npy"), "<f4", false, "(1152921504606846976, 5)", &data)], "truncated or damaged");
    fails(&[npy(&at("g.npy"), "<f4", false, "(0, 5)", &[])], "no row among them");
    fails(&[npy(&at("h.npy"), "<f4", false, "(5, 0)", &[])], "rows of no values");
    // Cut or changed anywhere in its header, it may still be valid, but nothing panics.
    let (whole, changed) = (std::fs::read(&five).unwrap(), at("changed.npy"));
    for at in 0..whole.len() - data.len() {
        std::fs::write(&changed, &whole[..at]).unwrap();
        fails(std::slice::from_ref(&changed), "changed.npy");
        for flip in [0x01, 0x20, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            std::fs::write(&changed, &bytes).unwrap();
            let _ = run(std::slice::from_ref(&changed), &folder.path().join(format!("changed{at}-{flip}")));
        }
    }
    fails(&[five, npy(&at("i.npy"), "<f4", false, "(5, 9)", &data)], "9 values per row");

    let file = |name: &str, tensors: Tensors| safetensors(&at(name), &tensors);
    fails(&[file("j.safetensors", vec![])], "it has nothing");
    let two = vec![("x", Stored::F32, vec![9, 5], data.clone()), ("y", Stored::F32, vec![9, 5], data.clone())];
    fails(&[file("k.safetensors", two)], "it has x F32 [9, 5], y F32 [9, 5]");
    fails(&[file("l.safetensors", vec![("activations", Stored::F32, vec![45], data.clone())])], "activations F32 [45]");
    let short = ("position", Stored::U32, vec![1], vec![0; 4]);
    let whole = file("m.safetensors", vec![("x", Stored::F32, vec![9, 5], data), short]);
    fails(std::slice::from_ref(&whole), "`position` is U32 [1]; expected u32, i32 or i64 [9]");
    let bytes = std::fs::read(&whole).unwrap();
    for length in 0..bytes.len() {
        std::fs::write(&whole, &bytes[..length]).unwrap();
        fails(std::slice::from_ref(&whole), "m.safetensors: truncated or not safetensors");
    }
}
