//! Hashes of the code that makes results, taken when the program was built.

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// The hash of a workspace crate (with what it depends on in the workspace) or of one file of `nodes/`.
///
/// # Panics
/// If this program was built in a workspace that has no such crate or file: a mistake in a node.
#[must_use]
pub(crate) fn hash(name: &str) -> String {
    if HASHES.is_empty() {
        return VERSION_HASH.into();
    }
    let found = HASHES.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no source named {name:?}")).1.into()
}
