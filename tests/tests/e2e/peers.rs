//! Who may do what on the control socket.

use collectd_live_tests::{may_change_user, skip, Daemon, Variant};

/// Proves that a user who can open the socket but is neither root nor the
/// daemon's may see names and states, and nothing else; and may change nothing.
#[test]
fn an_unprivileged_user_may_list_names_and_states_only() {
    if !may_change_user() {
        skip(
            "an_unprivileged_user_may_list_names_and_states_only",
            "root, to become another user",
        );
        return;
    }
    let daemon = Daemon::builder(Variant::Patched)
        .open_to_all_users()
        .load_plugin("memory")
        .available("cpu")
        .start();

    let listing = daemon.collectdctl_as_nobody(&["listplugins"]);
    assert_eq!(listing.code, Some(0), "{listing:?}");
    let lines: Vec<Vec<&str>> = listing
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let (titles, rows) = lines.split_first().expect("a title");
    assert_eq!(*titles, ["NAME", "STATE"], "not just names and states");
    let expected = ["logfile", "memory", "unixsock"].map(|name| vec![name, "READY"]);
    assert_eq!(rows, expected, "not just names and states");

    for args in [
        ["loadplugin", "cpu"],
        ["unloadplugin", "memory"],
        ["reloadplugin", "memory"],
    ] {
        let refused = daemon.collectdctl_as_nobody(&args);
        assert_ne!(refused.code, Some(0), "{refused:?}");
        assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
    }
    daemon.assert_gone("cpu");
    let memory = daemon.assert_state("memory", "READY");
    assert_eq!(memory.field("generation"), "1");
    daemon.wait_for_value_of("memory");
    daemon.stop();
}
