//! Result rows: the one format in which every measured number leaves a run, and its file.

use std::cmp::Ordering;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ReportError;

/// One measured number.
///
/// Serialises in exactly this key order. What a row measures is the combination of `experiment`, `method`, `hook`,
/// `setting` and `metric`; the rest says how much and how sure.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
pub struct ResultRow {
    /// Family of experiments: `dictionary`, `training`, `splice`, `planted`, ...
    pub experiment: String,
    /// What was measured; begins with `sae`, `pca`, `ica`, `nmf`, `identity` or `random`.
    pub method: String,
    /// Hook point, as `blocks.3.hook_resid_post`; empty where there is none (planted features).
    pub hook: String,
    /// Comma-separated `key=value`, as `ratio=2,alpha=8.577e-4`; may be empty.
    pub setting: String,
    /// A word of the vocabulary: `fvu`, `l0`, `dead_latents`, `mmcs`, `ce_loss`, ...
    pub metric: String,
    /// The number, in `unit`.
    pub value: f64,
    /// Lower end of the interval, in `unit`.
    pub ci_low: Option<f64>,
    /// Upper end of the interval, in `unit`.
    pub ci_high: Option<f64>,
    /// How many samples (activation vectors, tokens, prompts, latents) the number rests on.
    pub n: u64,
    /// Unit of the value: `latents`, `nats/token`, ...; `1` where it has none.
    pub unit: String,
}

impl ResultRow {
    /// Names the row in messages: everything that says what was measured.
    fn describe(&self) -> String {
        format!("{:?}", (&self.experiment, &self.method, &self.hook, &self.setting, &self.metric))
    }

    /// Refuses numbers that are not finite.
    pub(crate) fn check(&self) -> Result<(), ReportError> {
        let fields = [("value", Some(self.value)), ("ci_low", self.ci_low), ("ci_high", self.ci_high)];
        for (field, number) in fields {
            if let Some(value) = number.filter(|v| !v.is_finite()) {
                return Err(ReportError::NonFinite { row: self.describe(), field, value });
            }
        }
        Ok(())
    }
}

/// The parsed `setting` of a row: keys and values in the order they were written.
///
/// Lenient, because it reads what other programs wrote: a piece without `=` belongs to the value before it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Setting(pub(crate) Vec<(String, String)>);

impl Setting {
    pub(crate) fn parse(text: &str) -> Setting {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for piece in text.split(',').filter(|p| !p.trim().is_empty()) {
            match (piece.split_once('='), pairs.last_mut()) {
                (Some((key, value)), _) => pairs.push((key.trim().to_owned(), value.trim().to_owned())),
                (None, Some((_, value))) => {
                    value.push(',');
                    value.push_str(piece);
                }
                (None, None) => pairs.push((String::new(), piece.trim().to_owned())),
            }
        }
        Setting(pairs)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The value of `key` as a finite number.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.parse::<f64>().ok().filter(|v| v.is_finite())
    }

    /// Everything but the last pair, and its value, where its key is `key`: a `k` at the end is not the `k` of a top-k dictionary.
    pub(crate) fn split_last(&self, key: &str) -> Option<(Setting, &str)> {
        let ((last, value), others) = self.0.split_last()?;
        (last == key).then(|| (Setting(others.to_vec()), value.as_str()))
    }

    /// Everything but the named keys.
    pub(crate) fn without(&self, keys: &[&str]) -> Setting {
        Setting(self.0.iter().filter(|(k, _)| !keys.contains(&k.as_str())).cloned().collect())
    }
}

impl PartialOrd for Setting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Setting {
    fn cmp(&self, other: &Self) -> Ordering {
        for ((ka, va), (kb, vb)) in self.0.iter().zip(&other.0) {
            let order = ka.cmp(kb).then_with(|| value_order(va, vb));
            if order != Ordering::Equal {
                return order;
            }
        }
        self.0.len().cmp(&other.0.len())
    }
}

/// Numbers by size and before words; words by [`natural_order`].
pub(crate) fn value_order(a: &str, b: &str) -> Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => x.total_cmp(&y).then_with(|| a.cmp(b)),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => natural_order(a, b),
    }
}

/// `blocks.3` before `blocks.11`: runs of digits compare as numbers.
pub(crate) fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a, b);
    loop {
        match (x.chars().next(), y.chars().next()) {
            (None, None) => return a.cmp(b),
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(p), Some(q)) if p.is_ascii_digit() && q.is_ascii_digit() => {
                let (dx, rest_x) = split_digits(x);
                let (dy, rest_y) = split_digits(y);
                let (tx, ty) = (dx.trim_start_matches('0'), dy.trim_start_matches('0'));
                let order = tx.len().cmp(&ty.len()).then_with(|| tx.cmp(ty));
                if order != Ordering::Equal {
                    return order;
                }
                (x, y) = (rest_x, rest_y);
            }
            (Some(p), Some(q)) if p == q => (x, y) = (&x[p.len_utf8()..], &y[q.len_utf8()..]),
            (Some(p), Some(q)) => return p.cmp(&q),
        }
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// The order of the file and of every table: a total order, so that the same rows give the same bytes.
pub(crate) fn in_order(rows: &[ResultRow]) -> Vec<&ResultRow> {
    let interval = |r: &ResultRow| [r.ci_low.unwrap_or(f64::NEG_INFINITY), r.ci_high.unwrap_or(f64::NEG_INFINITY)];
    let mut parsed: Vec<(Setting, &ResultRow)> = rows.iter().map(|r| (Setting::parse(&r.setting), r)).collect();
    parsed.sort_by(|(sa, a), (sb, b)| {
        a.experiment
            .cmp(&b.experiment)
            .then_with(|| natural_order(&a.hook, &b.hook))
            .then_with(|| natural_order(&a.method, &b.method))
            .then_with(|| sa.cmp(sb))
            .then_with(|| a.setting.cmp(&b.setting))
            .then_with(|| a.metric.cmp(&b.metric))
            .then_with(|| a.value.total_cmp(&b.value))
            .then_with(|| interval(a)[0].total_cmp(&interval(b)[0]))
            .then_with(|| interval(a)[1].total_cmp(&interval(b)[1]))
            .then_with(|| a.n.cmp(&b.n))
            .then_with(|| a.unit.cmp(&b.unit))
    });
    parsed.into_iter().map(|(_, row)| row).collect()
}

/// Reads a results file: a JSON array of rows.
///
/// # Errors
/// The file cannot be read, or is not an array of rows with exactly the keys of [`ResultRow`].
pub fn read_results(path: &Path) -> Result<Vec<ResultRow>, ReportError> {
    let bytes = fs::read(path).map_err(|source| ReportError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| ReportError::Json { path: path.to_owned(), source })
}

/// Writes a results file: a JSON array with one row per line, in an order that does not depend on that of `rows`.
///
/// The file appears whole or not at all: it is written beside its place and renamed.
///
/// # Errors
/// A number is not finite (the row is named, nothing is written), or the file cannot be written.
pub fn write_results(path: &Path, rows: &[ResultRow]) -> Result<(), ReportError> {
    let sorted = in_order(rows);
    let mut text = String::from("[");
    for (i, row) in sorted.iter().enumerate() {
        row.check()?;
        text.push_str(if i == 0 { "\n" } else { ",\n" });
        let line = serde_json::to_string(row).map_err(|source| ReportError::Json { path: path.to_owned(), source })?;
        text.push_str(&line);
    }
    text.push_str("\n]\n");
    write_whole(path, text.as_bytes())
}

/// Writes beside the target, syncs, renames: a reader never sees half a file.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".tmp-{}", std::process::id()));
    let beside = path.with_file_name(name);
    let written = (|| {
        let mut file = fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    written.map_err(|source| {
        // Nothing more can be done if this fails too; the first error is the one worth telling.
        let _ = fs::remove_file(&beside);
        ReportError::Io { path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_leniently() {
        let s = Setting::parse("ratio=2, alpha=8.577e-4,to=sae-tied,x");
        assert_eq!(s.number("ratio"), Some(2.0));
        assert_eq!(s.number("alpha"), Some(8.577e-4));
        assert_eq!(s.get("to"), Some("sae-tied,x"));
        assert_eq!(Setting::parse(""), Setting::default());
        assert_eq!(Setting::parse("none").0, vec![(String::new(), "none".to_owned())]);
        assert_eq!(Setting::parse("alpha=inf").number("alpha"), None);
        let twice = Setting::parse("ratio=2,k=32,k=16");
        assert_eq!(twice.split_last("k"), Some((Setting::parse("ratio=2,k=32"), "16")));
        assert_eq!(twice.split_last("ratio"), None);
    }

    #[test]
    fn hooks_and_alphas_sort_as_people_expect() {
        assert_eq!(natural_order("blocks.3.x", "blocks.11.x"), Ordering::Less);
        assert_eq!(value_order("8.577e-4", "1e-3"), Ordering::Less);
        assert_eq!(value_order("2", "word"), Ordering::Less);
        assert!(Setting::parse("ratio=2,alpha=1e-3") < Setting::parse("ratio=16,alpha=1e-4"));
    }
}
