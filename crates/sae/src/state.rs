//! Everything a training run needs to go on.

use std::collections::BTreeMap;

use ndarray::ArrayD;

use crate::family::MAX_EXTRAS;
use crate::parameters::{Parameters, Trained};
use crate::{ConfigError, Progress, Sae, Spaces, TrainConfig};

/// Suffixes of the names of a parameter's values and of its first and second moments.
const PARTS: [&str; 3] = ["", "_m", "_v"];
const SILENT: &str = "silent";

/// The state of a training run between two steps: loaded again, it goes on to the same bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainState {
    /// The settings of the run.
    pub config: TrainConfig,
    /// What is read and what is reconstructed.
    pub spaces: Spaces,
    /// Steps done.
    pub step: u64,
    /// Numbers that steps leave for later ones, by name: [`Progress::counters`].
    pub counters: BTreeMap<String, u64>,
    /// Weights `w_enc`, `b_enc`, ..., their moments `w_enc_m`, `w_enc_v`, ..., and the steps since each latent was active, `silent`, by name.
    pub tensors: BTreeMap<String, ArrayD<f32>>,
}

impl TrainState {
    pub(crate) fn of(sae: &Sae) -> Self {
        let tensor = |shape: &[usize], values: &[f32]| {
            ArrayD::from_shape_vec(shape, values.to_vec()).expect("the length is that of the shape")
        };
        let mut tensors = BTreeMap::new();
        for (name, shape, Trained { value, m, v }) in sae.parameters.named() {
            for (part, values) in PARTS.iter().zip([value, m, v]) {
                tensors.insert(format!("{name}{part}"), tensor(&shape, values));
            }
        }
        // Exact up to 2^24 steps; a latent silent for as long is as dead.
        let silent: Vec<f32> = sae.parameters.silent.iter().map(|steps| (*steps).min(1 << 24) as f32).collect();
        tensors.insert(SILENT.into(), tensor(&[silent.len()], &silent));
        let progress = sae.progress;
        Self {
            config: sae.config.clone(),
            spaces: sae.spaces,
            step: progress.steps_done,
            counters: progress.counters(),
            tensors,
        }
    }
}

impl Sae {
    /// Goes on from a state that [`crate::TrainStep::state`] gave, perhaps in another process.
    ///
    /// # Errors
    /// If a tensor or counter is missing, of another shape than the settings say, or not finite.
    pub fn from_state(state: TrainState) -> Result<Self, ConfigError> {
        let TrainState { config, spaces, step, counters, mut tensors } = state;
        spaces.validate(&config.family)?;
        config.validate(spaces.input.d.max(spaces.output().d))?;
        let error = |key: &str, problem: String| ConfigError { key: "state", problem: format!("{key:?} {problem}") };
        let mut take = |name: &str, shape: &[usize]| {
            let tensor = tensors.remove(name).ok_or_else(|| error(name, "is missing".into()))?;
            if tensor.shape() != shape {
                return Err(error(name, format!("is {:?}, expected {shape:?}", tensor.shape())));
            }
            if !tensor.iter().all(|v| v.is_finite()) {
                return Err(error(name, "holds a value that is not finite".into()));
            }
            Ok(tensor.iter().copied().collect::<Vec<f32>>())
        };
        let (layout, n) = (spaces.layout(&config.family), config.n_latents);
        let (d_in, d_out) = (spaces.input.d, spaces.output().d);
        let mut trained = |name: &str, shape: &[usize]| {
            let [value, m, v] = PARTS.map(|part| take(&format!("{name}{part}"), shape));
            Ok::<_, ConfigError>(Trained { value: value?, m: m?, v: v? })
        };
        let (w_enc, b_enc) = (trained("w_enc", &[n, d_in])?, trained("b_enc", &[n])?);
        let w_dec = if layout.tied { Trained::default() } else { trained("w_dec", &[n, d_out])? };
        let b_dec = if layout.decoder_bias { trained("b_dec", &[d_out])? } else { Trained::new(vec![0.0; d_out]) };
        let mut extras: [Trained; MAX_EXTRAS] = Default::default();
        for (extra, name) in extras.iter_mut().zip(layout.extras) {
            *extra = trained(name, &[n])?;
        }
        let mut parameters = Parameters::from_parts(layout, [d_in, d_out], [w_enc, w_dec], [b_enc, b_dec], extras);
        parameters.silent = take(SILENT, &[n])?.into_iter().map(|steps| steps as u32).collect();
        let progress = Progress::from_counters(step, &counters)?;
        Ok(Self::assemble(config, spaces, parameters, progress))
    }
}
