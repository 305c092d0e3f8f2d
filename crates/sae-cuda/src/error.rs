/// Why a GPU cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// This program was built for another kind of machine.
    #[error("this program was built without CUDA: it is there on Linux on x86-64")]
    NotBuilt,
    /// There is no driver.
    #[error("no NVIDIA driver: {problem}")]
    NoDriver {
        /// What the loader said.
        problem: String,
    },
    /// The driver knows no device.
    #[error("the NVIDIA driver finds no device")]
    NoDevice,
    /// The driver is older than the kernels' PTX.
    #[error("the NVIDIA driver supports CUDA {}.{}, and 12.4 is needed: update it", found / 1000, found % 1000 / 10)]
    DriverTooOld {
        /// As the driver gives it: 1000 times the major version plus 10 times the minor one.
        found: i32,
    },
    /// The device is older than what the kernels are made for.
    #[error("{device} has compute capability {}.{}, and 8.0 (Ampere) or newer is needed", found.0, found.1)]
    Capability {
        /// Its name.
        device: String,
        /// Major and minor version.
        found: (i32, i32),
    },
    /// There is not as much memory as was asked for.
    #[error(
        "out of memory: {asked} MiB asked for, {free} MiB free; use a smaller batch, fewer latents or members, or --device cpu"
    )]
    OutOfMemory {
        /// MiB.
        asked: usize,
        /// MiB.
        free: usize,
    },
    /// Anything else.
    #[error("cannot {action}: {problem}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// What the driver said.
        problem: String,
    },
}
