//! What C calls, and safe wrappers of what C declares.
//!
//! The contract of the exported functions is `c-shim/README.md`.

#![allow(unsafe_code, reason = "this module and `sys` are the boundary to C")]

mod change;
mod collectd;
mod config;
#[cfg(feature = "fuzz")]
mod fuzz;
mod guard;
pub(crate) mod lua;
mod monitor;
pub(crate) mod os;
mod status;
mod values;

#[cfg(feature = "fuzz")]
pub use fuzz::cl_fuzz;
pub use monitor::*;
pub use status::cl_status;

#[cfg(panic = "abort")]
compile_error!("a panic has to unwind as far as the boundary to C, where it is caught");
