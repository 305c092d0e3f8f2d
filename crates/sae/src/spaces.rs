use crate::family::Layout;
use crate::{ConfigError, Family};

/// Activations of one place in a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Space {
    /// Width.
    pub d: usize,
    /// Factor on the activations before anything else. Choose it so that their mean square over dimensions is 1: then one `alpha`, one threshold and one
    /// learning rate mean the same everywhere. It is folded into the dictionary that comes out.
    pub scale: f32,
}

/// What is read, and what is reconstructed from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spaces {
    /// What the encoder reads.
    pub input: Space,
    /// What the decoder reconstructs: none for the input itself, of an autoencoder; another place's activations at the same tokens for a transcoder
    /// (arXiv 2406.11944).
    pub target: Option<Space>,
}

impl Spaces {
    /// The input itself is reconstructed.
    #[must_use]
    pub fn autoencoder(d: usize, scale: f32) -> Self {
        Self { input: Space { d, scale }, target: None }
    }

    /// Another place's activations are reconstructed.
    #[must_use]
    pub fn transcoder(input: Space, target: Space) -> Self {
        Self { input, target: Some(target) }
    }

    /// What is reconstructed.
    #[must_use]
    pub fn output(&self) -> Space {
        self.target.unwrap_or(self.input)
    }

    /// Which parameters a family has here: a transcoder's decoder bias is not of the space that its encoder reads.
    #[must_use]
    pub fn layout(&self, family: &Family) -> Layout {
        let layout = family.formula().layout();
        Layout { subtract_decoder_bias: layout.subtract_decoder_bias && self.target.is_none(), ..layout }
    }

    pub(crate) fn validate(&self, family: &Family) -> Result<(), ConfigError> {
        if self.target.is_some() && family.formula().layout().tied {
            let problem = format!("is {:?}, which has one matrix on both sides; a transcoder needs two", family.name());
            return Err(ConfigError { key: "family", problem });
        }
        let target = self.target.map(|target| ("target", target));
        for (key, Space { d, scale }) in [("input", self.input)].into_iter().chain(target) {
            if d == 0 {
                return Err(ConfigError { key, problem: "is 0 wide, expected at least 1".into() });
            }
            if !(scale.is_finite() && scale > 0.0) {
                return Err(ConfigError { key, problem: format!("has the scale {scale}, expected a number above 0") });
            }
        }
        Ok(())
    }
}
