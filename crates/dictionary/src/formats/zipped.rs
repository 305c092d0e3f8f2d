//! The zip containers of `torch.save` and `numpy.savez`, which compress nothing. Only stored entries are read, so that what a file makes the reader
//! allocate stays within the file's own length.

use std::borrow::Cow;
use std::io::{Read, Seek, SeekFrom};

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::arrays::{Result, invalid, unsupported};

/// A zip file, named `file` in messages.
pub(super) struct Zipped<R> {
    archive: ZipArchive<R>,
    file: &'static str,
    /// Of the whole file, in bytes.
    length: u64,
}

impl<R: Read + Seek> Zipped<R> {
    pub(super) fn new(file: &'static str, mut reader: R) -> Result<Self> {
        let length = reader.seek(SeekFrom::End(0)).map_err(|e| invalid(file, format!("cannot be read: {e}")))?;
        let archive = ZipArchive::new(reader).map_err(|e| invalid(file, format!("not a whole zip file: {e}")))?;
        Ok(Self { archive, file, length })
    }

    pub(super) fn file(&self) -> &'static str {
        self.file
    }

    /// Names of the entries, in the order of the file, but for those that are not text.
    pub(super) fn names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.archive.file_names().flatten()
    }

    /// The first `limit` bytes of the entry `name`, and how many it has in all. Whether they are those written (its checksum) is known only of a
    /// whole entry.
    pub(super) fn start(&mut self, name: &str, limit: u64) -> Result<(Vec<u8>, u64)> {
        let (file, length) = (self.file, self.length);
        let no_entry = |e: ZipError| invalid(file, format!("entry {name:?}: {e}"));
        let index = self.archive.index_for_name(name).ok_or_else(|| no_entry(ZipError::FileNotFound))?;
        let raw = self.archive.by_index_raw(index).map_err(no_entry)?;
        if raw.encrypted() || raw.compression() != CompressionMethod::Stored {
            return Err(unsupported(file, format!("entry {name:?} is compressed or encrypted, expected it as it is")));
        }
        let size = raw.size();
        if size != raw.compressed_size() || size > length {
            return Err(invalid(file, format!("entry {name:?} claims {size} bytes, in a file of {length}")));
        }
        drop(raw);
        let entry = self.archive.by_index(index).map_err(no_entry)?;
        // Known to be within the file.
        let wanted =
            usize::try_from(size.min(limit)).map_err(|_| invalid(file, format!("entry {name:?} is too long")))?;
        let mut bytes = Vec::with_capacity(wanted);
        // One byte more than the entry has makes the reader compare checksums.
        let reading = if size <= limit { size + 1 } else { limit };
        entry.take(reading).read_to_end(&mut bytes).map_err(|e| invalid(file, format!("entry {name:?}: {e}")))?;
        if bytes.len() != wanted {
            return Err(invalid(file, format!("entry {name:?} has {} bytes, expected {wanted}", bytes.len())));
        }
        Ok((bytes, size))
    }

    /// The entry `name`, whole.
    pub(super) fn entry(&mut self, name: &str) -> Result<Vec<u8>> {
        Ok(self.start(name, u64::MAX)?.0)
    }
}
