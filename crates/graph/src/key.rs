use std::collections::BTreeMap;

use serde_json::Value;

use crate::record::InputRecord;

/// Changes whenever the meaning of a key or the layout of the store does.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// Separates these hashes from every other use of BLAKE3.
const CONTEXT: &str = "monosem-graph node key";

/// All that a key is made of.
pub(crate) struct KeyParts<'k> {
    pub(crate) name: &'k str,
    /// Already [`canonical`].
    pub(crate) params: &'k Value,
    pub(crate) deps: &'k BTreeMap<String, String>,
    pub(crate) inputs: &'k [InputRecord],
    pub(crate) sources: &'k BTreeMap<String, String>,
    pub(crate) lock_hash: &'k str,
}

/// Every string goes in after its length and every list after its count, in a fixed order: no two different sets of parts
/// give the same bytes.
pub(crate) fn node_key(parts: &KeyParts<'_>) -> String {
    let mut hash = Fields(blake3::Hasher::new_derive_key(CONTEXT));
    hash.number(FORMAT_VERSION.into());
    hash.text(parts.name);
    // The text of canonical JSON is one-to-one: strings are escaped, numbers print so that they read back the same.
    hash.text(&parts.params.to_string());
    hash.map(parts.deps);
    hash.number(parts.inputs.len() as u64);
    for input in parts.inputs {
        hash.number(input.folder.into());
        hash.number(input.files.len() as u64);
        for file in &input.files {
            hash.text(&file.path);
            hash.text(&file.blake3);
        }
    }
    hash.map(parts.sources);
    hash.text(parts.lock_hash);
    hash.0.finalize().to_hex().to_string()
}

struct Fields(blake3::Hasher);

impl Fields {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn map(&mut self, map: &BTreeMap<String, String>) {
        self.number(map.len() as u64);
        for (key, value) in map {
            self.text(key);
            self.text(value);
        }
    }
}

/// The same value with the keys of all objects sorted, whatever order `serde_json` was built to keep.
pub(crate) fn canonical(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(canonical).collect()),
        Value::Object(map) => {
            let sorted: BTreeMap<String, Value> = map.into_iter().map(|(key, value)| (key, canonical(value))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, params: &Value, deps: &[(&str, &str)], sources: &[(&str, &str)], lock_hash: &str) -> String {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let (deps, sources) = (map(deps), map(sources));
        node_key(&KeyParts { name, params, deps: &deps, inputs: &[], sources: &sources, lock_hash })
    }

    #[test]
    fn what_moves_between_fields_changes_the_key() {
        let null = Value::Null;
        let keys = [
            key("ab", &null, &[], &[], "c"),
            key("a", &null, &[], &[], "bc"),
            key("a", &null, &[("b", "c")], &[], ""),
            key("a", &null, &[], &[("b", "c")], ""),
            key("a", &null, &[], &[("bc", "")], ""),
            key("a", &null, &[], &[("b", ""), ("c", "")], ""),
            key("a", &serde_json::json!("bc"), &[], &[], ""),
            key("a", &serde_json::json!(["b", "c"]), &[], &[], ""),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    /// A changed value here means that all stores in the world are stale: raise `FORMAT_VERSION` knowingly.
    #[test]
    fn the_key_of_a_known_node_stays() {
        let params = canonical(serde_json::json!({"seed": 7, "alpha": 1e-3, "layers": [1, 2]}));
        let found = key("train", &params, &[("capture", "00ff")], &[("sae", "abcd")], "lock");
        assert_eq!(found, "23e41214273f5e55eae3b5de01459ac00826995f67ba38dc80aaef5caa0bdba8");
    }
}
