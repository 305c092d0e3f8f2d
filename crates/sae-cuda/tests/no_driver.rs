//! Without a driver: a program of its own, for a driver is looked for once.

use monosem_sae_cuda::{CudaError, Gpu};

#[test]
fn without_a_driver_there_is_no_device() {
    // SAFETY: this program has one test.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var("MONOSEM_LIBCUDA", "libcuda-that-is-not-there.so");
    }
    let error = Gpu::open(0).err().expect("there is no driver");
    assert!(matches!(&error, CudaError::NoDriver { problem } if problem.contains("not-there")), "{error}");
}
