//! Plugins that look at values, and what plugins leave behind in the daemon when
//! they dispatch and write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use collectd_live_tests::{eventually, Daemon};

use super::{assert_no_trace, configure_in_part, DEADLINE, FEW};
use crate::values::has_line;

/// Waits for a line with all of `parts` from byte `start` of the log on.
#[track_caller]
fn wait_for_line(daemon: &Daemon, start: usize, parts: &[&str]) {
    eventually(
        &format!("a line with {parts:?} in the log"),
        DEADLINE,
        || has_line(&daemon.log()[start..], parts).then_some(()),
    );
}

/// A block for `threshold`, with more than one threshold for a value.
fn thresholds(max: u32) -> String {
    format!(
        "<Plugin \"threshold\">\n\
         <Plugin \"churn\">\n<Type \"gauge\">\nWarningMax {max}\n</Type>\n\
         <Type \"gauge\">\nFailureMax 1000\nHits 0\n</Type>\n</Plugin>\n\
         <Host \"elsewhere\">\n<Plugin \"churn\">\nInstance \"i\"\n\
         <Type \"gauge\">\nInstance \"x\"\nDataSource \"value\"\nWarningMin 1\n</Type>\n\
         </Plugin>\n</Host>\n\
         <Type \"counter\">\nFailureMin 0\nInvert true\n</Type>\n</Plugin>"
    )
}

/// Proves that `threshold` can come, be given other thresholds and go for ever,
/// with values that are checked.
#[test]
fn threshold_leaves_no_trace() {
    assert_no_trace(FEW, &["threshold"], |daemon| {
        let put = |value: f64| daemon.putval("churn/gauge-x", 10.0, value).expect_ok();
        let ask = format!("GETTHRESHOLD {}", daemon.identifier("churn/gauge-x"));
        let start = daemon.log().len();

        daemon
            .load("threshold", &[("config", &thresholds(5))])
            .expect_ok();
        put(7.0);
        wait_for_line(daemon, start, &["Notification", "threshold of 5.0"]);
        daemon
            .reload("threshold", &[("config", &thresholds(8))])
            .expect_ok();
        put(7.0);
        wait_for_line(daemon, start, &["Notification", "within range again"]);
        daemon.ctl(&ask).expect_ok();
        daemon.unload("threshold").expect_ok();
        daemon.ctl(&ask).expect_refused(&["No threshold found"]);

        let part = thresholds(5).replace("Invert true", "Nosuch true");
        configure_in_part(daemon, "threshold", &part);
    });
}

/// Proves that `aggregation` can come and go for ever, with values that it
/// aggregates, and with aggregations that it refuses.
#[test]
fn aggregation_leaves_no_trace() {
    const CALCULATE: &str = "CalculateNum true\nCalculateSum true\nCalculateAverage true\n\
         CalculateMinimum true\nCalculateMaximum true\nCalculateStddev true";
    let config = format!(
        "<Aggregation>\nPlugin \"churn\"\nType \"gauge\"\nGroupBy \"Host\"\n\
         SetHost \"testhost\"\nSetPlugin \"aggregated\"\n\
         SetPluginInstance \"%{{aggregation}}\"\nSetTypeInstance \"all\"\n{CALCULATE}\n\
         </Aggregation>\n\
         <Aggregation>\nPlugin \"churn\"\nType \"gauge\"\nGroupBy \"TypeInstance\"\n\
         {CALCULATE}\n</Aggregation>\n\
         <Aggregation>\nHost \"/^a/\"\nPlugin \"/(/\"\nType \"gauge\"\n{CALCULATE}\n\
         </Aggregation>\n\
         <Aggregation>\nSetHost \"refused\"\nType \"gauge\"\n</Aggregation>\n\
         <Aggregation>\nSetHost \"refused\"\nSetPlugin 1\n</Aggregation>"
    );
    assert_no_trace(FEW, &["aggregation"], |daemon| {
        // LISTVAL rounds times to milliseconds.
        let start = SystemTime::now() + Duration::from_millis(1);
        let reply = daemon
            .load("aggregation", &[("interval", "0.05"), ("config", &config)])
            .expect_ok();
        assert!(
            reply.text.contains("Compiling regular expression \"(\""),
            "the invalid expression is not reported: {}",
            reply.text
        );
        let wanted = [
            "aggregated-sum/gauge-all",
            "aggregated-stddev/gauge-all",
            "aggregation-churn-max/gauge-y",
        ];
        // Only what came since the last time is aggregated.
        eventually("what has been aggregated", DEADLINE, || {
            for instance in ["x", "y"] {
                let value = format!("churn/gauge-{instance}");
                daemon.putval(&value, 1.0, 1.0).expect_ok();
            }
            let listed = daemon.listval();
            let is_new = |identifier: &&str| {
                listed
                    .get(*identifier)
                    .is_some_and(|time| UNIX_EPOCH + Duration::from_secs_f64(*time) > start)
            };
            wanted.iter().all(is_new).then_some(())
        });
        daemon.unload("aggregation").expect_ok();
    });
}

/// Proves that types which plugins register and replace do not add up.
#[test]
fn data_sets_leave_no_trace() {
    assert_no_trace(FEW, &["dataset", "feeder"], |daemon| {
        let start = SystemTime::now();
        daemon.load("dataset", &[("interval", "0.01")]).expect_ok();
        daemon
            .load(
                "feeder",
                &[("interval", "0.01"), ("config", "OwnType true")],
            )
            .expect_ok();
        daemon.wait_for_value_since("dataset", start);
        daemon.wait_for_value_since("feeder", start);
        daemon.unload("dataset").expect_ok();
        daemon.unload("feeder").expect_ok();
    });
}

/// Proves that a writer can be reloaded for ever while there are values that it
/// misses.
#[test]
fn missed_values_leave_no_trace() {
    assert_no_trace(FEW, &["othersink", "feeder"], |daemon| {
        let start = SystemTime::now();
        let config = format!(
            "File \"{}\"\nFrom \"feeder\"",
            daemon.path("sequence").display()
        );
        daemon.load("feeder", &[("interval", "0.001")]).expect_ok();
        daemon.load("othersink", &[("config", &config)]).expect_ok();
        daemon.wait_for_value_since("feeder", start);
        daemon
            .reload("othersink", &[("config", &config)])
            .expect_ok();
        daemon
            .reload("othersink", &[("config", "File \"/nosuch/file\"")])
            .expect_refused(&["old configuration is in force"]);
        daemon.unload("othersink").expect_ok();
        daemon.unload("feeder").expect_ok();
    });
}
