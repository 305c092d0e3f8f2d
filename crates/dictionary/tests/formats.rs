//! What other packages wrote, read here: `data/golden/formats.py` made the files, and what each package itself makes of them.

use std::path::{Path, PathBuf};

use monosem_dictionary::formats::Format;
use monosem_dictionary::{Dictionary, LinearDictionary};
use ndarray::Array2;
use safetensors::SafeTensors;

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden/formats")).join(name)
}

/// Encodes and decodes as the package did, to 1e-5.
fn agrees(name: &str, dictionary: &LinearDictionary) {
    let bytes = std::fs::read(folder(name).join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let matrix = |key: &str| {
        let tensor = tensors.tensor(key).unwrap();
        let values = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Array2::from_shape_vec((tensor.shape()[0], tensor.shape()[1]), values).unwrap()
    };
    let (x, expected, x_hat) = (matrix("x"), matrix("codes"), matrix("x_hat"));
    let codes = dictionary.encode(x.view());
    let worst = |difference: Array2<f32>| difference.iter().fold(0.0_f32, |worst, e| worst.max(e.abs()));
    let (of_codes, of_x_hat) = (worst(codes.to_dense() - &expected), worst(dictionary.decode(&codes) - &x_hat));
    println!("{name}: codes {of_codes:.1e}, x_hat {of_x_hat:.1e}");
    assert!(of_codes < 1e-5 && of_x_hat < 1e-5, "{name}: codes differ by {of_codes}, reconstructions by {of_x_hat}");
}

#[test]
fn every_file_is_recognised_and_agrees() {
    let mut names: Vec<_> = std::fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap()).collect();
    names.retain(|entry| entry.path().join("golden.safetensors").exists());
    assert!(names.len() > 20, "only {} golden folders", names.len());
    for name in names.iter().map(|entry| entry.file_name().into_string().unwrap()) {
        agrees(&name, &LinearDictionary::load_any(&folder(&name)).unwrap());
        let format = Format::of(&folder(&name)).unwrap();
        agrees(&name, &LinearDictionary::load_any(&folder(&name).join(format.file_name())).unwrap());
    }
}
