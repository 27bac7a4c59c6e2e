//! Plugins that fail again and again.

use std::cell::Cell;

use super::{assert_no_trace, FEW, MANY};
use crate::stuck::{get_stuck_and_return, FUNCTIONS};

/// Proves that a failed plugin can be configured again any number of times, by
/// loading and reloading it, whether that fails again or not, and that a failed
/// plugin that the daemon unloads by itself leaves nothing behind.
#[test]
fn a_plugin_that_fails_again_and_again_leaves_no_trace() {
    assert_no_trace(MANY, &["badconfig", "badinit"], |daemon| {
        for (plugin, bad, good) in [
            ("badconfig", "Number 1\nRefuse true", "Number 2"),
            ("badinit", "Fail true", "Fail false"),
        ] {
            let load = |config| daemon.load(plugin, &[("config", config)]);
            let reload = |config| daemon.reload(plugin, &[("config", config)]);
            load(bad).expect_refused(&["FAILED"]);
            load(bad).expect_refused(&["FAILED"]);
            reload(bad).expect_refused(&["still FAILED"]);
            reload(bad).expect_refused(&["still FAILED"]);
            reload(good).expect_ok();
            reload(bad).expect_refused(&["old configuration is in force again"]);
            daemon.unload(plugin).expect_ok();
            daemon
                .load(plugin, &[("config", bad), ("onfailure", "unload")])
                .expect_refused(&["is unloaded"]);
        }
    });
}

/// Proves that plugins can be stuck, and return, any number of times: what the
/// abandoned operations had is given back.
#[test]
fn a_plugin_that_is_stuck_again_and_again_leaves_no_trace() {
    let round = Cell::new(0);
    assert_no_trace(FEW, &["stuck"], |daemon| {
        round.set(round.get() + 1);
        get_stuck_and_return(daemon, FUNCTIONS[round.get() % FUNCTIONS.len()]);
    });
}
