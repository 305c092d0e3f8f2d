//! Files and folders as a stream of documents.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use crate::CorpusError;

const KINDS: &str = ".txt, .jsonl and .json (an object on each line), each also with .gz or .zst";

/// One document and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The text.
    pub text: String,
    /// The file.
    pub file: Arc<Path>,
    /// The line of a `.jsonl` file, counted from 1.
    pub line: Option<u64>,
}

impl Document {
    /// `file` or `file:line`.
    pub fn place(&self) -> impl fmt::Display + use<> {
        match self.line {
            Some(line) => format!("{}:{line}", self.file.display()),
            None => self.file.display().to_string(),
        }
    }
}

/// The documents of each path in turn: of a file, or of all files of a folder and the folders in it in sorted order. One document is
/// in memory at a time.
///
/// Read are `.txt` (a file is a document), `.jsonl` and `.json` with an object on each line (a line is a document, its text is the
/// field named `field`), and all of these compressed with gzip (`.gz`) or Zstandard (`.zst`). In a folder, other files and those
/// whose name begins with a dot are passed over, and linked folders are not followed.
///
/// # Errors
/// [`CorpusError::Read`] if a path cannot be read, [`CorpusError::Format`] if it is a file of another kind,
/// [`CorpusError::Empty`] if the folder holds no file of these kinds. The items carry what is wrong with a single document.
pub fn documents(paths: &[&Path], field: &str) -> Result<DocumentIter, CorpusError> {
    let mut files = Vec::new();
    for path in paths.iter().copied() {
        let before = files.len();
        if fs::metadata(path).map_err(CorpusError::read(path))?.is_dir() {
            collect(path, &mut files)?;
            if files.len() == before {
                let why = format!("the folder has no file of {KINDS}");
                return Err(CorpusError::Empty { path: path.into(), why });
            }
        } else if Kind::of(path).is_some() {
            files.push(path.to_owned());
        } else {
            return Err(CorpusError::Format { file: path.into(), why: format!("not a text; read are {KINDS}") });
        }
    }
    files.reverse();
    Ok(DocumentIter { files, lines: None, field: field.to_owned(), failed: false })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), CorpusError> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = entries.map_err(CorpusError::read(folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type().map_err(CorpusError::read(&path))?.is_dir() {
            collect(&path, files)?;
        } else if Kind::of(&path).is_some() && path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// How a file is packed and what is inside.
struct Kind {
    packing: Packing,
    lines: bool,
}

#[derive(Clone, Copy)]
enum Packing {
    Plain,
    Gzip,
    Zstandard,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (name, packing) = match (name.strip_suffix(".gz"), name.strip_suffix(".zst")) {
            (Some(inner), _) => (inner, Packing::Gzip),
            (_, Some(inner)) => (inner, Packing::Zstandard),
            _ => (name.as_str(), Packing::Plain),
        };
        match Path::new(name).extension()?.to_str()? {
            "txt" => Some(Self { packing, lines: false }),
            "jsonl" | "json" => Some(Self { packing, lines: true }),
            _ => None,
        }
    }
}

/// The stream that [`documents`] returns. It ends after the first error.
pub struct DocumentIter {
    /// Files still to be read, the next one last.
    files: Vec<PathBuf>,
    lines: Option<Lines>,
    field: String,
    failed: bool,
}

impl fmt::Debug for DocumentIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DocumentIter").field("files_left", &self.files.len()).finish_non_exhaustive()
    }
}

/// A `.jsonl` file that is being read.
struct Lines {
    file: Arc<Path>,
    reader: BufReader<Box<dyn Read>>,
    line: u64,
    /// Bytes before the current line, after decompression.
    offset: u64,
}

impl Iterator for DocumentIter {
    type Item = Result<Document, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

impl DocumentIter {
    /// Puts the files still to be read in an order drawn from `seed`.
    pub fn shuffle_files(&mut self, seed: u64) {
        self.files.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    }

    fn advance(&mut self) -> Result<Option<Document>, CorpusError> {
        loop {
            if let Some(lines) = &mut self.lines {
                match lines.advance(&self.field)? {
                    Some(document) => return Ok(Some(document)),
                    None => self.lines = None,
                }
            }
            let Some(path) = self.files.pop() else { return Ok(None) };
            let Some(kind) = Kind::of(&path) else { continue };
            let mut reader = open(&path, kind.packing)?;
            let file: Arc<Path> = path.into();
            if kind.lines {
                self.lines =
                    Some(Lines { file, reader: BufReader::with_capacity(1 << 16, reader), line: 0, offset: 0 });
                continue;
            }
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map_err(CorpusError::read(&*file))?;
            let text = utf8(bytes, &file, 0)?;
            return Ok(Some(Document {
                text: text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned(),
                file,
                line: None,
            }));
        }
    }
}

impl Lines {
    fn advance(&mut self, field: &str) -> Result<Option<Document>, CorpusError> {
        loop {
            let mut bytes = Vec::new();
            let n = self.reader.read_until(b'\n', &mut bytes).map_err(CorpusError::read(&*self.file))?;
            if n == 0 {
                return Ok(None);
            }
            self.line += 1;
            let line = utf8(bytes, &self.file, self.offset)?;
            self.offset += n as u64;
            let line = line.trim_start_matches('\u{feff}').trim();
            if !line.is_empty() {
                let text = self.field_of(line, field)?;
                return Ok(Some(Document { text, file: Arc::clone(&self.file), line: Some(self.line) }));
            }
        }
    }

    fn field_of(&self, line: &str, field: &str) -> Result<String, CorpusError> {
        use serde_json::{Map, Value};
        let mut object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
            // The parser counts lines within the line.
            let why = error.to_string().replace(" at line 1 column ", " at column ");
            CorpusError::Json { file: (*self.file).into(), line: self.line, why }
        })?;
        let why = match object.get_mut(field) {
            Some(Value::String(text)) => return Ok(std::mem::take(text)),
            Some(_) => format!("the field `{field}` is not a string"),
            None => format!("there is no field `{field}`"),
        };
        let present: Vec<&str> = object.keys().map(String::as_str).collect();
        let present = if present.is_empty() { "none".to_owned() } else { present.join(", ") };
        Err(CorpusError::Field { file: (*self.file).into(), line: self.line, why, present })
    }
}

fn utf8(bytes: Vec<u8>, file: &Path, offset: u64) -> Result<String, CorpusError> {
    String::from_utf8(bytes).map_err(|error| CorpusError::Utf8 {
        file: file.into(),
        offset: offset + error.utf8_error().valid_up_to() as u64,
    })
}

fn open(path: &Path, packing: Packing) -> Result<Box<dyn Read>, CorpusError> {
    let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(CorpusError::read(path))?);
    Ok(match packing {
        Packing::Plain => Box::new(file),
        Packing::Gzip => Box::new(MultiGzDecoder::new(file)),
        Packing::Zstandard => Box::new(ZstdFrames { source: file, decoder: FrameDecoder::new(), in_frame: false }),
    })
}

/// All frames of a Zstandard file: parallel compressors write many, and the decoder reads one.
struct ZstdFrames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.in_frame {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let blocks = BlockDecodingStrategy::UptoBlocks(1);
                    self.decoder.decode_blocks(&mut self.source, blocks).map_err(io::Error::other)?;
                }
                let n = self.decoder.read(buffer)?;
                if n > 0 {
                    return Ok(n);
                }
                if let (Some(expected), Some(found)) =
                    (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum())
                    && expected != found
                {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the checksum of a Zstandard frame is wrong",
                    ));
                }
                self.in_frame = false;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => self.in_frame = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < length.into() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn texts(path: &Path) -> Vec<String> {
        documents(&[path], "text").unwrap().map(|document| document.unwrap().text).collect()
    }

    fn error(path: &Path) -> CorpusError {
        documents(&[path], "text").unwrap().find_map(Result::err).unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_kind_of_file_is_read_in_sorted_order() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("c")).unwrap();
        fs::write(at("b.txt"), "\u{feff}bé").unwrap();
        fs::write(at("a.jsonl"), "{\"text\": \"a1\", \"id\": 1}\r\n\n{\"text\": \"a2\"}").unwrap();
        // Two members and two frames, with a skippable frame between those.
        let two = [gzip(b"{\"text\": \"c1\"}\n"), gzip(b"{\"text\": \"c2\"}\n")].concat();
        fs::write(at("c/x.jsonl.gz"), two).unwrap();
        let zstd = |text: &str| compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
        let skip = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
        let long = "long ".repeat(100_000);
        let frames =
            [zstd("{\"text\": \"d1\"}\n{\"te"), skip.to_vec(), zstd(&format!("xt\": \"{long}\"}}\n"))].concat();
        fs::write(at("d.jsonl.zst"), frames).unwrap();
        fs::write(at(".hidden.txt"), "no").unwrap();
        fs::write(at("notes.md"), "no").unwrap();
        assert_eq!(texts(folder.path()), ["a1", "a2", "bé", "c1", "c2", "d1", &long]);
        let places: Vec<String> =
            documents(&[folder.path()], "text").unwrap().map(|d| d.unwrap().place().to_string()).collect();
        assert!(places[1].ends_with("a.jsonl:3") && places[2].ends_with("b.txt"), "{places:?}");
    }

    #[test]
    fn bad_input_is_named_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let bad = error(&write("bad.txt", b"abc\xff"));
        assert!(matches!(bad, CorpusError::Utf8 { offset: 3, .. }), "{bad}");
        let bad = error(&write("bad.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}"));
        assert!(matches!(bad, CorpusError::Utf8 { offset: 24, .. }), "{bad}");
        let bad = error(&write("half.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"b")).to_string();
        assert!(bad.contains("half.jsonl:2") && bad.contains("column"), "{bad}");
        let bad = error(&write("array.json", b"[\n{\"text\": \"a\"}]")).to_string();
        assert!(bad.contains("array.json:1") && bad.contains("one line"), "{bad}");
        let bad = error(&write("field.jsonl", b"{\"content\": \"a\", \"id\": 3}")).to_string();
        assert!(bad.contains("no field `text`") && bad.contains("content, id"), "{bad}");
        let bad = error(&write("type.jsonl", b"{\"text\": 3}")).to_string();
        assert!(bad.contains("not a string"), "{bad}");
        let whole = gzip(b"{\"text\": \"a long enough line\"}\n");
        let bad = error(&write("cut.jsonl.gz", &whole[..whole.len() - 9]));
        assert!(matches!(bad, CorpusError::Read { .. }), "{bad}");
        let whole =
            compress_to_vec("{\"text\": \"a long enough line\"}\n".repeat(50).as_bytes(), CompressionLevel::Fastest);
        for cut in [3, whole.len() / 2, whole.len() - 1] {
            let bad = error(&write("cut.jsonl.zst", &whole[..cut]));
            assert!(matches!(bad, CorpusError::Read { .. }), "{bad}");
        }
        let bad = documents(&[&write("x.pdf", b"x")], "text").unwrap_err().to_string();
        assert!(bad.contains("x.pdf") && bad.contains(".jsonl"), "{bad}");
        assert!(matches!(documents(&[&folder.path().join("none") as &Path], "text"), Err(CorpusError::Read { .. })));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(documents(&[empty.path()], "text"), Err(CorpusError::Empty { .. })));
    }
}
