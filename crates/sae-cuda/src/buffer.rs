//! Memory on the device.

use cust::context::CurrentContext;
use cust::error::CudaError as Code;
use cust::memory::{CopyDestination as _, DeviceBuffer, DeviceCopy};

use crate::CudaError;

const MIB: usize = 1 << 20;

/// An array on the device that grows when it has to; its contents are lost then.
#[derive(Default)]
pub(crate) struct Buffer<T: DeviceCopy> {
    values: Option<DeviceBuffer<T>>,
}

impl<T: DeviceCopy> Buffer<T> {
    pub(crate) fn new(n: usize) -> Result<Self, CudaError> {
        let mut buffer = Self { values: None };
        buffer.reserve(n)?;
        Ok(buffer)
    }

    pub(crate) fn from_slice(values: &[T]) -> Result<Self, CudaError> {
        let mut buffer = Self::new(values.len())?;
        buffer.write(values)?;
        Ok(buffer)
    }

    /// Room for `n` values at least.
    pub(crate) fn reserve(&mut self, n: usize) -> Result<(), CudaError> {
        // The device has no arrays of nothing.
        let n = n.max(1);
        if self.len() >= n {
            return Ok(());
        }
        if self.values.is_some() {
            // Something under way may still use the old one.
            CurrentContext::synchronize().map_err(failed("wait for the device"))?;
        }
        self.values = None;
        // SAFETY: every kernel writes what later ones read.
        let values = unsafe { DeviceBuffer::uninitialized(n) };
        self.values = Some(values.map_err(|error| match error {
            Code::OutOfMemory => {
                let free = cust::memory::mem_get_info().map_or(0, |(free, _)| free);
                CudaError::OutOfMemory { asked: (n * size_of::<T>()).div_ceil(MIB), free: free / MIB }
            }
            error => failed("make room on the device")(error),
        })?);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.values.as_ref().map_or(0, |values| values.len())
    }

    /// The address on the device; 0 while there is nothing.
    pub(crate) fn at(&self) -> u64 {
        self.values.as_ref().map_or(0, |values| values.as_device_ptr().as_raw())
    }

    /// Copies from the host. What is put into a stream after this sees the values: `cust`'s streams wait for the default one, in which the copy is.
    pub(crate) fn write(&mut self, values: &[T]) -> Result<(), CudaError> {
        self.reserve(values.len())?;
        match &mut self.values {
            Some(buffer) if !values.is_empty() => {
                buffer.index(..values.len()).copy_from(values).map_err(failed("copy to the device"))
            }
            _ => Ok(()),
        }
    }

    /// Copies the first `n` values to the host; waits.
    pub(crate) fn read(&self, n: usize) -> Result<Vec<T>, CudaError>
    where
        T: Default,
    {
        let mut values = vec![T::default(); n];
        if let Some(buffer) = self.values.as_ref().filter(|_| n > 0) {
            buffer.index(..n).copy_to(&mut values).map_err(failed("copy from the device"))?;
        }
        Ok(values)
    }

    pub(crate) fn slice(&self, n: usize) -> Option<cust::memory::DeviceSlice<T>> {
        self.values.as_ref().map(|values| values.index(..n))
    }
}

pub(crate) fn failed(action: &'static str) -> impl Fn(Code) -> CudaError {
    move |error| CudaError::Failed { action, problem: format!("{error} ({error:?})") }
}
