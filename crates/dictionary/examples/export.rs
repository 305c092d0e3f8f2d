//! Writes one dictionary of each kind in each format that is written, into the folder given, each with `ours.safetensors`: activations x, and what
//! the dictionary makes of them (codes, x_hat). `data/golden/open_ours.py` opens them with the packages themselves.
//!
//!     cargo run -p monosem-dictionary --example export -- target/export

use std::error::Error;
use std::path::{Path, PathBuf};

use monosem_dictionary::formats::saelens::{self, Export, Form};
use monosem_dictionary::formats::sparsify;
use monosem_dictionary::{Activation, Dictionary, LinearDictionary};
use ndarray::{Array1, Array2};
use safetensors::tensor::{Dtype, TensorView};

const D_IN: usize = 8;
const D_OUT: usize = 6;
const LATENTS: usize = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("name the folder to write")?);
    let (relu, top_k, jump) = (Activation::Relu, Activation::TopK { k: 5 }, Activation::JumpRelu);
    let kinds = [
        ("saelens-standard", relu, D_IN, Form::Plain),
        ("saelens-topk", top_k, D_IN, Form::Plain),
        ("saelens-jumprelu", jump, D_IN, Form::Plain),
        ("saelens-gated", jump, D_IN, Form::Gated),
        ("saelens-gated-relu", relu, D_IN, Form::Gated),
        ("saelens-transcoder", relu, D_OUT, Form::Plain),
        ("saelens-transcoder-same-width", relu, D_IN, Form::Transcoder),
        ("saelens-jumprelu-transcoder", jump, D_OUT, Form::Plain),
    ];
    let mut metadata = serde_json::Map::new();
    metadata.insert("model_name".into(), "gpt2".into());
    metadata.insert("hook_name".into(), "blocks.3.hook_resid_post".into());
    for (seed, (name, activation, d_out, form)) in (0_u64..).zip(kinds) {
        let dictionary = random(activation, d_out, seed);
        let folder = folder.join(name);
        saelens::save(&dictionary, &folder, &Export { form, metadata: metadata.clone() })?;
        saelens::save_sparsity(Array1::linspace(0.0, 1.0, LATENTS).view(), &folder)?;
        write_golden(&dictionary, &folder)?;
    }
    for (seed, (name, transcode)) in (100..).zip([("sparsify-topk", false), ("sparsify-transcode", true)]) {
        let dictionary = random(top_k, D_IN, seed);
        let folder = folder.join(name);
        sparsify::save(&dictionary, &folder, transcode)?;
        write_golden(&dictionary, &folder)?;
    }
    Ok(())
}

/// Random in every array, so that no term can be forgotten unseen.
fn random(activation: Activation, d_out: usize, seed: u64) -> LinearDictionary {
    let draw = |rows, columns, seed| LinearDictionary::random(rows, columns, Activation::Linear, seed).w_enc;
    let vector = |length, seed| draw(1, length, seed).row(0).to_owned();
    LinearDictionary {
        w_enc: draw(LATENTS, D_IN, 10 * seed) * 1.5,
        b_enc: vector(LATENTS, 10 * seed + 1),
        w_dec: draw(LATENTS, d_out, 10 * seed + 2) * 1.5,
        b_dec: vector(d_out, 10 * seed + 3),
        activation,
        threshold: (activation == Activation::JumpRelu).then(|| vector(LATENTS, 10 * seed + 4) + 0.3),
    }
}

fn write_golden(dictionary: &LinearDictionary, folder: &Path) -> Result<(), Box<dyn Error>> {
    let x = LinearDictionary::random(32, D_IN, Activation::Linear, 7).w_enc * 3.0;
    let codes = dictionary.encode(x.view());
    let x_hat = dictionary.decode(&codes);
    let arrays = [("x", x), ("codes", codes.to_dense()), ("x_hat", x_hat)];
    let bytes: Vec<Vec<u8>> = arrays.iter().map(|(_, array)| little_endian(array)).collect();
    let mut views = Vec::new();
    for ((name, array), bytes) in arrays.iter().zip(&bytes) {
        views.push((*name, TensorView::new(Dtype::F32, array.shape().to_vec(), bytes)?));
    }
    Ok(std::fs::write(folder.join("ours.safetensors"), safetensors::serialize(views, None)?)?)
}

fn little_endian(array: &Array2<f32>) -> Vec<u8> {
    array.iter().flat_map(|value| value.to_le_bytes()).collect()
}
