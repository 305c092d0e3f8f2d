//! Profiles by name or path, layered on their bases.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::Profile;

/// The profiles that come with the program, by name.
const EMBEDDED: &[(&str, &str)] = &[
    ("smollm2", include_str!("../../profiles/smollm2.toml")),
    ("smollm2-ioi", include_str!("../../profiles/smollm2-ioi.toml")),
    ("smollm2-causal", include_str!("../../profiles/smollm2-causal.toml")),
    ("smollm2-interp", include_str!("../../profiles/smollm2-interp.toml")),
    ("smollm2-llm", include_str!("../../profiles/smollm2-llm.toml")),
    ("smollm2-mlp", include_str!("../../profiles/smollm2-mlp.toml")),
    ("smollm2-sweep", include_str!("../../profiles/smollm2-sweep.toml")),
    ("planted", include_str!("../../profiles/planted.toml")),
    ("smollm2-full", include_str!("../../profiles/smollm2-full.toml")),
    ("toy", include_str!("../../profiles/toy.toml")),
    ("pythia-70m", include_str!("../../profiles/pythia-70m.toml")),
    ("pythia-410m", include_str!("../../profiles/pythia-410m.toml")),
];

/// Bases on bases deeper than this are taken for a circle.
const MAX_DEPTH: usize = 8;

/// A profile that was read, with its name and its full text after layering.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Name (of an embedded profile) or file stem.
    pub name: String,
    /// The settings.
    pub profile: Profile,
    /// All settings as TOML, bases applied.
    pub toml: String,
}

/// The names of the profiles that come with the program, with the first line of their descriptions.
#[must_use]
pub fn embedded() -> Vec<(&'static str, String)> {
    let describe = |text: &str| {
        let table: Option<toml::Table> = text.parse().ok();
        table.and_then(|t| t.get("description")?.as_str().map(str::to_owned)).unwrap_or_default()
    };
    EMBEDDED.iter().map(|(name, text)| (*name, describe(text))).collect()
}

/// Reads the profile called `name`: one that comes with the program, or a path to a TOML file.
///
/// # Errors
/// If there is no such profile (the message lists those there are), a key is unknown, missing or out of range, or bases go in circles.
pub fn load(name: &str) -> Result<Loaded> {
    let table = layered(name, 0)?;
    let mut shown = table.clone();
    hide(&mut shown);
    let toml = toml::to_string(&shown).context("a profile that cannot be printed")?;
    // From the table, not from its text: line numbers of what was merged would mean nothing to a reader.
    let profile: Profile = table.try_into().with_context(|| format!("profile {name:?}"))?;
    profile.validate().with_context(|| format!("profile {name:?}"))?;
    let stem = Path::new(name).file_stem().map_or_else(|| name.to_owned(), |s| s.to_string_lossy().into_owned());
    Ok(Loaded { name: stem, profile, toml })
}

/// Covers what may be secret in a text that goes into reports.
fn hide(table: &mut toml::Table) {
    let Some(server) = ["language", "interp", "llm", "who", "server"]
        .iter()
        .try_fold(table, |table, key| table.get_mut(*key).and_then(toml::Value::as_table_mut))
    else {
        return;
    };
    let cover = |value: &mut toml::Value| {
        if !value.as_str().is_some_and(|text| text.starts_with("env:") || text == "none") {
            *value = "(hidden)".into();
        }
    };
    server.get_mut("proxy").into_iter().for_each(cover);
    let headers = server.get_mut("headers").and_then(toml::Value::as_table_mut);
    headers.into_iter().flat_map(|headers| headers.iter_mut()).for_each(|(_, value)| cover(value));
}

fn layered(name: &str, depth: usize) -> Result<toml::Table> {
    if depth > MAX_DEPTH {
        bail!("profile {name:?}: bases go in a circle");
    }
    let (text, folder) = text_of(name)?;
    let mut table: toml::Table = text.parse().with_context(|| format!("profile {name:?} is not TOML"))?;
    let Some(base) = table.remove("base") else { return Ok(table) };
    let Some(base) = base.as_str() else { bail!("profile {name:?}: base is a name or a path") };
    // A relative path is relative to the file that names it.
    let beside = folder.map(|folder| folder.join(base)).filter(|path| path.is_file());
    let base = beside.map_or_else(|| base.to_owned(), |path| path.to_string_lossy().into_owned());
    let mut merged = layered(&base, depth + 1)?;
    if let Some(without) = table.remove("without") {
        leave_out(&mut merged, &without).with_context(|| format!("profile {name:?}"))?;
    }
    overlay(&mut merged, table);
    Ok(merged)
}

/// Takes sections out of a base: `without = ["language.ioi"]`.
fn leave_out(base: &mut toml::Table, without: &toml::Value) -> Result<()> {
    let path = |value: &toml::Value| Some(value.as_str()?.to_owned());
    let paths: Option<Vec<String>> = without.as_array().and_then(|list| list.iter().map(path).collect());
    for path in paths.context("without: a list of sections of the base, such as [\"language.ioi\"]")? {
        let mut table = &mut *base;
        let (above, last) = path.rsplit_once('.').unwrap_or(("", &path));
        for key in above.split('.').filter(|key| !key.is_empty()) {
            let below = table.get_mut(key).and_then(toml::Value::as_table_mut);
            table = below.with_context(|| format!("without: the base has no section {path:?}"))?;
        }
        table.remove(last).with_context(|| format!("without: the base has no section {path:?}"))?;
    }
    Ok(())
}

fn text_of(name: &str) -> Result<(String, Option<PathBuf>)> {
    if let Some((_, text)) = EMBEDDED.iter().find(|(known, _)| *known == name) {
        return Ok(((*text).to_owned(), None));
    }
    let path = Path::new(name);
    if path.extension().is_some_and(|e| e == "toml") {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the profile {name}"))?;
        return Ok((text, path.parent().map(Path::to_owned)));
    }
    let known: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
    bail!("unknown profile {name:?}: choose one of {}, or give the path of a .toml file", known.join(", "))
}

/// Sections that say one thing or another: that of a base is replaced, not added to.
const WHOLE: [&str; 2] = ["who", "split"];

fn overlay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key).filter(|_| !WHOLE.contains(&key.as_str())), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_profile_is_valid() {
        for (name, description) in embedded() {
            let loaded = load(name).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            assert!(!description.is_empty());
            // What is shown in a report reads back as the same settings.
            assert_eq!(toml::from_str::<Profile>(&loaded.toml).unwrap(), loaded.profile);
        }
    }

    #[test]
    fn an_unknown_profile_lists_those_there_are() {
        let error = format!("{:#}", load("smolm").unwrap_err());
        assert!(embedded().iter().all(|(name, _)| error.contains(name)), "{error}");
    }

    #[test]
    fn a_profile_overrides_its_base_key_by_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "base = \"smollm2\"\n[language.sae]\nsteps = 7\n").unwrap();
        let mine = load(path.to_str().unwrap()).unwrap();
        let base = load("smollm2").unwrap();
        assert_eq!(mine.name, "mine");
        let (mut mine, base) = (mine.profile.language.unwrap(), base.profile.language.unwrap());
        assert_eq!(mine.sae.steps, 7);
        mine.sae.steps = base.sae.steps;
        assert_eq!(mine, base);
    }

    #[test]
    fn sections_of_a_base_can_be_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "base = \"smollm2\"\nwithout = [\"language.ioi\"]\n").unwrap();
        let language = load(path.to_str().unwrap()).unwrap().profile.language.unwrap();
        assert!(language.ioi.is_none() && language.interp.is_some());
        std::fs::write(&path, "base = \"smollm2\"\nwithout = [\"language.ioy\"]\n").unwrap();
        let error = format!("{:#}", load(path.to_str().unwrap()).unwrap_err());
        assert!(error.contains("no section \"language.ioy\""), "{error}");
    }

    #[test]
    fn who_is_asked_is_replaced_and_secrets_do_not_show() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        let server = "{ base_url = 'http://127.0.0.1:1/v1', model = 'm', proxy = 'http://u:geheim@p', headers = { a = 'geheim', b = 'env:B' } }";
        let text = format!("base = 'smollm2-llm'\n[language.interp.llm]\nwho = {{ server = {server} }}\n");
        std::fs::write(&path, text).unwrap();
        let loaded = load(path.to_str().unwrap()).unwrap();
        assert!(!loaded.toml.contains("geheim") && loaded.toml.contains("env:B"), "{}", loaded.toml);
        let interp = loaded.profile.language.unwrap().interp.unwrap();
        assert!(matches!(interp.llm.unwrap().who, crate::endpoint::Llm::Server(config) if config.model == "m"));
    }

    #[test]
    fn an_unknown_key_and_a_circle_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "base = \"smollm2\"\n[language.sae]\nstep = 7\n").unwrap();
        let error = format!("{:#}", load(path.to_str().unwrap()).unwrap_err());
        assert!(error.contains("`step`") && error.contains("`steps`"), "{error}");
        std::fs::write(&path, "base = \"mine.toml\"\n").unwrap();
        let error = format!("{:#}", load(path.to_str().unwrap()).unwrap_err());
        assert!(error.contains("circle"), "{error}");
    }
}
