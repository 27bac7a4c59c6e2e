//! The monitor of collectd-live.
//!
//! Inside the daemon this library is the plugin `monitor`: it takes recovery commands from an MQTT broker,
//! looks them up in a list that only the host's administrator writes, runs them through a helper process
//! and sends back what came of them. The C shim in `c-shim/` connects it to collectd.
//!
//! Everything that decides is free of `unsafe` and sees the daemon through [`daemon::Daemon`], so that it
//! can be tested without one. Only `ffi` (what C calls) and `sys` (what C declares) hold unsafe code.

pub mod arbiter;
pub mod boundary;
pub mod clock;
pub mod daemon;
pub mod engine;
pub mod fake;
pub mod ffi;
pub mod files;
#[doc(hidden)]
pub mod fuzz;
mod json;
pub mod logging;
pub mod metrics;
pub mod migrate;
pub mod monitor;
pub mod protocol;
pub mod remote;
pub mod rules;
pub mod runner;
pub mod secret;
pub mod sender;
pub mod settings;
mod store;
mod sys;
mod threads;
pub mod trust;
