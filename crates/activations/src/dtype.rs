//! The number formats of a shard, little-endian as safetensors demands.

use std::fmt;
use std::str::FromStr;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// How many values are converted at a time; small enough for the stack, large enough for the vector units.
const BLOCK: usize = 256;

/// The type that activations have on disk. They are `f32` everywhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits: exact.
    F32,
    /// IEEE half precision, 11 significant bits, up to 65504; larger values are refused, not rounded to infinity.
    F16,
    /// The upper half of an `f32`, 8 significant bits, its whole range.
    Bf16,
}

impl Dtype {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of one value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name that `FromStr`, serde and the command line know.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub(crate) fn safetensors(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::F16 => safetensors::Dtype::F16,
            Self::Bf16 => safetensors::Dtype::BF16,
        }
    }

    /// Replaces `out` by the bytes of `values`. An overflow becomes an infinity; [`Self::all_finite`] finds it.
    pub(crate) fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        out.resize(values.len() * self.bytes(), 0);
        match self {
            Self::F32 => {
                for (to, from) in out.chunks_exact_mut(4).zip(values) {
                    to.copy_from_slice(&from.to_le_bytes());
                }
            }
            Self::F16 => {
                let mut block = [f16::ZERO; BLOCK];
                for (to, from) in out.chunks_mut(2 * BLOCK).zip(values.chunks(BLOCK)) {
                    let block = &mut block[..from.len()];
                    block.convert_from_f32_slice(from);
                    put_bits(to, block.reinterpret_cast());
                }
            }
            Self::Bf16 => {
                let mut block = [bf16::ZERO; BLOCK];
                for (to, from) in out.chunks_mut(2 * BLOCK).zip(values.chunks(BLOCK)) {
                    let block = &mut block[..from.len()];
                    block.convert_from_f32_slice(from);
                    put_bits(to, block.reinterpret_cast());
                }
            }
        }
    }

    /// Fills `out` from the bytes of as many values.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len(), out.len() * self.bytes());
        match self {
            Self::F32 => {
                for (to, from) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *to = f32::from_le_bytes(*from);
                }
            }
            Self::F16 => {
                let mut block = [f16::ZERO; BLOCK];
                for (to, from) in out.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
                    let block = &mut block[..to.len()];
                    get_bits(from, block.reinterpret_cast_mut());
                    block.convert_to_f32_slice(to);
                }
            }
            Self::Bf16 => {
                for (to, from) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
                }
            }
        }
    }

    /// Whether no encoded value is a NaN or an infinity: an exponent of all ones. Integer operations, so that it vectorises.
    pub(crate) fn all_finite(self, bytes: &[u8]) -> bool {
        let half = |mask: u16| {
            !bytes.as_chunks::<2>().0.iter().fold(false, |bad, b| bad | (u16::from_le_bytes(*b) & mask == mask))
        };
        match self {
            Self::F32 => {
                let mask = 0x7f80_0000;
                !bytes.as_chunks::<4>().0.iter().fold(false, |bad, b| bad | (u32::from_le_bytes(*b) & mask == mask))
            }
            Self::F16 => half(0x7c00),
            Self::Bf16 => half(0x7f80),
        }
    }
}

fn put_bits(to: &mut [u8], from: &[u16]) {
    for (to, from) in to.chunks_exact_mut(2).zip(from) {
        to.copy_from_slice(&from.to_le_bytes());
    }
}

fn get_bits(from: &[u8], to: &mut [u16]) {
    for (to, from) in to.iter_mut().zip(from.as_chunks::<2>().0) {
        *to = u16::from_le_bytes(*from);
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A string that names no storage type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a storage type: expected f32, f16 or bf16")]
pub struct ParseDtypeError {
    given: String,
}

impl FromStr for Dtype {
    type Err = ParseDtypeError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|d| d.name() == given).ok_or_else(|| ParseDtypeError { given: given.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(dtype: Dtype, values: &[f32]) -> Vec<f32> {
        let (mut bytes, mut back) = (Vec::new(), vec![0.0; values.len()]);
        dtype.encode(values, &mut bytes);
        dtype.decode(&bytes, &mut back);
        back
    }

    proptest! {
        #[test]
        fn values_round_as_the_half_crate_rounds_one_by_one(values in proptest::collection::vec(-7e4f32..7e4, 0..700)) {
            let one_by_one: Vec<f32> = values.iter().map(|v| f16::from_f32_const(*v).to_f32_const()).collect();
            prop_assert_eq!(round_trip(Dtype::F16, &values), one_by_one);
            let one_by_one: Vec<f32> = values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
            prop_assert_eq!(round_trip(Dtype::Bf16, &values), one_by_one);
            prop_assert_eq!(round_trip(Dtype::F32, &values), values);
        }

        #[test]
        fn one_bad_value_is_found(len in 1usize..600, at in 0usize..600, bad in 0usize..3) {
            let mut values = vec![-1.5f32; len];
            let mut bytes = Vec::new();
            for dtype in Dtype::ALL {
                dtype.encode(&values, &mut bytes);
                prop_assert!(dtype.all_finite(&bytes));
            }
            values[at % len] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][bad];
            for dtype in Dtype::ALL {
                dtype.encode(&values, &mut bytes);
                prop_assert!(!dtype.all_finite(&bytes));
            }
        }
    }

    #[test]
    fn names_parse_and_a_wrong_one_lists_them() {
        assert!(Dtype::ALL.iter().all(|d| d.to_string().parse() == Ok(*d)));
        assert!("f64".parse::<Dtype>().unwrap_err().to_string().contains("bf16"));
    }
}
