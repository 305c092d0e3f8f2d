//! The inner loops: dot products of a few rows with one panel of columns. All `unsafe` of this crate is here.

#![allow(unsafe_code)]

use half::bf16;

use crate::PANEL;

/// Rows that a kernel works on at once: 6 x 4 sums, 4 columns and a row fit the 32 registers of AVX-512.
pub(crate) const GROUP: usize = 6;

/// Which instructions multiply and add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// `vdpbf16ps`: two products of bf16 added to an f32 at once; denormal inputs count as 0.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Detected),
    /// Products of widened values, in whatever vectors the compiler makes.
    Portable,
}

/// That the processor has what [`Kernel::Avx512Bf16`] needs; only [`Kernel::detect`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detected(());

impl Kernel {
    /// The fastest kernel of this processor.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16") {
            return Self::Avx512Bf16(Detected(()));
        }
        Self::Portable
    }

    /// Whether this kernel is faster than a product in f32.
    #[must_use]
    pub fn is_native(self) -> bool {
        self != Self::Portable
    }
}

/// `out[i][c]`: the dot product of row i of `rows` with column c of the panel.
pub(crate) fn dots(kernel: Kernel, rows: &[u32], panel: &[u32], out: &mut [[f32; PANEL]]) {
    let pairs = panel.len() / PANEL;
    assert_eq!((rows.len(), panel.len()), (out.len() * pairs, pairs * PANEL), "rows and a panel of the same depth");
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Bf16(Detected(())) => {
            // SAFETY: a `Detected` exists, so the processor has both features; the lengths were just checked, and `first_chunk_mut` checks
            // that there are as many rows of output as the kernel writes.
            unsafe {
                match out.len() {
                    1 => avx512::dots::<1>(rows, panel, pairs, out.first_chunk_mut().expect("1")),
                    2 => avx512::dots::<2>(rows, panel, pairs, out.first_chunk_mut().expect("2")),
                    3 => avx512::dots::<3>(rows, panel, pairs, out.first_chunk_mut().expect("3")),
                    4 => avx512::dots::<4>(rows, panel, pairs, out.first_chunk_mut().expect("4")),
                    5 => avx512::dots::<5>(rows, panel, pairs, out.first_chunk_mut().expect("5")),
                    6 => avx512::dots::<6>(rows, panel, pairs, out.first_chunk_mut().expect("6")),
                    n => unreachable!("{n} rows in a group of {GROUP}"),
                }
            }
        }
        Kernel::Portable => portable(rows, panel, pairs, out),
    }
}

/// Rounds a row to pairs of neighbours, the first in the low half; an odd last value is paired with 0.
pub(crate) fn round(row: &[f32], pairs: &mut [u32]) {
    assert_eq!(pairs.len(), row.len().div_ceil(2), "a row of {} values in pairs", row.len());
    let done = match Kernel::detect() {
        // SAFETY: detected just now.
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Bf16(_) => unsafe { avx512::round(row, pairs) },
        Kernel::Portable => 0,
    };
    let bits = |value: f32| u32::from(bf16::from_f32(value).to_bits());
    for (pair, values) in pairs[done / 2..].iter_mut().zip(row[done..].chunks(2)) {
        *pair = bits(values[0]) | bits(values.get(1).copied().unwrap_or(0.0)) << 16;
    }
}

fn portable(rows: &[u32], panel: &[u32], pairs: usize, out: &mut [[f32; PANEL]]) {
    let low = |pair: u32| f32::from_bits(pair << 16);
    let high = |pair: u32| f32::from_bits(pair & 0xffff_0000);
    for (row, out) in rows.chunks_exact(pairs).zip(out) {
        out.fill(0.0);
        for (a, line) in row.iter().zip(panel.chunks_exact(PANEL)) {
            let (a_low, a_high) = (low(*a), high(*a));
            for (sum, b) in out.iter_mut().zip(line) {
                *sum += a_low * low(*b) + a_high * high(*b);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps,
        _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_storeu_si512,
    };

    use crate::PANEL;

    /// Lanes of a vector of f32, and vectors in a panel.
    const LANES: usize = 16;
    const VECTORS: usize = PANEL / LANES;

    /// # Safety
    /// The processor has AVX512-F and AVX512-BF16; `rows` holds `M * pairs` pairs and `panel` `pairs * PANEL`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn dots<const M: usize>(rows: &[u32], panel: &[u32], pairs: usize, out: &mut [[f32; PANEL]; M]) {
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; M];
        let (rows, panel) = (rows.as_ptr(), panel.as_ptr());
        for p in 0..pairs {
            let mut columns = [bf16(_mm512_set1_epi32(0)); VECTORS];
            for (v, column) in columns.iter_mut().enumerate() {
                // The panel streams from the second-level cache.
                _mm_prefetch::<_MM_HINT_T0>(panel.wrapping_add((p + 6) * PANEL + v * LANES).cast());
                // SAFETY: line p of the panel is PANEL pairs from p * PANEL on, which the caller says are there.
                *column = bf16(unsafe { _mm512_loadu_si512(panel.add(p * PANEL + v * LANES).cast()) });
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: i < M and p < pairs, and the caller says that there are M * pairs pairs.
                let row = bf16(_mm512_set1_epi32(unsafe { *rows.add(i * pairs + p) }.cast_signed()));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(*sum, row, column);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.chunks_exact_mut(LANES).zip(sums) {
                // SAFETY: `out` is LANES values long.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
            }
        }
    }

    /// Rounds as many whole vectors as there are; returns the number of values done. Denormal values become 0.
    ///
    /// # Safety
    /// The processor has AVX512-F and AVX512-BF16, and there is a pair for every two values.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn round(row: &[f32], pairs: &mut [u32]) -> usize {
        let whole = row.chunks_exact(2 * LANES);
        let done = row.len() - whole.remainder().len();
        for (values, pairs) in whole.zip(pairs.chunks_exact_mut(LANES)) {
            // SAFETY: both are two vectors long, in f32 and in bf16.
            unsafe {
                let (low, high) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(LANES)));
                let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(pairs.as_mut_ptr().cast(), rounded);
            }
        }
        done
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16(bits: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits without a forbidden pattern.
        unsafe { std::mem::transmute(bits) }
    }
}
