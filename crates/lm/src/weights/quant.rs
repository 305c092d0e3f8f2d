//! The number formats of weight files, decoded to `f32`.
//!
//! Block layouts are those of ggml (`ggml-common.h`, `ggml-quants.c`): a block holds 32 or 256 consecutive values of a row, with its
//! scales first or last, little endian.

use half::{bf16, f16};
use rayon::prelude::*;

/// How the values of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q6K,
}

impl Encoding {
    /// Every encoding of a GGUF file that can be read, for messages.
    pub(crate) const GGUF_NAMES: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K or Q6_K";

    /// The encoding that a GGUF file means by a type number (`enum ggml_type`).
    pub(crate) fn from_ggml(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Values in a block and bytes in a block.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 2 + 16),
            Self::Q4_1 => (32, 4 + 16),
            Self::Q5_0 => (32, 2 + 4 + 16),
            Self::Q5_1 => (32, 4 + 4 + 16),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q4K => (256, 4 + 12 + 128),
            Self::Q6K => (256, 128 + 64 + 16 + 2),
        }
    }

    /// Bytes that `count` values take; `None` if they are not whole blocks or the number overflows.
    pub(crate) fn bytes(self, count: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        count.is_multiple_of(values).then(|| (count / values).checked_mul(bytes)).flatten()
    }

    /// Decodes `count` values; `None` if `bytes` is not exactly as long as they take.
    pub(crate) fn decode(self, bytes: &[u8], count: usize) -> Option<Vec<f32>> {
        if self.bytes(count)? != bytes.len() {
            return None;
        }
        let (values, size) = self.block();
        let mut out = vec![0.0; count];
        // Tasks of whole blocks, large enough that starting one costs nothing.
        let blocks = 65_536 / values;
        out.par_chunks_mut(blocks * values).zip(bytes.par_chunks(blocks * size)).for_each(|(out, bytes)| {
            for (out, block) in out.chunks_exact_mut(values).zip(bytes.chunks_exact(size)) {
                self.decode_block(block, out);
            }
        });
        Some(out)
    }

    fn decode_block(self, b: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Self::F16 => out[0] = half_at(b, 0),
            Self::Bf16 => out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Self::Q4_0 => {
                let d = half_at(b, 0);
                nibbles(&b[2..18], out, |q, _| d * (f32::from(q) - 8.0));
            }
            Self::Q4_1 => {
                let (d, m) = (half_at(b, 0), half_at(b, 2));
                nibbles(&b[4..20], out, |q, _| d * f32::from(q) + m);
            }
            Self::Q5_0 => {
                let (d, high) = (half_at(b, 0), u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
                nibbles(&b[6..22], out, |q, i| d * (f32::from(q | fifth_bit(high, i)) - 16.0));
            }
            Self::Q5_1 => {
                let (d, m) = (half_at(b, 0), half_at(b, 2));
                let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
                nibbles(&b[8..24], out, |q, i| d * f32::from(q | fifth_bit(high, i)) + m);
            }
            Self::Q8_0 => {
                let d = half_at(b, 0);
                out.iter_mut().zip(&b[2..34]).for_each(|(o, &q)| *o = d * f32::from(q.cast_signed()));
            }
            Self::Q4K => q4_k(b, out),
            Self::Q6K => q6_k(b, out),
        }
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// 16 bytes give 32 values: the low nibbles the first half, the high nibbles the second.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    for (i, &byte) in bytes.iter().enumerate() {
        out[i] = value(byte & 15, i);
        out[i + 16] = value(byte >> 4, i + 16);
    }
}

fn fifth_bit(high: u32, i: usize) -> u8 {
    (((high >> i) & 1) as u8) << 4
}

/// Eight groups of 32 values, each with a six-bit scale and a six-bit minimum; all are scaled by two f16 of the block.
fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, d_min) = (half_at(b, 0), half_at(b, 2));
    let packed = &b[4..16];
    let scale_and_min = |group: usize| {
        if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            // The upper two bits of the later groups are kept in the upper bits of the earlier ones.
            let scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
            let min = (packed[group + 4] >> 4) | (packed[group] >> 6) << 4;
            (scale, min)
        }
    };
    for (pair, bytes) in b[16..144].chunks_exact(32).enumerate() {
        for (high, out) in out[pair * 64..][..64].chunks_exact_mut(32).enumerate() {
            let (scale, min) = scale_and_min(pair * 2 + high);
            let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
            out.iter_mut().zip(bytes).for_each(|(o, byte)| *o = scale * f32::from((byte >> (4 * high)) & 15) - min);
        }
    }
}

/// Sixteen groups of 16 values with an eight-bit scale each; four bits of a value in one plane, two in another.
fn q6_k(b: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for half in 0..2 {
        let (low, high) = (&low[half * 64..][..64], &high[half * 32..][..32]);
        for quarter in 0..4 {
            for i in 0..32 {
                let four = (low[i + 32 * (quarter % 2)] >> (4 * (quarter / 2))) & 15;
                let two = (high[i] >> (2 * quarter)) & 3;
                let scale = scales[half * 8 + quarter * 2 + i / 16].cast_signed();
                out[half * 128 + quarter * 32 + i] = d * f32::from(scale) * (f32::from(four | two << 4) - 32.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// `data/golden/quant.py` made the file with the reference decoders of the `gguf` package.
    #[test]
    fn every_block_type_decodes_as_in_the_reference() {
        let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden/quant.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let names = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K"];
        let numbers = [0, 1, 30, 2, 3, 6, 7, 8, 12, 14];
        for (name, number) in names.into_iter().zip(numbers) {
            let encoding = Encoding::from_ggml(number).unwrap();
            let raw = golden.tensor(&format!("{name}.bytes")).unwrap();
            let want = golden.tensor(&format!("{name}.values")).unwrap();
            let want: Vec<f32> =
                want.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let got = encoding.decode(raw.data(), want.len()).unwrap();
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 1e-6 * want.abs().max(0.1), "{name}: {got}, not {want}");
            }
            assert!(encoding.decode(&raw.data()[1..], want.len()).is_none(), "{name}: a byte too few");
        }
        assert_eq!(Encoding::from_ggml(10), None);
    }

    #[test]
    fn sizes_that_are_no_whole_blocks_or_overflow_have_no_bytes() {
        assert_eq!(Encoding::Q4K.bytes(255), None);
        assert_eq!(Encoding::F32.bytes(usize::MAX / 2), None);
        assert_eq!(Encoding::Q8_0.bytes(64), Some(68));
    }
}
