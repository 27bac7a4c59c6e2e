//! The short form of `ci/storm`: see there, and the module `storm` of the
//! harness.

use std::time::{SystemTime, UNIX_EPOCH};

use collectd_live_tests::{Storm, Variant};

/// The storm prints its seed: `ci/storm --seed=` makes the same choices again.
fn any_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970");
    u64::from(now.subsec_nanos())
}

fn storm(variant: Variant, operations: u32, abrupt: bool) {
    Storm {
        variant,
        valgrind: false,
        operations,
        seed: any_seed(),
        abrupt,
    }
    .run();
}

/// Proves that nothing is lost, leaked or used after it is gone, whatever comes
/// and goes under load.
#[test]
fn a_storm_finds_nothing_with_address_sanitizer() {
    storm(Variant::Asan, 300, /* abrupt: */ false);
}

/// Proves that no two threads meet without a lock or an atomic between them.
#[test]
fn a_storm_finds_nothing_with_thread_sanitizer() {
    storm(Variant::Tsan, 300, /* abrupt: */ false);
}

/// Proves that a daemon ends well in the middle of everything.
#[test]
fn an_end_in_a_storm_is_orderly_with_address_sanitizer() {
    storm(Variant::Asan, 50, /* abrupt: */ true);
}

/// The same, for what threads do to each other then.
#[test]
fn an_end_in_a_storm_is_orderly_with_thread_sanitizer() {
    storm(Variant::Tsan, 50, /* abrupt: */ true);
}
