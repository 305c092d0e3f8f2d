//! Arrays that `numpy.savez` wrote: a zip file of `.npy` entries.
//!
//! The header of an entry is a Python literal. What reads any such literal recurses as deep as the file says, so here one reads the three keys that
//! a header has and nothing else.

use std::io::{Read, Seek};

use ndarray::{ArrayD, IxDyn};

use super::arrays::{Arrays, Element, Result, invalid};
use super::zipped::Zipped;

const MAGIC: &[u8] = b"\x93NUMPY";
/// A header of two axes has 118 bytes; this is where a damaged length is not followed any further.
const MAX_HEADER: usize = 4096;

/// Arrays by name.
pub(super) struct Npz<R> {
    zipped: Zipped<R>,
}

impl<R: Read + Seek> Npz<R> {
    pub(super) fn new(file: &'static str, reader: R) -> Result<Self> {
        Ok(Self { zipped: Zipped::new(file, reader)? })
    }

    fn wrong(&self, name: &str, problem: &str) -> crate::DictionaryError {
        invalid(self.zipped.file(), format!("array {name:?}: {problem}"))
    }
}

impl<R: Read + Seek> Arrays for Npz<R> {
    fn file(&self) -> &str {
        self.zipped.file()
    }

    fn names(&self) -> Vec<String> {
        self.zipped.names().filter_map(|name| Some(name.strip_suffix(".npy")?.to_owned())).collect()
    }

    fn shape(&mut self, name: &str) -> Result<Option<Vec<usize>>> {
        if !self.has(name) {
            return Ok(None);
        }
        let (bytes, _) = self.zipped.start(&format!("{name}.npy"), MAX_HEADER as u64)?;
        let header = Header::parse(&bytes).map_err(|problem| self.wrong(name, &problem))?;
        Ok(Some(header.shape))
    }

    fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let bytes = self.zipped.entry(&format!("{name}.npy"))?;
        let Header { element, fortran_order, shape, length } =
            Header::parse(&bytes).map_err(|problem| self.wrong(name, &problem))?;
        let data = &bytes[length..];
        let count = shape.iter().try_fold(1_usize, |product, length| product.checked_mul(*length));
        let expected = count.and_then(|count| count.checked_mul(element.size()));
        if expected != Some(data.len()) {
            let problem = format!("{} bytes for shape {shape:?} of {element:?}", data.len());
            return Err(self.wrong(name, &problem));
        }
        let values: Vec<f32> = data.chunks_exact(element.size()).map(|bytes| element.value(bytes)).collect();
        if !fortran_order {
            return Ok(values);
        }
        let reversed: Vec<usize> = shape.into_iter().rev().collect();
        let array = ArrayD::from_shape_vec(IxDyn(&reversed), values).map_err(|e| self.wrong(name, &e.to_string()))?;
        Ok(array.reversed_axes().iter().copied().collect())
    }
}

/// What comes before an array's elements.
#[derive(Debug, PartialEq)]
struct Header {
    element: Element,
    /// The first axis is the one whose elements are neighbours.
    fortran_order: bool,
    shape: Vec<usize>,
    /// In bytes, of all that comes before.
    length: usize,
}

impl Header {
    /// Of an entry that begins with `bytes`.
    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let cut = "the header is cut short";
        let rest = bytes.strip_prefix(MAGIC).ok_or("not a .npy array")?;
        let (start, rest) = match *rest {
            [1, 0, a, b, ref rest @ ..] => (usize::from(u16::from_le_bytes([a, b])), rest),
            [2 | 3, 0, a, b, c, d, ref rest @ ..] => (u32::from_le_bytes([a, b, c, d]) as usize, rest),
            [major, minor, ..] => return Err(format!("version {major}.{minor} of .npy, expected 1.0, 2.0 or 3.0")),
            _ => return Err(cut.into()),
        };
        let before = bytes.len() - rest.len();
        if start > MAX_HEADER - before {
            return Err(format!("a header of {start} bytes, expected less than {MAX_HEADER}"));
        }
        let text = std::str::from_utf8(rest.get(..start).ok_or(cut)?).map_err(|_| "the header is not text")?;
        let (element, fortran_order, shape) =
            literal(text).ok_or_else(|| format!("header {text:?}, expected descr, fortran_order and shape"))?;
        let element = match element {
            "<f8" => Element::F64,
            "<f4" => Element::F32,
            "<f2" => Element::F16,
            other => return Err(format!("type {other:?}, expected little-endian f16, f32 or f64 (<f2, <f4, <f8)")),
        };
        Ok(Self { element, fortran_order, shape, length: before + start })
    }
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, the keys in any order.
fn literal(text: &str) -> Option<(&str, bool, Vec<usize>)> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, value) = rest.split_once(':')?;
        let value = value.trim_start();
        let after;
        match key.trim() {
            "'descr'" => {
                let (name, end) = value.strip_prefix('\'')?.split_once('\'')?;
                (descr, after) = (Some(name), end);
            }
            "'fortran_order'" => {
                let (order, end) = value.split_at(value.find(',').unwrap_or(value.len()));
                fortran_order = Some(match order.trim_end() {
                    "True" => true,
                    "False" => false,
                    _ => return None,
                });
                after = end;
            }
            "'shape'" => {
                let (lengths, end) = value.strip_prefix('(')?.split_once(')')?;
                let lengths = lengths.split(',').map(str::trim).filter(|length| !length.is_empty());
                shape = Some(lengths.map(|length| length.parse().ok()).collect::<Option<Vec<usize>>>()?);
                after = end;
            }
            _ => return None,
        }
        let after = after.trim_start();
        rest = after.strip_prefix(',').or_else(|| after.is_empty().then_some(after))?.trim_start();
    }
    Some((descr?, fortran_order?, shape?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> std::result::Result<Header, String> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        bytes.extend(text.as_bytes());
        Header::parse(&bytes)
    }

    #[test]
    fn headers_as_numpy_writes_them_are_read() {
        for (shape, expected) in [("()", vec![]), ("(3,)", vec![3]), ("(3, 4)", vec![3, 4])] {
            let text = format!("{{'descr': '<f4', 'fortran_order': True, 'shape': {shape}, }}   \n");
            let read = header(&text).unwrap();
            assert_eq!((read.element, read.fortran_order, read.shape), (Element::F32, true, expected));
        }
        assert!(header("{'descr': '>f4', 'fortran_order': False, 'shape': (3, 4), }").unwrap_err().contains(">f4"));
        for text in
            ["", "{", "{'shape': ((((3))))}", "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }"]
        {
            assert!(header(text).is_err(), "{text}");
        }
    }
}
