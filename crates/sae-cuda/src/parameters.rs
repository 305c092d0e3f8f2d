//! The trained parameters on the device, their rows padded to a multiple of [`PADDED_TO`] floats.

use std::collections::BTreeMap;

use monosem_sae::{Layout, TrainState};
use ndarray::ArrayD;

use crate::CudaError;
use crate::buffer::Buffer;
use crate::control;

/// Rows are this many floats or a multiple.
const PADDED_TO: usize = 32;

/// Suffixes of a parameter's values and moments in a [`TrainState`].
const PARTS: [&str; 3] = ["", "_m", "_v"];

/// The width of a padded row.
pub(crate) fn padded(d: usize) -> usize {
    d.next_multiple_of(PADDED_TO)
}

/// Values and Adam's moments of them: `rows` of `d`, `ld` apart.
#[derive(Default)]
struct Trained {
    parts: [Buffer<f32>; 3],
    rows: usize,
    d: usize,
    ld: usize,
}

impl Trained {
    fn load(state: &TrainState, name: &str, [rows, d, ld]: [usize; 3]) -> Result<Self, CudaError> {
        let part = |suffix: &str| {
            let values = state.tensors.get(&format!("{name}{suffix}"));
            let values: Vec<f32> =
                values.map_or_else(|| vec![0.0; rows * d], |tensor| tensor.iter().copied().collect());
            let mut wide = vec![0.0; rows * ld];
            for (wide, values) in wide.chunks_exact_mut(ld).zip(values.chunks_exact(d)) {
                wide[..d].copy_from_slice(values);
            }
            Buffer::from_slice(&wide)
        };
        Ok(Self { parts: [part(PARTS[0])?, part(PARTS[1])?, part(PARTS[2])?], rows, d, ld })
    }

    fn save(&self, name: &str, shape: &[usize], to: &mut BTreeMap<String, ArrayD<f32>>) -> Result<(), CudaError> {
        for (part, suffix) in self.parts.iter().zip(PARTS) {
            let wide = part.read(self.rows * self.ld)?;
            let values = wide.chunks_exact(self.ld).flat_map(|row| row[..self.d].iter().copied()).collect();
            let tensor = ArrayD::from_shape_vec(shape, values).expect("as many values as the shape says");
            to.insert(format!("{name}{suffix}"), tensor);
        }
        Ok(())
    }

    fn at(&self) -> control::Trained {
        let [value, m, v] = self.parts.each_ref().map(Buffer::at);
        control::Trained { value, m, v }
    }
}

/// Everything that training changes.
pub(crate) struct Parameters {
    pub(crate) layout: Layout,
    pub(crate) n: usize,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    pub(crate) ld_in: usize,
    pub(crate) ld_out: usize,
    enc: Trained,
    dec: Trained,
    bias: Trained,
    b_dec: Trained,
    extras: [Trained; 2],
    pub(crate) scale: Buffer<f32>,
    pub(crate) length: Buffer<f32>,
    pub(crate) derived: Buffer<f32>,
    pub(crate) floor: Buffer<f32>,
    pub(crate) silent: Buffer<u32>,
}

impl Parameters {
    /// Copies a state, whose tensors are known to be those of its settings, to the device.
    pub(crate) fn load(state: &TrainState) -> Result<Self, CudaError> {
        let layout = state.spaces.layout(&state.config.family);
        let (n, d_in, d_out) = (state.config.n_latents, state.spaces.input.d, state.spaces.output().d);
        let (ld_in, ld_out) = (padded(d_in), padded(d_out));
        let one = |name: &str| Trained::load(state, name, [n, 1, 1]);
        let mut extras: [Trained; 2] = Default::default();
        for (extra, name) in extras.iter_mut().zip(layout.extras) {
            *extra = one(name)?;
        }
        let silent: Vec<u32> = state.tensors.get("silent").into_iter().flatten().map(|steps| *steps as u32).collect();
        Ok(Self {
            layout,
            n,
            d_in,
            d_out,
            ld_in,
            ld_out,
            enc: Trained::load(state, "w_enc", [n, d_in, ld_in])?,
            dec: if layout.tied { Trained::default() } else { Trained::load(state, "w_dec", [n, d_out, ld_out])? },
            bias: one("b_enc")?,
            // One row, which kernels read to its padded end.
            b_dec: if layout.decoder_bias {
                Trained::load(state, "b_dec", [1, d_out, ld_out])?
            } else {
                Trained::default()
            },
            extras,
            scale: Buffer::new(n)?,
            length: Buffer::new(n)?,
            derived: Buffer::new(n)?,
            floor: Buffer::new(n)?,
            silent: Buffer::from_slice(&silent)?,
        })
    }

    /// Copies weights, moments and the steps since each latent was active back, by their names in a [`TrainState`].
    pub(crate) fn save(&self) -> Result<BTreeMap<String, ArrayD<f32>>, CudaError> {
        let mut to = BTreeMap::new();
        self.enc.save("w_enc", &[self.n, self.d_in], &mut to)?;
        self.bias.save("b_enc", &[self.n], &mut to)?;
        if !self.layout.tied {
            self.dec.save("w_dec", &[self.n, self.d_out], &mut to)?;
        }
        if self.layout.decoder_bias {
            self.b_dec.save("b_dec", &[self.d_out], &mut to)?;
        }
        for (extra, name) in self.extras.iter().zip(self.layout.extras) {
            extra.save(name, &[self.n], &mut to)?;
        }
        // As the state of the CPU's trainer: exact up to 2^24 steps.
        let silent = self.silent.read(self.n)?.into_iter().map(|steps| steps.min(1 << 24) as f32).collect();
        to.insert("silent".into(), ArrayD::from_shape_vec(vec![self.n], silent).expect("a value for each latent"));
        Ok(to)
    }

    /// Where the decoder's bias starts.
    pub(crate) fn set_decoder_bias(&mut self, bias: &[f32]) -> Result<(), CudaError> {
        let mut wide = bias.to_vec();
        wide.resize(self.ld_out, 0.0);
        self.b_dec.parts[0].write(&wide)
    }

    pub(crate) fn at(&self) -> control::Parameters {
        control::Parameters {
            enc: self.enc.at(),
            dec: self.dec.at(),
            bias: self.bias.at(),
            extras: self.extras.each_ref().map(Trained::at),
            scale: self.scale.at(),
            length: self.length.at(),
            silent: self.silent.at(),
            n_latents: self.n as u32,
            n_extras: self.layout.extras.len() as u32,
            ld_in: self.ld_in as u32,
            ld_out: self.ld_out as u32,
        }
    }

    pub(crate) fn b_dec(&self) -> control::Trained {
        self.b_dec.at()
    }

    /// What codes are decoded with: rows, and what the reconstruction begins with.
    pub(crate) fn decoder(&self) -> control::Decoder {
        let dec = if self.layout.tied { &self.enc } else { &self.dec };
        // Where the bias is subtracted from what is read, the target has it subtracted too.
        let offset =
            if self.layout.decoder_bias && !self.layout.subtract_decoder_bias { self.b_dec.at().value } else { 0 };
        control::Decoder { dec: dec.at().value, scale: self.scale.at(), offset, ld: self.ld_out as u32 }
    }

    pub(crate) fn latents(&self) -> control::Latents {
        control::Latents {
            bias: self.bias.at().value,
            extras: self.extras.each_ref().map(|extra| extra.at().value),
            derived: self.derived.at(),
        }
    }
}
