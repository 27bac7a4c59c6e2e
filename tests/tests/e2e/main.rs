//! End-to-end tests against real daemons, each in a directory of its own.

mod harness;
