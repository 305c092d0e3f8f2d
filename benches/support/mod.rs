//! What several benchmarks share.

use std::path::PathBuf;

/// The model file: `MONOSEM_SMOLLM2_GGUF`, or where `cargo xtask test` puts it.
pub(crate) fn smollm2() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = folder("MONOSEM_CACHE").or_else(|| Some(folder("XDG_CACHE_HOME")?.join("monosem")));
    let cache = cache.or_else(|| Some(folder("HOME")?.join(".cache/monosem"))).unwrap_or_default();
    let cached = cache.join("assets/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = folder("MONOSEM_SMOLLM2_GGUF").unwrap_or(cached);
    assert!(path.exists(), "{} is not there: run `cargo xtask test`, which fetches it", path.display());
    path
}
