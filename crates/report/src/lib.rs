#![doc = include_str!("../README.md")]

mod case_study;
mod chart;
mod circuit;
mod entries;
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

pub use case_study::{CaseStudy, LogitEffect, TokenCounts, read_case_studies, write_case_studies};
pub use circuit::{Circuit, CircuitEdge, CircuitNode, read_circuits, write_circuits};
pub use error::ReportError;
pub use feature::{FeatureExample, Fragment, read_features, write_features};
pub use page::{Extras, Figure, Rendered, render};
pub use provenance::{NodeInfo, Provenance};
pub use row::{ResultRow, read_results, write_results};
