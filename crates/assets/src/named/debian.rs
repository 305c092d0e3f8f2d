//! Texts that Debian packages carry: six novels of Jane Austen, and An Anarchist FAQ.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::{GzDecoder, ZlibDecoder};

use super::prose::{self, Chapters};

/// Where Debian's packages are, without a trailing slash.
pub(super) const POOL: &str = "https://deb.debian.org/debian/pool/main";

/// The novels in the R package `janeaustenr`, a file for each chapter.
pub(super) fn extract_austen(archive: &Path, folder: &Path) -> Result<(), String> {
    let mut database = Vec::new();
    each_file(archive, |path, reader| {
        if path.ends_with("janeaustenr/data/Rdata.rdb") {
            reader.read_to_end(&mut database).map_err(|e| e.to_string())?;
        }
        Ok(())
    })?;
    // In the order of the package's index, which is the alphabet's.
    let novels =
        ["emma", "mansfield-park", "northanger-abbey", "persuasion", "pride-and-prejudice", "sense-sensibility"];
    let objects = r_objects(&database)?;
    if objects.len() != novels.len() {
        return Err(format!("{} objects in Rdata.rdb, expected {}", objects.len(), novels.len()));
    }
    for (novel, object) in novels.iter().zip(&objects) {
        let lines = r_strings(object).map_err(|why| format!("{novel}: {why}"))?;
        let is_heading = |line: &str| line.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("chapter"));
        save(folder, novel, &prose::chapters(lines.iter().map(String::as_str), is_heading))?;
    }
    Ok(())
}

/// The FAQ's sections, a file for each; lists of links and the bibliography are left out.
pub(super) fn extract_anarchism(archive: &Path, folder: &Path) -> Result<(), String> {
    const NO_PROSE: [&str; 9] = ["alinks", "arlinks", "biblio", "book", "contact", "index", "links", "new", "pdf"];
    each_file(archive, |path, reader| {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".md.gz"));
        let Some(name) = name.filter(|name| !NO_PROSE.contains(name)) else { return Ok(()) };
        let mut text = String::new();
        GzDecoder::new(reader).read_to_string(&mut text).map_err(|e| format!("{name}: {e}"))?;
        save(folder, name, &prose::chapters(text.lines(), |line| line.starts_with("## ")))
    })
}

fn save(folder: &Path, name: &str, chapters: &Chapters) -> Result<(), String> {
    for (i, chapter) in chapters.iter().enumerate() {
        let file = folder.join(format!("{name}-{i:03}.txt"));
        fs::write(&file, chapter).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    Ok(())
}

/// Calls `visit` with each file of a `.deb`: an `ar` archive whose member `data.tar.xz` holds the files.
fn each_file(
    archive: &Path,
    mut visit: impl FnMut(PathBuf, &mut dyn Read) -> Result<(), String>,
) -> Result<(), String> {
    let file = File::open(archive).map_err(|e| e.to_string())?;
    let mut archive = ar::Archive::new(BufReader::new(file));
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(|e| e.to_string())?;
        if member.header().identifier() != b"data.tar.xz" {
            continue;
        }
        let mut data = Vec::new();
        lzma_rs::xz_decompress(&mut BufReader::new(member), &mut data).map_err(|e| format!("data.tar.xz: {e:?}"))?;
        for entry in tar::Archive::new(data.as_slice()).entries().map_err(|e| e.to_string())? {
            let mut entry = entry.map_err(|e| e.to_string())?;
            let path = entry.path().map_err(|e| e.to_string())?.into_owned();
            if entry.header().entry_type().is_file() {
                visit(path, &mut entry)?;
            }
        }
        return Ok(());
    }
    Err("there is no data.tar.xz in it".into())
}

/// The serialised objects of an R database (`.rdb`): each a big-endian length and as many bytes once inflated.
fn r_objects(database: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut objects = Vec::new();
    let mut rest = database;
    while let Some((length, packed)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let mut decoder = ZlibDecoder::new(packed);
        let mut object = Vec::new();
        decoder.read_to_end(&mut object).map_err(|e| format!("Rdata.rdb: {e}"))?;
        if object.len() != length {
            return Err(format!("Rdata.rdb: an object has {} bytes, expected {length}", object.len()));
        }
        let used = usize::try_from(decoder.total_in()).map_err(|e| e.to_string())?;
        rest = &packed[used..];
        objects.push(object);
    }
    Ok(objects)
}

/// The elements of a character vector in R's serialisation (XDR, version 3): a header that ends with the encoding's name, the type
/// (`STRSXP`, 16), the number of elements, and for each its flags (`CHARSXP`, 9), its length and its bytes.
fn r_strings(object: &[u8]) -> Result<Vec<String>, String> {
    const CHARACTER_VECTOR: u32 = 16;
    const CHARACTERS: u32 = 9;
    let mut rest = object.strip_prefix(b"X\n").ok_or("not in R's binary serialisation")?;
    let number = |rest: &mut &[u8]| -> Result<u32, String> {
        let (bytes, after) = rest.split_first_chunk::<4>().ok_or("it ends in the middle of a number")?;
        *rest = after;
        Ok(u32::from_be_bytes(*bytes))
    };
    let version = number(&mut rest)?;
    if version != 3 {
        return Err(format!("version {version} of R's serialisation, expected 3"));
    }
    let _written_by = number(&mut rest)?;
    let _readable_by = number(&mut rest)?;
    let encoding = number(&mut rest)? as usize;
    rest = rest.get(encoding..).ok_or("it ends in its header")?;
    let kind = number(&mut rest)? & 0xff;
    if kind != CHARACTER_VECTOR {
        return Err(format!("an object of type {kind}, expected a character vector ({CHARACTER_VECTOR})"));
    }
    let n = number(&mut rest)?;
    let mut strings = Vec::new();
    for _ in 0..n {
        if number(&mut rest)? & 0xff != CHARACTERS {
            return Err("an element is not a string".into());
        }
        let length = number(&mut rest)? as usize;
        let (bytes, after) = rest.split_at_checked(length).ok_or("it ends in the middle of a string")?;
        strings.push(String::from_utf8(bytes.to_vec()).map_err(|e| e.to_string())?);
        rest = after;
    }
    Ok(strings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use std::io::Write;

    fn serialised(strings: &[&str]) -> Vec<u8> {
        let mut out = b"X\n".to_vec();
        for number in [3, 0x0004_0201, 0x0003_0500, 5] {
            out.extend(u32::to_be_bytes(number));
        }
        out.extend(b"UTF-8");
        out.extend(16u32.to_be_bytes());
        out.extend((strings.len() as u32).to_be_bytes());
        for string in strings {
            out.extend(0x0004_0009_u32.to_be_bytes());
            out.extend((string.len() as u32).to_be_bytes());
            out.extend(string.as_bytes());
        }
        out
    }

    #[test]
    fn strings_of_an_r_database_are_read() {
        let mut database = Vec::new();
        for strings in [&["EMMA", "", "CHAPTER I"][..], &["Persuasion"]] {
            let object = serialised(strings);
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&object).unwrap();
            database.extend((object.len() as u32).to_be_bytes());
            database.extend(encoder.finish().unwrap());
        }
        let objects = r_objects(&database).unwrap();
        assert_eq!(r_strings(&objects[0]).unwrap(), ["EMMA", "", "CHAPTER I"]);
        assert_eq!(r_strings(&objects[1]).unwrap(), ["Persuasion"]);
    }

    #[test]
    fn a_truncated_object_is_an_error() {
        let object = serialised(&["EMMA", "by"]);
        assert!((0..object.len()).all(|n| r_strings(&object[..n]).is_err()));
    }
}
