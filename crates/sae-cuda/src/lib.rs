#![doc = include_str!("../README.md")]
#![allow(unsafe_code, reason = "memory and kernels of another device; each block says why it is sound")]

mod error;

pub use error::CudaError;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod buffer;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod control;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cublas;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod driver;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod gpu;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod lists;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod parameters;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod step;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod trainer;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod without;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub use without::Gpu;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use {gpu::Gpu, trainer::CudaSae};
