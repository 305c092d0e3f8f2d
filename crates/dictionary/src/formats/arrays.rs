//! Named arrays of a weights file, whatever file that is, as the rows of a [`LinearDictionary`].

use std::path::PathBuf;

use half::{bf16, f16};
use ndarray::{Array1, Array2};
use safetensors::tensor::{Dtype, SafeTensors};

use crate::{Dictionary, DictionaryError, LinearDictionary};

pub(super) type Result<T> = std::result::Result<T, DictionaryError>;

/// A file is not what it should be. Readers of bytes name it without a folder; see [`DictionaryError::inside`].
pub(super) fn invalid(file: &str, problem: impl Into<String>) -> DictionaryError {
    DictionaryError::Invalid { path: PathBuf::from(file), problem: problem.into() }
}

/// A sound file that says what a linear dictionary cannot be.
pub(super) fn unsupported(file: &str, problem: impl Into<String>) -> DictionaryError {
    DictionaryError::Unsupported { path: PathBuf::from(file), problem: problem.into() }
}

/// Types of stored numbers, all little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Element {
    /// In bytes.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The number in `bytes`, [`Self::size`] of them. Integers are exact below 2^24, beyond what any of them counts.
    pub(super) fn value(self, bytes: &[u8]) -> f32 {
        fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("as many bytes as the type has")
        }
        match self {
            Self::F64 => f64::from_le_bytes(array(bytes)) as f32,
            Self::F32 => f32::from_le_bytes(array(bytes)),
            Self::F16 => f16::from_le_bytes(array(bytes)).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(array(bytes)).to_f32(),
            Self::I64 => i64::from_le_bytes(array(bytes)) as f32,
            Self::I32 => i32::from_le_bytes(array(bytes)) as f32,
            Self::I16 => f32::from(i16::from_le_bytes(array(bytes))),
            Self::I8 => f32::from(i8::from_le_bytes(array(bytes))),
            Self::U8 | Self::Bool => f32::from(bytes[0]),
        }
    }
}

/// A file of named arrays.
pub(super) trait Arrays {
    /// Its name, for messages.
    fn file(&self) -> &str;

    fn names(&self) -> Vec<String>;

    /// The shape of the array `name`, unless there is none. Reads no more than a header.
    fn shape(&mut self, name: &str) -> Result<Option<Vec<usize>>>;

    /// All elements of the array `name`, row-major.
    fn values(&mut self, name: &str) -> Result<Vec<f32>>;

    fn has(&self, name: &str) -> bool {
        self.names().iter().any(|n| n == name)
    }

    /// The shape of an array that has to be there.
    fn expected_shape(&mut self, name: &str) -> Result<Vec<usize>> {
        match self.shape(name)? {
            Some(shape) => Ok(shape),
            None => {
                let mut names = self.names();
                names.sort();
                names.truncate(16);
                Err(invalid(self.file(), format!("no array {name:?}; it has {names:?}")))
            }
        }
    }

    /// `[rows, columns]` of an array that has to be there, neither of them 0.
    fn matrix_shape(&mut self, name: &str) -> Result<[usize; 2]> {
        match *self.expected_shape(name)? {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            ref other => Err(invalid(self.file(), format!("array {name:?} has shape {other:?}, expected a matrix"))),
        }
    }

    fn check_shape(&mut self, name: &str, expected: &[usize]) -> Result<()> {
        let shape = self.expected_shape(name)?;
        if shape != expected {
            return Err(invalid(self.file(), format!("array {name:?} has shape {shape:?}, expected {expected:?}")));
        }
        Ok(())
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Array1<f32>> {
        self.check_shape(name, &[length])?;
        Ok(Array1::from(self.values(name)?))
    }

    /// `[rows, columns]` as it lies in the file.
    fn matrix(&mut self, name: &str, [rows, columns]: [usize; 2]) -> Result<Array2<f32>> {
        self.check_shape(name, &[rows, columns])?;
        let values = self.values(name)?;
        Array2::from_shape_vec((rows, columns), values)
            .map_err(|e| invalid(self.file(), format!("array {name:?} is not {rows} x {columns}: {e}")))
    }

    /// A matrix that lies `[columns, rows]` in the file, as `[rows, columns]`.
    fn transposed(&mut self, name: &str, [rows, columns]: [usize; 2]) -> Result<Array2<f32>> {
        Ok(self.matrix(name, [columns, rows])?.reversed_axes().as_standard_layout().into_owned())
    }

    /// The one number in an array without axes.
    fn scalar(&mut self, name: &str) -> Result<f32> {
        self.check_shape(name, &[])?;
        self.values(name)?.first().copied().ok_or_else(|| invalid(self.file(), format!("array {name:?} is empty")))
    }
}

/// A safetensors file in memory.
pub(super) struct SafeArrays<'a> {
    file: &'static str,
    tensors: SafeTensors<'a>,
}

impl<'a> SafeArrays<'a> {
    pub(super) fn new(file: &'static str, bytes: &'a [u8]) -> Result<Self> {
        let tensors =
            SafeTensors::deserialize(bytes).map_err(|e| invalid(file, format!("not a whole safetensors file: {e}")))?;
        Ok(Self { file, tensors })
    }
}

impl Arrays for SafeArrays<'_> {
    fn file(&self) -> &str {
        self.file
    }

    fn names(&self) -> Vec<String> {
        self.tensors.names().into_iter().map(str::to_owned).collect()
    }

    fn shape(&mut self, name: &str) -> Result<Option<Vec<usize>>> {
        Ok(self.tensors.tensor(name).ok().map(|tensor| tensor.shape().to_vec()))
    }

    fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let tensor =
            self.tensors.tensor(name).map_err(|e| invalid(self.file, format!("cannot read tensor {name:?}: {e}")))?;
        let element = match tensor.dtype() {
            Dtype::F64 => Element::F64,
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            other => {
                let problem = format!("tensor {name:?} is {other:?}, expected F64, F32, F16 or BF16");
                return Err(invalid(self.file, problem));
            }
        };
        Ok(tensor.data().chunks_exact(element.size()).map(|bytes| element.value(bytes)).collect())
    }
}

/// `b_enc - w_enc b_dec`: the encoder's bias for activations from which the decoder's bias is no longer subtracted first.
pub(super) fn fold_input_bias(w_enc: &Array2<f32>, b_enc: &mut Array1<f32>, b_dec: &Array1<f32>) {
    for (bias, shift) in b_enc.iter_mut().zip(input_shift(w_enc, b_dec)) {
        *bias = (f64::from(*bias) - shift) as f32;
    }
}

/// `b_enc + w_enc b_dec`: the opposite of [`fold_input_bias`].
pub(super) fn unfold_input_bias(w_enc: &Array2<f32>, b_enc: &mut Array1<f32>, b_dec: &Array1<f32>) {
    for (bias, shift) in b_enc.iter_mut().zip(input_shift(w_enc, b_dec)) {
        *bias = (f64::from(*bias) + shift) as f32;
    }
}

fn input_shift<'a>(w_enc: &'a Array2<f32>, b_dec: &'a Array1<f32>) -> impl Iterator<Item = f64> + 'a {
    w_enc.rows().into_iter().map(move |row| row.iter().zip(b_dec).map(|(w, b)| f64::from(*w) * f64::from(*b)).sum())
}

/// The last check of what was read from `file`: every number finite, also after folding, and latents that [`crate::Codes`] can count.
pub(super) fn checked(file: &str, dictionary: LinearDictionary) -> Result<LinearDictionary> {
    let arrays = [
        ("encoder", dictionary.w_enc.iter().position(|v| !v.is_finite())),
        ("decoder", dictionary.w_dec.iter().position(|v| !v.is_finite())),
        ("encoder's bias", dictionary.b_enc.iter().position(|v| !v.is_finite())),
        ("decoder's bias", dictionary.b_dec.iter().position(|v| !v.is_finite())),
        ("thresholds", dictionary.threshold.iter().flatten().position(|v| !v.is_finite())),
    ];
    if let Some((what, Some(at))) = arrays.into_iter().find(|(_, at)| at.is_some()) {
        return Err(invalid(
            file,
            format!("element {at} of the {what} is not a finite number, or does not stay one in f32"),
        ));
    }
    if u32::try_from(dictionary.n_latents()).is_err() {
        return Err(unsupported(file, format!("{} latents, more than 32 bits count", dictionary.n_latents())));
    }
    Ok(dictionary)
}
