use serde::{Deserialize, Serialize};

use crate::Kernel;

/// What products are computed in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// `f32`.
    #[default]
    F32,
    /// Both operands rounded to bf16 (relative error at most 2⁻⁸), sums in `f32`. About half the time where the processor has AVX512-BF16, slower
    /// than `f32` elsewhere.
    Bf16,
}

impl Precision {
    /// Whether this processor computes in it at its full rate.
    #[must_use]
    pub fn is_native(self) -> bool {
        self == Self::F32 || Kernel::detect().is_native()
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("{name:?} is neither f32 nor bf16")),
        }
    }
}
