//! Any experiment without a section of its own: a table, and features if there are any.

use super::{Context, Section, features};
use crate::ReportError;
use crate::row::ResultRow;
use crate::table;

pub(super) fn section(context: &Context<'_>, experiment: &str, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    if !rows.is_empty() {
        section.html.push_str(&table::wide("All measurements; 95 % intervals in brackets.", rows, true));
    }
    features::browser(&mut section, experiment, &context.features_of(experiment));
    Ok(section)
}
