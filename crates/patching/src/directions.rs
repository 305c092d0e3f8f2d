use monosem_dictionary::{Codes, Dictionary};
use ndarray::Array2;

/// A unit code is decoded this much larger, so that taking the decoder's bias away again costs no digits of a small direction. A power
/// of two: dividing by it is exact.
const GAIN: f32 = 65_536.0;

/// What one unit of each latent adds to a reconstruction: the decoder's rows `[latents, d_in]`.
///
/// # Panics
/// If a latent is not in the dictionary.
pub(crate) fn directions(dictionary: &dyn Dictionary, latents: &[usize]) -> Array2<f32> {
    let mut codes = Codes::new(dictionary.n_latents());
    for &latent in latents {
        let latent = u32::try_from(latent).expect("latents fit in 32 bits");
        codes.push_row([(latent, GAIN)]);
    }
    let mut nothing = Codes::new(dictionary.n_latents());
    nothing.push_row([]);
    let bias = dictionary.decode(&nothing);
    let mut rows = dictionary.decode(&codes);
    rows -= &bias;
    rows /= GAIN;
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use monosem_dictionary::{Activation, LinearDictionary};

    #[test]
    fn they_are_the_decoder_s_rows_whatever_its_bias() {
        let mut dictionary = LinearDictionary::random(7, 5, Activation::TopK { k: 2 }, 1);
        dictionary.b_dec.fill(33.3);
        let rows = directions(&dictionary, &[6, 0, 3]);
        for (row, latent) in rows.rows().into_iter().zip([6, 0, 3]) {
            let error = &row - &dictionary.w_dec.row(latent);
            assert!(error.iter().all(|e| e.abs() < 1e-6), "{error}");
        }
    }
}
