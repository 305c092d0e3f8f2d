//! Stores as their users see them.

mod capture;
mod formula;
mod import;
mod store;
