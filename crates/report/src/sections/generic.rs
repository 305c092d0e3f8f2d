//! Any experiment without a section of its own: a table.

use super::{Context, Section};
use crate::ReportError;
use crate::row::ResultRow;
use crate::table;

pub(super) fn section(_: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.html.push_str(&table::wide("All measurements; 95 % intervals in brackets.", rows, true));
    Ok(section)
}
