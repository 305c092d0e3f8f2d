//! Where autoencoders are trained.

use std::sync::OnceLock;

use anyhow::{Result, bail};
use monosem_sae::{
    Batches, Cpu, Device, OnStep, RunOptions, Sae, SaeError, Spaces, TrainConfig, TrainOutcome, train_on,
};

use crate::cli::Device as Wanted;
use crate::output::note;

/// Whether a GPU was found to train on.
static ON_GPU: OnceLock<bool> = OnceLock::new();

/// Looks for the device that was asked for. Without a GPU `auto` is the CPU, and says why only where there is one that cannot be used.
pub(crate) fn choose(wanted: Wanted) -> Result<()> {
    if wanted == Wanted::Cpu {
        ON_GPU.get_or_init(|| false);
        return Ok(());
    }
    let found = gpu::name();
    if let Err(problem) = &found
        && wanted == Wanted::Cuda
    {
        bail!("--device cuda: {problem}; use --device cpu, or auto");
    }
    ON_GPU.get_or_init(|| match found {
        Ok(name) => {
            note!("autoencoders are trained on {name}");
            true
        }
        Err(problem) => {
            if problem.is_worth_telling {
                note!("autoencoders are trained on the CPU: {problem}");
            }
            false
        }
    });
    Ok(())
}

/// As [`monosem_sae::train_ensemble`], on the device that [`choose`] found.
pub(crate) fn train_ensemble<E>(
    configs: &[TrainConfig],
    spaces: Spaces,
    batches: &mut Batches<'_, E>,
    options: RunOptions<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<TrainOutcome<Vec<Sae>>>
where
    SaeError<E>: Into<anyhow::Error>,
{
    let mut device: Box<dyn Device> =
        if ON_GPU.get().is_some_and(|on_gpu| *on_gpu) { gpu::open()? } else { Box::new(Cpu::default()) };
    train_on(&mut *device, configs, spaces, batches, options, on_step).map_err(Into::into)
}

/// Why there is no GPU to train on.
#[derive(Debug)]
struct Problem {
    text: String,
    /// There is one, and something is wrong with it.
    is_worth_telling: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use anyhow::Result;
    use monosem_sae::Device;
    use monosem_sae_cuda::{CudaError, Gpu};

    use super::Problem;

    pub(super) fn name() -> Result<String, Problem> {
        Gpu::open(0).map(|gpu| gpu.name().to_owned()).map_err(|error| Problem {
            text: error.to_string(),
            is_worth_telling: !matches!(error, CudaError::NotBuilt | CudaError::NoDriver { .. } | CudaError::NoDevice),
        })
    }

    pub(super) fn open() -> Result<Box<dyn Device>> {
        Ok(Box::new(Gpu::open(0)?))
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use anyhow::{Result, bail};
    use monosem_sae::Device;

    use super::Problem;

    const ABSENT: &str = "this program was built without its feature `cuda`";

    pub(super) fn name() -> Result<String, Problem> {
        Err(Problem { text: ABSENT.into(), is_worth_telling: false })
    }

    pub(super) fn open() -> Result<Box<dyn Device>> {
        bail!(ABSENT)
    }
}
