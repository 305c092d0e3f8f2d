//! A state dict that `torch.save` wrote (since torch 1.6): a zip file with a pickle, which is not executed, and one entry per storage.

use std::collections::HashMap;
use std::io::{Read, Seek};

use super::arrays::{Arrays, Result, invalid, unsupported};
use super::pickle::{self, Tensor};
use super::zipped::Zipped;

const PICKLE: &str = "/data.pkl";

/// Tensors by name.
pub(super) struct TorchFile<R> {
    zipped: Zipped<R>,
    /// The folder within the zip file: what the file was called when it was saved.
    folder: String,
    tensors: HashMap<String, Tensor>,
}

impl<R: Read + Seek> TorchFile<R> {
    pub(super) fn new(file: &'static str, reader: R) -> Result<Self> {
        let mut zipped = Zipped::new(file, reader)?;
        let folder = zipped.names().find_map(|name| {
            let folder = name.strip_suffix(PICKLE).filter(|folder| !folder.contains('/'))?;
            Some(folder.to_owned())
        });
        let folder = folder.ok_or_else(|| invalid(file, "no entry data.pkl: not what torch.save writes since 1.6"))?;
        let byte_order = format!("{folder}/byteorder");
        let has_byte_order = zipped.names().any(|name| name == byte_order);
        if has_byte_order && zipped.entry(&byte_order)? != b"little" {
            return Err(unsupported(file, "saved on a big-endian machine, expected little-endian"));
        }
        let (bytes, length) = zipped.start(&format!("{folder}{PICKLE}"), pickle::MAX_LENGTH)?;
        if length > pickle::MAX_LENGTH {
            return Err(unsupported(file, format!("a pickle of {length} bytes, more than a state dict needs")));
        }
        let tensors = pickle::state_dict(&bytes).map_err(|problem| invalid(file, problem))?;
        Ok(Self { zipped, folder, tensors })
    }
}

impl<R: Read + Seek> Arrays for TorchFile<R> {
    fn file(&self) -> &str {
        self.zipped.file()
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&mut self, name: &str) -> Result<Option<Vec<usize>>> {
        Ok(self.tensors.get(name).map(|tensor| tensor.shape.clone()))
    }

    fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let file = self.zipped.file();
        let Some(tensor) = self.tensors.get(name) else {
            return Err(invalid(file, format!("no tensor {name:?}")));
        };
        let bytes = self.zipped.entry(&format!("{}/data/{}", self.folder, tensor.storage))?;
        gather(tensor, &bytes).map_err(|problem| invalid(file, format!("tensor {name:?}: {problem}")))
    }
}

/// The elements of a tensor, row-major, from its storage.
fn gather(tensor: &Tensor, bytes: &[u8]) -> std::result::Result<Vec<f32>, String> {
    let Tensor { element, stored, offset, shape, stride, .. } = tensor;
    if stored.checked_mul(element.size()) != Some(bytes.len()) {
        return Err(format!("its storage has {} bytes, expected {stored} elements of {}", bytes.len(), element.size()));
    }
    if shape.len() != stride.len() {
        return Err(format!("shape {shape:?} with strides {stride:?}"));
    }
    // No more elements than are stored: a stride of 0 could claim any number of them. So every product below is in range, too.
    let count = shape.iter().try_fold(1_usize, |product, length| product.checked_mul(*length));
    let count = count.filter(|count| count <= stored);
    let last = shape
        .iter()
        .zip(stride)
        .try_fold(*offset, |last, (length, stride)| last.checked_add(length.saturating_sub(1).checked_mul(*stride)?));
    let (Some(count), Some(_)) = (count, last.filter(|last| last < stored)) else {
        return Err(format!(
            "shape {shape:?}, strides {stride:?} from {offset} on do not fit in {stored} stored elements"
        ));
    };
    let size = element.size();
    let mut values = Vec::with_capacity(count);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let at = offset + index.iter().zip(stride).map(|(i, stride)| i * stride).sum::<usize>();
        values.push(element.value(&bytes[at * size..][..size]));
        for (i, length) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *length {
                break;
            }
            *i = 0;
        }
    }
    Ok(values)
}
