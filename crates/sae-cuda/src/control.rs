//! What kernels and host tell each other: the same fields as in `kernels/`, in the same order.

use cust::memory::DeviceCopy;

/// `Control` of `common.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Control {
    pub(crate) squared_error: f64,
    pub(crate) objective: f64,
    pub(crate) penalty: f64,
    pub(crate) codes: f64,
    pub(crate) squares: f64,
    pub(crate) column_squares: f64,
    pub(crate) aux_error: f64,
    pub(crate) gradient_squares: f64,
    pub(crate) active: u64,
    pub(crate) entries: u64,
    pub(crate) found: u32,
    pub(crate) wanted: u32,
    pub(crate) aux_found: u32,
    pub(crate) short_rows: u32,
    pub(crate) bad_row: u32,
    pub(crate) not_finite: u32,
    pub(crate) dead: u32,
    pub(crate) limit: u32,
    pub(crate) ties: u32,
    pub(crate) chosen: f32,
    pub(crate) clip: f32,
    pub(crate) halted: u32,
}

// SAFETY: plain numbers, no pointers.
unsafe impl DeviceCopy for Control {}

impl Control {
    /// Place of a field, for kernels that get its address.
    pub(crate) const FOUND: u64 = std::mem::offset_of!(Self, found) as u64;
    pub(crate) const AUX_FOUND: u64 = std::mem::offset_of!(Self, aux_found) as u64;
    pub(crate) const NONE: u32 = u32::MAX;
    pub(crate) const NO_ROOM: u32 = 2;
    pub(crate) const SHORT: u32 = 4;
}

/// What a kernel takes: addresses, numbers, and structures of both.
pub(crate) trait Argument {
    /// Where it is.
    fn address(&self) -> *mut std::ffi::c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }
}

impl Argument for u32 {}
impl Argument for u64 {}
impl Argument for f32 {}

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, Default)]
            pub(crate) struct $name { $(pub(crate) $field: $type),* }
            impl Argument for $name {}
        )*
    };
}

structures! {
    /// Of `encode.cu`.
    Encoder { scale: u64, bias: u64, floor: u64, length: u64, row_floor: u64, row_margin: u64, rows: u32, n_latents: u32 }
    /// Of `encode.cu`.
    Candidates { latents: u64, pre: u64, starts: u64, counts: u64, found: u64, capacity: u32 }
    /// Of `family.cuh`.
    Family { formula: u32, penalty: f32, bandwidth: f32 }
    /// Of `family.cuh`.
    Latents { bias: u64, extras: [u64; 2], derived: u64 }
    /// Of `reconstruct.cu`.
    Decoder { dec: u64, scale: u64, offset: u64, ld: u32 }
    /// Of `reconstruct.cu`.
    Lists { starts: u64, latents: u64, pre: u64, codes: u64, dots: u64, second: u64, second_dots: u64 }
    /// Of `reconstruct.cu`.
    RowSums { squared_error: u64, objective: u64, penalty: u64, codes: u64, active: u64 }
    /// Of `transpose.cu`.
    ByLatent { rows: u64, codes: u64, deltas: u64, extras: [u64; 2] }
    /// Of `update.cu`.
    Trained { value: u64, m: u64, v: u64 }
    /// Of `update.cu`.
    Parameters {
        enc: Trained, dec: Trained, bias: Trained, extras: [Trained; 2], scale: u64, length: u64, silent: u64,
        n_latents: u32, n_extras: u32, ld_in: u32, ld_out: u32,
    }
    /// Of `update.cu`.
    Gathered { starts: u64, rows: u64, codes: u64, deltas: u64, x: u64, r: u64, stride: u32 }
    /// Of `update.cu`.
    Adam { size: f32, root: f32 }
    /// Of `summary.cu`.
    Figures {
        squared_error: u64, objective: u64, penalty: u64, codes: u64, active: u64, squares: u64, columns: u64,
        aux_errors: u64, relative: u64, starts: u64, rows: u32, runs: u32, width: u32,
    }
    /// Of `summary.cu`.
    Bounds { capacity: u32, aux_capacity: u32, needs_all: u32, alpha: f32, coefficient: f32, worst: f32 }
}
