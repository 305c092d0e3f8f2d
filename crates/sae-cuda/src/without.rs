//! What is there on machines that CUDA is not built for.

use monosem_sae::{Device, Sae, StepError, Trainer};

use crate::CudaError;

/// An NVIDIA GPU, of which there is none here.
#[derive(Debug)]
pub enum Gpu {}

impl Gpu {
    /// There is no device.
    ///
    /// # Errors
    /// [`CudaError::NotBuilt`]
    pub fn open(_ordinal: u32) -> Result<Self, CudaError> {
        Err(CudaError::NotBuilt)
    }

    /// There is no device.
    ///
    /// # Errors
    /// Never: there is no device to call this of.
    pub fn use_cublas(&self) -> Result<(), CudaError> {
        match *self {}
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match *self {}
    }
}

impl Device for Gpu {
    fn bring(&mut self, _sae: Sae) -> Result<Box<dyn Trainer>, StepError> {
        match *self {}
    }
}
