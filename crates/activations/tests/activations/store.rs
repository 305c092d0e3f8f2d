//! Stores that were damaged after they were written.

use std::path::{Path, PathBuf};

use monosem_activations::{ActivationError, CaptureConfig, Dtype, Store, capture};
use ndarray::Array2;

use crate::formula::{Formula, WIDTH, go_on, point, source, tokens};

const HOOK: &str = "blocks.0.hook_resid_post";

/// Three shards of 20, 20 and 16 rows.
fn write(out: &Path) -> PathBuf {
    let (ids, documents) = tokens(8, 8);
    let config = CaptureConfig {
        hooks: vec![point(HOOK), point("blocks.1.hook_resid_pre")],
        dtype: Dtype::F32,
        rows_per_shard: 20,
        ..CaptureConfig::default()
    };
    capture(&Formula::default(), ids.view(), documents.view(), &config, &source(), out, &mut go_on).unwrap();
    out.join(HOOK).join("activations-00001.safetensors")
}

/// The first error on the way from a folder to its rows.
fn read(out: &Path) -> Result<Array2<f32>, ActivationError> {
    let acts = Store::open(out)?.hook(point(HOOK))?;
    let mut rows = Array2::zeros((acts.len(), acts.width()));
    acts.rows(0, rows.view_mut())?;
    Ok(rows)
}

#[test]
fn a_shard_cut_anywhere_is_named() {
    let out = tempfile::tempdir().unwrap();
    let shard = write(out.path());
    let whole = std::fs::read(&shard).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&shard, &whole[..length]).unwrap();
        let text = read(out.path()).unwrap_err().to_string();
        assert!(
            text.contains("activations-00001.safetensors: truncated") && text.contains(&format!("{length} bytes")),
            "{text}"
        );
    }
    std::fs::remove_file(&shard).unwrap();
    let text = read(out.path()).unwrap_err().to_string();
    assert!(text.starts_with("cannot open") && text.contains("activations-00001.safetensors"), "{text}");
}

#[test]
fn a_changed_byte_is_an_error_or_found_by_verify() {
    let out = tempfile::tempdir().unwrap();
    let shard = write(out.path());
    let whole = std::fs::read(&shard).unwrap();
    let store = Store::open(out.path()).unwrap();
    store.verify().unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        std::fs::write(&shard, bytes).unwrap();
        // Whatever it hits, nothing panics.
        let _ = read(out.path());
        let text = store.verify().unwrap_err().to_string();
        assert!(text.contains("activations-00001.safetensors: is not what was written"), "{text}");
    }
}

#[test]
fn another_shards_bytes_are_not_taken_for_this_ones() {
    let out = tempfile::tempdir().unwrap();
    let shard = write(out.path());
    std::fs::copy(shard.with_file_name("activations-00002.safetensors"), &shard).unwrap();
    let text = read(out.path()).unwrap_err().to_string();
    assert!(text.contains("F32 [16, 6], but the manifest says F32 [20, 6]"), "{text}");
}

#[test]
fn a_nan_in_a_shard_is_named_when_read() {
    let out = tempfile::tempdir().unwrap();
    let shard = write(out.path());
    let mut bytes = std::fs::read(&shard).unwrap();
    // Row 3 of the shard, dimension 4; the activations are the end of the file.
    let at = bytes.len() - 4 * (20 * WIDTH) + 4 * (3 * WIDTH + 4);
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&shard, bytes).unwrap();
    let acts = Store::open(out.path()).unwrap().hook(point(HOOK)).unwrap();
    let mut two = Array2::zeros((2, WIDTH));
    acts.gather(&[22, 24], two.view_mut()).unwrap();
    for error in [acts.rows(22, two.view_mut()), acts.gather(&[0, 23], two.view_mut())] {
        let error = error.unwrap_err();
        assert!(
            matches!(&error, ActivationError::NonFinite { row: 3, dimension: 4, file, .. } if *file == shard),
            "{error}"
        );
    }
}

#[test]
fn a_manifest_cut_anywhere_is_named() {
    let out = tempfile::tempdir().unwrap();
    write(out.path());
    let path = out.path().join("manifest.json");
    let whole = std::fs::read(&path).unwrap();
    // Without the newline at its end it is still whole.
    for length in 0..whole.len() - 1 {
        std::fs::write(&path, &whole[..length]).unwrap();
        let text = Store::open(out.path()).unwrap_err().to_string();
        assert!(text.contains("manifest.json: not valid JSON"), "{text}");
    }
    std::fs::remove_file(&path).unwrap();
    let text = Store::open(out.path()).unwrap_err().to_string();
    assert!(text.contains("not an activation store"), "{text}");
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let out = tempfile::tempdir().unwrap();
    write(out.path());
    let path = out.path().join("manifest.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    for (from, to, part) in [
        ("\"version\": 1", "\"version\": 2", "layout version 2"),
        ("monosem-activations", "other", "expected \"format\""),
        ("\"rows\": 56", "\"rows\": 57", "rows in shards of 20"),
        ("\"rows\": 56", "\"rows\": 0", "must not be empty"),
        ("\"rows\": 56", "\"rows\": 18446744073709551615", "impossible"),
        ("\"rows\": 56", "\"rows\": -1", "invalid value"),
        ("\"rows_per_shard\": 20", "\"rows_per_shard\": 18446744073709551615", "make 1 shards"),
        ("\"width\": 6", "\"width\": 0", "impossible"),
        ("activations-00001", "../../../etc/passwd", "called like"),
        ("\"f32\"", "\"f64\"", "bf16"),
        ("\"dtype\"", "\"type\"", "unknown field `type`"),
        ("\"position\"", "\"place\"", "token_ids, document, position"),
        ("hook_resid_post\",", "hook_q\",", "not a hook point"),
    ] {
        assert!(whole.contains(from), "{from}");
        std::fs::write(&path, whole.replacen(from, to, 1)).unwrap();
        let text = Store::open(out.path()).unwrap_err().to_string();
        assert!(text.contains(part) && text.contains("manifest.json"), "{from} -> {to}: {text}");
    }
    let mut short: serde_json::Value = serde_json::from_str(&whole).unwrap();
    short["hooks"][1]["shards"].as_array_mut().unwrap().pop();
    std::fs::write(&path, short.to_string()).unwrap();
    let text = Store::open(out.path()).unwrap_err().to_string();
    assert!(text.contains("lists shards for 40 of its 56 rows"), "{text}");
    // Only the shards can tell that the width is another.
    std::fs::write(&path, whole.replace("\"width\": 6", "\"width\": 7")).unwrap();
    let text = read(out.path()).unwrap_err().to_string();
    assert!(text.contains("`activations` is F32 [20, 6], but the manifest says F32 [20, 7]"), "{text}");
}

#[test]
fn an_unknown_hook_lists_those_there_are() {
    let out = tempfile::tempdir().unwrap();
    write(out.path());
    let text = Store::open(out.path()).unwrap().hook(point("blocks.2.hook_resid_post")).unwrap_err().to_string();
    assert!(text.contains("it has blocks.0.hook_resid_post, blocks.1.hook_resid_pre"), "{text}");
}

#[test]
#[should_panic(expected = "rows 50..60 of a store of 56 rows")]
fn rows_beyond_the_last_are_a_callers_mistake() {
    let out = tempfile::tempdir().unwrap();
    write(out.path());
    let acts = Store::open(out.path()).unwrap().hook(point(HOOK)).unwrap();
    let _ = acts.rows(50, Array2::zeros((10, WIDTH)).view_mut());
}
