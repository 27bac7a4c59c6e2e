//! What collectd's headers declare, as bindgen wrote it down.
//!
//! `bindings.rs` is committed, so that building needs neither the headers nor libclang. The test `generated`
//! compares it with the headers of the daemon that is built here, and writes it anew when asked to.

#![allow(unsafe_code, reason = "this module and `ffi` are the boundary to C")]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "generated; the headers say what it means"
)]
#![allow(
    non_camel_case_types,
    non_upper_case_globals,
    reason = "generated; the names are C's"
)]
#![allow(
    dead_code,
    reason = "generated; the list of what is bound is in the test `generated`"
)]

include!("bindings.rs");
