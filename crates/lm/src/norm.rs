//! Normalisation of the residual stream.

use crate::math::{sum, sum_of_products, sum_of_squares, vectorised};
use crate::weights::Source;
use crate::{Config, LmError};

/// LayerNorm (<https://arxiv.org/abs/1607.06450>) or, without a bias, RMSNorm (<https://arxiv.org/abs/1910.07467>).
#[derive(Clone)]
pub(crate) struct Norm {
    gain: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl Norm {
    pub(crate) fn read_layer_norm(source: &dyn Source, name: &str, config: &Config) -> Result<Self, LmError> {
        let bias = source.read(&format!("{name}.bias"), &[config.d_model])?;
        Ok(Self { bias: Some(bias), ..Self::read_rms(source, name, config)? })
    }

    pub(crate) fn read_rms(source: &dyn Source, name: &str, config: &Config) -> Result<Self, LmError> {
        let gain = source.read(&format!("{name}.weight"), &[config.d_model])?;
        Ok(Self { gain, bias: None, eps: config.norm_eps as f32 })
    }

    /// Normalises rows `x` into `y`, both `[rows, d_model]`.
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32]) {
        let width = self.gain.len();
        vectorised(|| {
            for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                match &self.bias {
                    Some(bias) => self.layer_norm(bias, x, y),
                    None => self.rms_norm(x, y),
                }
            }
        });
    }

    #[inline(always)]
    fn layer_norm(&self, bias: &[f32], x: &[f32], y: &mut [f32]) {
        let width = x.len() as f32;
        let mean = sum(x) / width;
        let scale = 1.0 / (sum_of_squares(x, mean) / width + self.eps).sqrt();
        for (((y, x), g), b) in y.iter_mut().zip(x).zip(&self.gain).zip(bias) {
            *y = (x - mean) * scale * g + b;
        }
    }

    #[inline(always)]
    fn rms_norm(&self, x: &[f32], y: &mut [f32]) {
        let scale = 1.0 / (sum_of_squares(x, 0.0) / x.len() as f32 + self.eps).sqrt();
        for ((y, x), g) in y.iter_mut().zip(x).zip(&self.gain) {
            *y = x * scale * g;
        }
    }

    /// Adds to `dx` the gradient with respect to rows `x` where `dy` is the one with respect to what they are normalised to; `dy` is used up.
    ///
    /// With `n` the row before gain and bias and `s` the factor that scaled it, `dn = gain dy` and `dx = s (dn - n mean(n dn))`; where the
    /// mean of a row is subtracted, the mean of `dn` is too.
    pub(crate) fn backward(&self, x: &[f32], dy: &mut [f32], dx: &mut [f32]) {
        let width = self.gain.len();
        let centred = self.bias.is_some();
        vectorised(|| {
            let rows = x.chunks_exact(width).zip(dy.chunks_exact_mut(width)).zip(dx.chunks_exact_mut(width));
            for ((x, dn), dx) in rows {
                dn.iter_mut().zip(&self.gain).for_each(|(d, g)| *d *= g);
                let share = 1.0 / width as f32;
                let (centre, mean) = if centred { (sum(x) * share, sum(dn) * share) } else { (0.0, 0.0) };
                let scale = 1.0 / (sum_of_squares(x, centre) * share + self.eps).sqrt();
                let along = (sum_of_products(x, dn, centre)) * share * scale * scale;
                for ((dx, d), x) in dx.iter_mut().zip(&*dn).zip(x) {
                    *dx += scale * (d - mean - (x - centre) * along);
                }
            }
        });
    }
}
