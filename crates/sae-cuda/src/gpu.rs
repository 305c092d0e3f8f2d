//! A device: its kernels, its two streams, and the batch that is on it.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use cust::context::{Context, CurrentContext};
use cust::device::{Device as CudaDevice, DeviceAttribute};
use cust::event::{Event, EventFlags};
use cust::memory::{AsyncCopyDestination as _, LockedBuffer};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags, StreamWaitEventFlags};
use monosem_sae::{Device, Sae, StepError, Trainer};
use ndarray::ArrayView2;

use crate::buffer::{Buffer, failed};
use crate::control::{Argument, Control};
use crate::cublas::Cublas;
use crate::step::Workspace;
use crate::trainer::CudaSae;
use crate::{CudaError, driver};

/// What the kernels' PTX needs (ISA 8.4).
const OLDEST_DRIVER: i32 = 12_040;
const OLDEST_CAPABILITY: i32 = 8;

/// The shared memory that a block may have without asking.
const SHARED_UNASKED: u32 = 48 << 10;

/// What kernels with dynamic shared memory have besides, at most.
const SHARED_STATIC: u32 = 1 << 10;

macro_rules! modules {
    ($($name:literal),*) => {
        /// Names of the files of kernels, and their PTX.
        pub(crate) const PTX: &[(&str, &str)] = &[$(($name, include_str!(concat!("../kernels/", $name, ".ptx")))),*];
    };
}
modules!("encode", "load", "reconstruct", "select", "summary", "transpose", "update");

/// A batch as it came, on its way to the device: pinned memory, and two places that take turns, so that one is filled while a step reads the other.
#[derive(Default)]
struct Slot {
    pinned: Option<LockedBuffer<f32>>,
    device: Buffer<f32>,
    target_pinned: Option<LockedBuffer<f32>>,
    target: Buffer<f32>,
    has_target: bool,
    rows: usize,
}

/// What the trainers of one device share.
pub(crate) struct Shared {
    pub(crate) workspace: RefCell<Workspace>,
    slots: RefCell<[Slot; 2]>,
    /// The slot of the batch that was fed last, and the one that the next launch reads.
    fed: Cell<Option<usize>>,
    modules: Vec<Module>,
    /// Multiplies for the encoder where it was asked for.
    pub(crate) cublas: OnceCell<Cublas>,
    pub(crate) stream: Stream,
    copies: Stream,
    name: String,
    shared_most: u32,
    /// Takes what steps find out.
    noted: RefCell<LockedBuffer<Control>>,
    // Last, for everything above lives in it.
    context: Context,
}

/// An NVIDIA GPU that trains autoencoders, all in one set of buffers.
pub struct Gpu {
    shared: Rc<Shared>,
}

impl Gpu {
    /// The device of that number, the first being 0.
    ///
    /// # Errors
    /// If there is no driver or no such device, one of them is too old, or it does not work.
    pub fn open(ordinal: u32) -> Result<Self, CudaError> {
        driver::load()?;
        cust::init(cust::CudaFlags::empty()).map_err(|error| match error {
            cust::error::CudaError::NoDevice => CudaError::NoDevice,
            error => failed("start the NVIDIA driver")(error),
        })?;
        let version = cust::CudaApiVersion::get().map_err(failed("ask for the driver's version"))?;
        let found = version.major() * 1000 + version.minor() * 10;
        if found < OLDEST_DRIVER {
            return Err(CudaError::DriverTooOld { found });
        }
        let device = CudaDevice::get_device(ordinal).map_err(|_| CudaError::NoDevice)?;
        let name = device.name().map_err(failed("ask for the device's name"))?;
        let attribute = |of| device.get_attribute(of).map_err(failed("ask what the device can do"));
        let capability =
            (attribute(DeviceAttribute::ComputeCapabilityMajor)?, attribute(DeviceAttribute::ComputeCapabilityMinor)?);
        if capability.0 < OLDEST_CAPABILITY {
            return Err(CudaError::Capability { device: name, found: capability });
        }
        let shared_most = most_shared_memory(device);
        let context = Context::new(device).map_err(failed("open the device"))?;
        let modules = PTX.iter().map(|(_, ptx)| Module::from_ptx(ptx, &[]).map_err(failed("load the kernels")));
        let modules = modules.collect::<Result<_, _>>()?;
        let stream = || Stream::new(StreamFlags::NON_BLOCKING, None).map_err(failed("make a stream"));
        Ok(Self {
            shared: Rc::new(Shared {
                workspace: RefCell::new(Workspace::new()?),
                slots: RefCell::default(),
                fed: Cell::new(None),
                modules,
                cublas: OnceCell::new(),
                stream: stream()?,
                copies: stream()?,
                name,
                shared_most,
                noted: RefCell::new(LockedBuffer::new(&Control::default(), 1).map_err(failed("make pinned memory"))?),
                context,
            }),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Lets cuBLAS (12, if it is installed) make the encoder's product instead of a kernel of our own, from the next step on. Weights stay the same up to the order of sums.
    ///
    /// # Errors
    /// If it is not there or does not start; then everything stays as it was.
    pub fn use_cublas(&self) -> Result<(), CudaError> {
        self.shared.enter()?;
        if self.shared.cublas.get().is_none() {
            let cublas = Cublas::open(&self.shared.stream)?;
            self.shared.cublas.get_or_init(|| cublas);
        }
        Ok(())
    }

    /// Takes an autoencoder over, new or in the middle of its training.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn train(&self, sae: Sae) -> Result<CudaSae, StepError> {
        CudaSae::new(Rc::clone(&self.shared), sae)
    }
}

/// Bytes of shared memory that a block may have when it asks; `cust` has no name for this one.
fn most_shared_memory(device: CudaDevice) -> u32 {
    use cust::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MOST;
    let mut bytes = 0;
    // SAFETY: it writes one number to where it is told.
    let _ = unsafe { cust::sys::cuDeviceGetAttribute(&raw mut bytes, MOST, device.as_raw()) };
    u32::try_from(bytes).unwrap_or(0).max(SHARED_UNASKED)
}

impl Device for Gpu {
    fn bring(&mut self, sae: Sae) -> Result<Box<dyn Trainer>, StepError> {
        Ok(Box::new(self.train(sae)?))
    }

    fn feed(&mut self, input: ArrayView2<'_, f32>, target: Option<ArrayView2<'_, f32>>) -> Result<(), StepError> {
        self.shared
            .enter()
            .and_then(|()| self.shared.feed(input, target))
            .map_err(|error| self.shared.step_error(&error))
    }

    fn works_alone(&self) -> bool {
        true
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // What is given back has to be so on its own device.
        let _ = self.enter();
    }
}

impl Shared {
    /// Makes this the device of what this thread does next: a program may have opened several.
    pub(crate) fn enter(&self) -> Result<(), CudaError> {
        CurrentContext::set_current(&self.context).map_err(failed("turn to the device"))
    }

    /// Waits for the stream of the steps, and reads what they have noted.
    pub(crate) fn wait_for(&self, control: &Buffer<Control>) -> Result<Control, CudaError> {
        let mut noted = self.noted.borrow_mut();
        if let Some(control) = control.slice(1) {
            // In the stream of the steps, so that it waits for nothing else.
            // SAFETY: both live until the stream has been waited for, two lines below.
            unsafe { control.async_copy_to(noted.as_mut_slice(), &self.stream) }
                .map_err(failed("copy from the device"))?;
        }
        self.stream.synchronize().map_err(failed("run a step"))?;
        Ok(noted[0])
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn step_error(&self, error: &CudaError) -> StepError {
        StepError::Device { device: self.name.clone(), problem: error.to_string() }
    }

    /// Starts the copy of a batch to the slot that no step reads.
    pub(crate) fn feed(
        &self,
        input: ArrayView2<'_, f32>,
        target: Option<ArrayView2<'_, f32>>,
    ) -> Result<(), CudaError> {
        let number = self.fed.get().map_or(0, |last| 1 - last);
        // What was copied from this pinned memory has long arrived; waiting says so.
        self.copies.synchronize().map_err(failed("wait for a copy"))?;
        let slot = &mut self.slots.borrow_mut()[number];
        (slot.rows, slot.has_target) = (input.nrows(), target.is_some());
        self.send(&mut slot.pinned, &mut slot.device, input)?;
        if let Some(target) = target {
            self.send(&mut slot.target_pinned, &mut slot.target, target)?;
        }
        self.fed.set(Some(number));
        Ok(())
    }

    fn send(
        &self,
        pinned: &mut Option<LockedBuffer<f32>>,
        device: &mut Buffer<f32>,
        rows: ArrayView2<'_, f32>,
    ) -> Result<(), CudaError> {
        let n = rows.len();
        if pinned.as_ref().is_none_or(|pinned| pinned.len() < n) {
            *pinned = None;
            *pinned = Some(LockedBuffer::new(&0.0, n).map_err(failed("make pinned memory for a batch"))?);
        }
        device.reserve(n)?;
        let (Some(pinned), Some(mut to)) = (pinned, device.slice(n)) else { return Ok(()) };
        let pinned = &mut pinned.as_mut_slice()[..n];
        match rows.as_slice() {
            Some(rows) => pinned.copy_from_slice(rows),
            None => pinned.iter_mut().zip(rows).for_each(|(to, from)| *to = *from),
        }
        // SAFETY: the pinned memory is not touched before `feed` has waited for this stream, and both live as long as it.
        unsafe { to.async_copy_from(pinned, &self.copies) }.map_err(failed("copy a batch to the device"))
    }

    /// Lets the stream of the steps wait for the batch that was fed last; the addresses of its rows and of what is to be reconstructed, and their number.
    pub(crate) fn fed(&self) -> Result<([u64; 2], usize), CudaError> {
        let event = Event::new(EventFlags::DISABLE_TIMING).map_err(failed("make an event"))?;
        event.record(&self.copies).map_err(failed("record an event"))?;
        self.stream.wait_event(event, StreamWaitEventFlags::DEFAULT).map_err(failed("wait for an event"))?;
        let slots = self.slots.borrow();
        let slot = &slots[self.fed.get().unwrap_or(0)];
        Ok(([slot.device.at(), if slot.has_target { slot.target.at() } else { 0 }], slot.rows))
    }

    /// Puts a kernel into the stream.
    ///
    /// Its arguments are those of the kernel of that name, in its order and of its types; addresses among them are those of buffers at least as long as it goes.
    pub(crate) fn run(
        &self,
        kernel: &'static str,
        grid: (u32, u32),
        block: u32,
        shared: u32,
        arguments: &[&dyn Argument],
    ) -> Result<(), CudaError> {
        let function = self.modules.iter().find_map(|module| module.get_function(kernel).ok());
        let function = function
            .ok_or_else(|| CudaError::Failed { action: "find a kernel", problem: format!("there is no {kernel}") })?;
        let whole = shared + if shared > 0 { SHARED_STATIC } else { 0 };
        if whole > self.shared_most {
            let problem = format!("{kernel} needs {whole} bytes of shared memory, the device has {}", self.shared_most);
            return Err(CudaError::Failed { action: "launch a kernel", problem });
        }
        if whole > SHARED_UNASKED {
            use cust::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as ATTRIBUTE;
            // SAFETY: the function is of a module that is loaded. What goes wrong shows in the launch.
            let _ = unsafe { cust::sys::cuFuncSetAttribute(function.to_raw(), ATTRIBUTE, shared as i32) };
        }
        let addresses: Vec<_> = arguments.iter().map(|argument| argument.address()).collect();
        // SAFETY: see above; the driver copies the arguments before this returns.
        unsafe { self.stream.launch(&function, grid, block, shared, &addresses) }.map_err(|error| CudaError::Failed {
            action: "launch a kernel",
            problem: format!("{kernel} {grid:?} x {block}: {error}"),
        })
    }
}
