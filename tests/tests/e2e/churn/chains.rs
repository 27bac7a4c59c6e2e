//! Plugins that bring matches and targets.

use super::{assert_no_trace, FEW};

/// Proves that a match and a target can come and go for ever.
#[test]
fn match_regex_and_target_set_leave_no_trace() {
    const PLUGINS: &[&str] = &["match_regex", "target_set"];
    assert_no_trace(FEW, PLUGINS, |daemon| {
        for plugin in PLUGINS {
            daemon.load(plugin, &[]).expect_ok();
        }
        for plugin in PLUGINS {
            daemon.unload(plugin).expect_ok();
        }
    });
}
