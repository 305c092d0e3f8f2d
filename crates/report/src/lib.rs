#![doc = include_str!("../README.md")]

mod chart;
mod error;
mod escape;
mod feature;
mod number;
mod page;
mod palette;
mod provenance;
mod row;
mod sections;
mod table;

pub use error::ReportError;
pub use feature::{FeatureExample, Fragment, read_features, write_features};
pub use page::{Figure, Rendered, render};
pub use provenance::{NodeInfo, Provenance};
pub use row::{ResultRow, read_results, write_results};
