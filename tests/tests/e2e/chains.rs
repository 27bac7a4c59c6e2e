//! Plugins that bring matches and targets for filter chains.

use std::time::Duration;

use collectd_live_tests::{eventually, Builder, Daemon, Variant};

const SOON: Duration = Duration::from_secs(20);

/// Sets the plugin instance of what `uptime` reads.
const CHAINS: &str = "AutoLoadPlugin true\n\
    <Chain \"PreCache\">\n\
    <Rule \"uptime\">\n\
    <Match \"regex\">\nPlugin \"^uptime$\"\n</Match>\n\
    <Target \"set\">\nPluginInstance \"marked\"\n</Target>\n\
    </Rule>\n\
    <Target \"scale\">\nFactor 1\n</Target>\n\
    </Chain>";

fn daemon() -> Builder {
    Daemon::builder(Variant::Patched)
        .available("match_regex")
        .available("target_set")
        .available("target_scale")
}

/// Proves that a plugin stays while a chain uses one of its matches or targets,
/// in a rule or by default, that the refusal and LISTPLUGINS name the chain, and
/// that the chain works on.
#[test]
fn what_a_chain_uses_cannot_be_unloaded() {
    let daemon = daemon().option(CHAINS).load_plugin("uptime").start();
    let uses = "filter chain \"PreCache\" uses its";
    for (plugin, what) in [
        ("match_regex", "match `regex'"),
        ("target_set", "target `set'"),
        ("target_scale", "target `scale'"),
    ] {
        let part = format!("{uses} {what}");
        daemon.unload(plugin).expect_refused(&[plugin, &part]);
        daemon.reload(plugin, &[]).expect_refused(&[plugin, &part]);
        let listed = daemon.assert_state(plugin, "READY");
        assert_eq!(listed.field("unloadable"), "no", "{listed:?}");
        assert_eq!(listed.field("reason"), part, "{listed:?}");
    }
    eventually("a value that the chain has marked", SOON, || {
        daemon.getval("uptime-marked/uptime")
    });
    daemon.stop();
}

/// Proves that a plugin whose match or target no chain uses can go, and that what
/// it has registered goes with it: it can be registered again.
#[test]
fn what_no_chain_uses_can_be_unloaded() {
    let daemon = daemon().load_plugin("match_regex").start();
    for _ in 0..2 {
        daemon.unload("match_regex").expect_ok();
        daemon.assert_gone("match_regex");
        daemon.load("match_regex", &[]).expect_ok();
        daemon.load("target_set", &[]).expect_ok();
        daemon.unload("target_set").expect_ok();
        daemon.assert_gone("target_set");
    }
    assert!(!daemon.log().contains("already"), "{}", daemon.log());
    daemon.stop();
}

/// Proves that a name that is taken stays with its owner, whoever goes first.
#[test]
fn a_match_keeps_its_name_while_it_is_registered() {
    let daemon = daemon()
        .load_plugin("match_regex")
        .available("othermatch")
        .start();
    let already = "[error] Filter subsystem: There is a match \"regex\" already";
    daemon.load("othermatch", &[]).expect_ok();
    daemon.wait_for_log(already);
    daemon.unload("othermatch").expect_ok();
    daemon.unload("match_regex").expect_ok();
    daemon.load("othermatch", &[]).expect_ok();
    daemon.unload("othermatch").expect_ok();
    daemon.load("match_regex", &[]).expect_ok();
    assert_eq!(daemon.log().matches(already).count(), 1, "{}", daemon.log());
    daemon.stop();
}
