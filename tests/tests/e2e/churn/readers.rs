//! Plugins that read: their lists, handles and files.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{SystemTime, UNIX_EPOCH};

use collectd_live_tests::{eventually, skip, Daemon};
use rustix::fs::statvfs;

use super::{assert_no_trace, configure_in_part, load_read_unload, DEADLINE, FEW};

/// By how much LISTVAL's times, which are rounded to milliseconds, may be ahead.
const LISTVAL_ROUNDING: f64 = 0.0005;

/// Waits until all these values have been read after `since`.
#[track_caller]
pub(super) fn wait_for_values(daemon: &Daemon, since: SystemTime, identifiers: &[&str]) {
    let since = since
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_secs_f64();
    eventually(&format!("new values of {identifiers:?}"), DEADLINE, || {
        let listed = daemon.listval();
        identifiers
            .iter()
            .all(|identifier| {
                listed
                    .get(*identifier)
                    .is_some_and(|time| *time > since + LISTVAL_ROUNDING)
            })
            .then_some(())
    });
}

/// Loads a reader with a configuration, waits for all these values and unloads
/// it.
#[track_caller]
fn configure_read_unload(daemon: &Daemon, plugin: &str, config: &str, identifiers: &[&str]) {
    let start = SystemTime::now();
    daemon
        .load(plugin, &[("interval", "0.01"), ("config", config)])
        .expect_ok();
    wait_for_values(daemon, start, identifiers);
    daemon.unload(plugin).expect_ok();
}

/// Proves that `interface` can come and go for ever, with a list of interfaces.
#[test]
fn interface_leaves_no_trace() {
    const LIST: &str = "Interface \"nosuch\"\nInterface \"/^(veth|docker)/\"";
    assert_no_trace(FEW, &["interface"], |daemon| {
        configure_read_unload(
            daemon,
            "interface",
            &format!("{LIST}\nIgnoreSelected true\nReportInactive true"),
            &["interface-lo/if_octets"],
        );
        configure_in_part(daemon, "interface", &format!("{LIST}\nNosuch true"));
    });
}

/// Proves that `swap` can come and go for ever.
#[test]
fn swap_leaves_no_trace() {
    assert_no_trace(FEW, &["swap"], |daemon| {
        configure_read_unload(
            daemon,
            "swap",
            "ReportBytes true\nReportIO true\nValuesPercentage true",
            &["swap/swap-used", "swap/percent-used", "swap/swap_io-in"],
        );
    });
}

/// Proves that `users` can come and go for ever.
#[test]
fn users_leaves_no_trace() {
    assert_no_trace(FEW, &["users"], |daemon| load_read_unload(daemon, "users"));
}

/// Proves that `contextswitch` can come and go for ever.
#[test]
fn contextswitch_leaves_no_trace() {
    assert_no_trace(FEW, &["contextswitch"], |daemon| {
        load_read_unload(daemon, "contextswitch");
    });
}

/// Proves that `vmem` can come and go for ever.
#[test]
fn vmem_leaves_no_trace() {
    assert_no_trace(FEW, &["vmem"], |daemon| {
        configure_read_unload(
            daemon,
            "vmem",
            "Verbose true",
            &["vmem/vmpage_io-memory", "vmem/vmpage_action-free"],
        );
    });
}

/// A file system that `df` reports, as the plugin names it: the root's where it
/// is in the mount table, which it is not in a chroot.
fn a_mount_point() -> Option<String> {
    // The table that the plugin reads. A system without an init may have none.
    let table = fs::read_to_string("/etc/mtab").ok()?;
    let points: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        // Anything else is not written as it is.
        .filter(|point| !point.contains('\\'))
        .filter(|point| statvfs(*point).is_ok_and(|status| status.f_blocks > 0))
        .collect();
    if points.contains(&"/") {
        return Some(String::from("root"));
    }
    let point = points.first()?;
    Some(point.trim_start_matches('/').replace('/', "-"))
}

/// Proves that `df` can come and go for ever, with all its lists.
#[test]
fn df_leaves_no_trace() {
    const LISTS: &str = "Device \"/^nosuch/\"\nDevice \"nosuch\"\n\
         MountPoint \"/^.nosuch/\"\nMountPoint \"/nosuch\"\n\
         FSType \"/^(proc|sysfs)$/\"\nFSType \"nosuch\"";
    let Some(instance) = a_mount_point() else {
        return skip(
            "df_leaves_no_trace",
            "a mounted file system that has blocks",
        );
    };
    let values = [
        format!("df-{instance}/df_complex-used"),
        format!("df-{instance}/percent_bytes-used"),
    ];
    assert_no_trace(FEW, &["df"], |daemon| {
        configure_read_unload(
            daemon,
            "df",
            &format!(
                "{LISTS}\nIgnoreSelected true\nReportInodes true\nValuesPercentage true\n\
                 LogOnce true"
            ),
            &[&values[0], &values[1]],
        );
        configure_in_part(daemon, "df", &format!("{LISTS}\nMountPoint \"\""));
    });
}

/// Proves that `irq` can come and go for ever, with a list of interrupts.
#[test]
fn irq_leaves_no_trace() {
    const LIST: &str = "Irq \"nosuch\"\nIrq \"/^nosuch/\"";
    assert_no_trace(FEW, &["irq"], |daemon| {
        let start = SystemTime::now();
        let config = format!("{LIST}\nIgnoreSelected true");
        daemon
            .load("irq", &[("interval", "0.01"), ("config", &config)])
            .expect_ok();
        daemon.wait_for_value_since("irq", start);
        daemon.unload("irq").expect_ok();
        configure_in_part(daemon, "irq", &format!("{LIST}\nNosuch true"));
    });
}

/// Proves that `tail` can come and go for ever, with matches of many kinds.
#[test]
fn tail_leaves_no_trace() {
    const MATCHES: &[(&str, &str)] = &[
        ("v=([0-9]+)", "DSType \"GaugePersist\"\nInstance \"last\""),
        ("v=", "DSType \"GaugeInc\"\nInstance \"lines\""),
        (
            "v=([0-9]+)",
            "ExcludeRegex \"v=7\"\nDSType \"GaugeAverage\"\nInstance \"average\"",
        ),
        (
            "v=([0-9]+)",
            "<DSType \"Distribution\">\nPercentile 50\nPercentile 99\nBucket 0 100\n\
             BucketType \"gauge\"\n</DSType>\nInstance \"spread\"",
        ),
        // Neither is used, but each allocates before it is refused.
        (
            "v=([0-9]+)",
            "ExcludeRegex \"(\"\n<DSType \"Distribution\">\nPercentile 50\n</DSType>",
        ),
        ("(", "DSType \"GaugeInc\""),
    ];
    let matches: String = MATCHES
        .iter()
        .map(|(regex, rest)| {
            format!("<Match>\nRegex \"{regex}\"\nType \"gauge\"\n{rest}\n</Match>\n")
        })
        .collect();
    let number = Cell::new(0);
    assert_no_trace(FEW, &["tail"], |daemon| {
        number.set(number.get() + 1);
        let path = daemon.path("tailed");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .expect("a file for tail");
        let path = path.display();
        let config = format!(
            "<File \"{path}\">\nPlugin \"tail\"\nInstance \"churn\"\nInterval 0.01\n{matches}</File>\n\
             <File \"{path}\">\nInterval 0.01\n\
             <Match>\nRegex \"v=\"\nDSType \"DeriveInc\"\nType \"derive\"\n</Match>\n</File>\n\
             <File \"{path}\">\n</File>"
        );

        let start = SystemTime::now();
        daemon.load("tail", &[("config", &config)]).expect_ok();
        // Only what comes after the file has been opened is read.
        eventually("the number in the last line", DEADLINE, || {
            writeln!(file, "v={}", number.get()).expect("writing for tail");
            let last = daemon.getval("tail-churn/gauge-last")?;
            (last == f64::from(number.get())).then_some(())
        });
        wait_for_values(
            daemon,
            start,
            &[
                "tail-churn/gauge-lines",
                "tail-churn/gauge-average",
                "tail-churn/gauge-spread-99",
                "tail/derive",
            ],
        );
        daemon.unload("tail").expect_ok();
    });
}

/// Proves that `tcpconns` can come and go for ever, with ports of its own
/// finding and of the configuration.
#[test]
fn tcpconns_leaves_no_trace() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port to look at");
    let port = listener.local_addr().expect("the port").port();
    let ports = format!("LocalPort {port}\nRemotePort {port}\nRemotePort 1");
    let config = format!("ListeningPorts true\nAllPortsSummary true\n{ports}");
    let local = format!("tcpconns-{port}-local/tcp_connections-LISTEN");
    let remote = format!("tcpconns-{port}-remote/tcp_connections-ESTABLISHED");
    assert_no_trace(FEW, &["tcpconns"], |daemon| {
        configure_read_unload(
            daemon,
            "tcpconns",
            &config,
            &[&local, &remote, "tcpconns-all/tcp_connections-LISTEN"],
        );
        configure_in_part(daemon, "tcpconns", &format!("{ports}\nLocalPort 0"));
    });
}

/// Whether the machine has a disk that has been used.
fn has_disk() -> bool {
    let Ok(disks) = fs::read_to_string("/proc/diskstats") else {
        return false;
    };
    disks.lines().any(|disk| {
        let fields: Vec<&str> = disk.split_whitespace().collect();
        fields.len() >= 14 && fields[3] != "0"
    })
}

/// Proves that `disk` can come and go for ever, with a list of disks.
#[test]
fn disk_leaves_no_trace() {
    const LIST: &str = "Disk \"nosuch\"\nDisk \"/^nosuch/\"\n\
         UdevNameAttr \"NOSUCH\"\nUdevNameAttr \"DM_NAME\"";
    if !has_disk() {
        skip("disk_leaves_no_trace", "a disk in /proc/diskstats");
        return;
    }
    assert_no_trace(FEW, &["disk"], |daemon| {
        let start = SystemTime::now();
        let config = format!("{LIST}\nIgnoreSelected true");
        daemon
            .load("disk", &[("interval", "0.01"), ("config", &config)])
            .expect_ok();
        daemon.wait_for_value_since("disk", start);
        daemon.unload("disk").expect_ok();
        configure_in_part(daemon, "disk", &format!("{LIST}\nNosuch true"));
    });
}

/// Proves that `processes` can come and go for ever, with names and regular
/// expressions of processes.
#[test]
fn processes_leaves_no_trace() {
    assert_no_trace(FEW, &["processes"], |daemon| {
        let own = daemon.path("collectd.conf");
        let config = format!(
            "CollectContextSwitch true\nCollectFileDescriptor true\nCollectMemoryMaps true\n\
             CollectDelayAccounting true\n\
             <ProcessMatch \"daemon\" \"{}\">\nCollectMemoryMaps false\n</ProcessMatch>\n\
             ProcessMatch \"daemon\" \"twice\"\nProcessMatch \"invalid\" \"(\"\n\
             Process \"nosuch\"\nProcess \"collectd\"",
            own.display()
        );
        configure_read_unload(
            daemon,
            "processes",
            &config,
            &["processes/ps_state-running", "processes-daemon/ps_count"],
        );
        let count = daemon.getval("processes-daemon/ps_count");
        assert_eq!(count, Some(1.0), "the daemon itself is one process");
    });
}
