//! Harness for the end-to-end tests: real daemons, each in a private directory
//! with its own control socket.
//!
//! A test builds a [`Daemon`] from a [`Variant`] of the build, talks to it over
//! its control socket, and looks at what came out: values, log lines, mappings.
//! Waiting is always for a condition ([`eventually`]); every deadline is scaled
//! by the variable `COLLECTD_LIVE_PATIENCE`. When a test fails while a daemon is
//! alive, the daemon's directory, log, standard error, last commands and
//! backtraces are printed.
//!
//! The helpers panic instead of returning errors: each message is written for
//! the person who reads a failed test.

mod address;
mod control;
mod daemon;
mod install;
mod plugins;
mod process;
mod report;
mod sequence;
mod skip;
mod storm;
mod wait;

pub use address::own_address;
pub use control::{Connection, PluginInfo, Reply};
pub use daemon::{Builder, Collectdctl, Daemon};
pub use install::{build_dir, Variant};
pub use process::Status;
pub use sequence::{Sequence, SequenceLog};
pub use skip::{may_change_user, skip};
pub use storm::{Calm, Outcome, Storm};
pub use wait::{eventually, patience};
