//! The encoder's product by cuBLAS, looked for when the program runs.
//!
//! It wants the whole product written, a chunk of rows at a time, which a kernel then reads for candidates; our own kernel writes candidates only. Which is faster depends on the device and
//! the shape.

use std::ffi::{c_int, c_void};

use cust::stream::Stream;

use crate::CudaError;

const LIBRARY: &str = "libcublas.so.12";

/// The environment variable with the path of another library.
const NAMED_BY: &str = "MONOSEM_LIBCUBLAS";

/// Floats of the product that are there at once.
const CHUNK: usize = 1 << 26;

type Handle = *mut c_void;
// SAFETY: of all four, that a handle is one that `Create` has made, and addresses are of as many values as the numbers beside them say.
type GemmEx = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const f32,
    u64,
    c_int,
    c_int,
    u64,
    c_int,
    c_int,
    *const f32,
    u64,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

// SAFETY: see above.
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
// SAFETY: see above.
type Place = unsafe extern "C" fn(Handle, *mut c_void) -> c_int;
// SAFETY: see above.
type Destroy = unsafe extern "C" fn(Handle) -> c_int;

// Of cublas_api.h and library_types.h.
const AS_IT_IS: c_int = 0;
const TRANSPOSED: c_int = 1;
const REAL_F32: c_int = 0;
const REAL_BF16: c_int = 14;
const SUMS_IN_F32: c_int = 68;
const ANY_ALGORITHM: c_int = -1;

/// An open library on the stream of a device.
pub(crate) struct Cublas {
    handle: Handle,
    gemm: GemmEx,
    destroy: Destroy,
    _library: libloading::Library,
}

/// Rows of two matrices, `ld` apart, in f32 or bf16.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) x: u64,
    pub(crate) w: u64,
    pub(crate) ld: usize,
    pub(crate) in_bf16: bool,
}

impl Cublas {
    /// Opens the library for a stream, whose context is current.
    pub(crate) fn open(stream: &Stream) -> Result<Self, CudaError> {
        let failed = |problem: String| CudaError::Failed { action: "use cuBLAS", problem };
        let name = std::env::var(NAMED_BY).unwrap_or_else(|_| LIBRARY.into());
        // SAFETY: the library is cuBLAS, or one that a user names in its place.
        let library = unsafe { libloading::Library::new(name) }.map_err(|error| failed(error.to_string()))?;
        let mut handle: Handle = std::ptr::null_mut();
        let at = |error: libloading::Error| failed(error.to_string());
        // SAFETY: the signatures are those of cublas_api.h.
        let (created, placed, gemm, destroy) = unsafe {
            let create = library.get::<Create>(b"cublasCreate_v2").map_err(at)?;
            let place = library.get::<Place>(b"cublasSetStream_v2").map_err(at)?;
            let gemm = *library.get::<GemmEx>(b"cublasGemmEx").map_err(at)?;
            let destroy = *library.get::<Destroy>(b"cublasDestroy_v2").map_err(at)?;
            let created = create(&raw mut handle);
            let placed = if created == 0 { place(handle, stream.as_inner().cast()) } else { 0 };
            (created, placed, gemm, destroy)
        };
        if created != 0 {
            return Err(failed(format!("it does not start (status {created})")));
        }
        let cublas = Self { handle, gemm, destroy, _library: library };
        if placed != 0 {
            return Err(failed(format!("it does not take a stream (status {placed})")));
        }
        Ok(cublas)
    }

    /// Rows of a chunk of a product `n` wide.
    pub(crate) fn chunk(n: usize) -> usize {
        (CHUNK / n).next_multiple_of(32)
    }

    /// `out[i, j] = x[first + i] . w[j]` for `rows` rows and `n` columns.
    pub(crate) fn product(&self, of: Rows, first: usize, [rows, n]: [usize; 2], out: u64) -> Result<(), CudaError> {
        let Rows { x, w, ld, in_bf16 } = of;
        let (kind, bytes) = if in_bf16 { (REAL_BF16, 2) } else { (REAL_F32, 4) };
        let x = x + (first * ld * bytes) as u64;
        let (one, zero) = (1.0_f32, 0.0_f32);
        let (rows, n, ld) = (rows as c_int, n as c_int, ld as c_int);
        // Its matrices are stored by column: ours, seen so, are transposed already.
        // SAFETY: the operands have that many rows of `ld` values, `out` has room for the product, and both factors are read before this returns.
        let status = unsafe {
            (self.gemm)(
                self.handle,
                TRANSPOSED,
                AS_IT_IS,
                n,
                rows,
                ld,
                &raw const one,
                w,
                kind,
                ld,
                x,
                kind,
                ld,
                &raw const zero,
                out,
                REAL_F32,
                n,
                SUMS_IN_F32,
                ANY_ALGORITHM,
            )
        };
        if status == 0 {
            return Ok(());
        }
        Err(CudaError::Failed { action: "multiply with cuBLAS", problem: format!("status {status}") })
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: it was made by the same library and is not used after this.
        unsafe { (self.destroy)(self.handle) };
    }
}
