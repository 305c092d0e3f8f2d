//! What is said of devices that cannot be used. On hardware these tests have nothing to do.

mod common;

use common::{begin, gpu, is_real};
use monosem_sae_cuda::{CudaError, Gpu};

fn error(settings: &[(&str, &str)]) -> CudaError {
    let _turn = begin(settings);
    Gpu::open(0).err().expect("it cannot be used")
}

#[test]
fn what_is_wrong_with_a_device_is_said() {
    if is_real() {
        return;
    }
    assert_eq!(error(&[("DEVICES", "0")]), CudaError::NoDevice);
    let old = error(&[("DRIVER", "11080")]);
    assert_eq!(old, CudaError::DriverTooOld { found: 11_080 });
    assert!(old.to_string().contains("CUDA 11.8"), "{old}");
    let small = error(&[("CAPABILITY", "75")]);
    assert!(small.to_string().contains("emulator has compute capability 7.5"), "{small}");
    let lent = gpu(&[]);
    assert_eq!(lent.gpu.name(), "emulator");
    assert!(matches!(Gpu::open(1), Err(CudaError::NoDevice)));
}
