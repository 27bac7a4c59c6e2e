//! `collectd-live list`.

use std::time::{Duration, SystemTime};

use clap::Args;
use collectd_live::clock::iso8601;
use collectd_live::sender::{discover, Found, Pattern};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::broker::{seconds, Broker};
use crate::generate::statuses;
use crate::hosts::pattern;
use crate::output::{one_line, print, table, Problem, Status};

/// Lists the hosts of which the monitor has left its status with the broker.
///
/// That is what the setting StatusTopic makes it do: it says that it is online when it connects, and offline
/// when it leaves; if it dies, the broker says so. Ages are by the clock of the host.
#[derive(Args)]
#[command(disable_help_flag = true, after_help = statuses())]
pub(crate) struct List {
    #[command(flatten)]
    broker: Broker,
    /// The topic that hosts leave their status on, with %h where the name of a host is
    #[arg(short, long, value_name = "TOPIC", default_value = "status/%h", value_parser = pattern)]
    topic: Pattern,
    /// The list is complete when no status has come for so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    quiet: Duration,
    /// How many seconds to wait for the broker
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// Print JSON, a line for each host
    #[arg(long)]
    json: bool,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// What the manual adds.
pub(crate) const EXAMPLES: &str = "\
See which hosts are there:

    collectd-live list -h broker.example.com -t status/%h

The same for a program:

    collectd-live list -h broker.example.com -t status/%h --json
";

/// A host for programs.
#[derive(Serialize)]
struct Line<'a> {
    host: &'a str,
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Box<RawValue>>,
}

impl List {
    pub(crate) fn run(self) -> Result<Status, Problem> {
        let remote = self.broker.remote()?;
        let found = discover(&remote, &self.topic, self.quiet, self.timeout)?;
        let now = SystemTime::now();
        if self.json {
            found.iter().for_each(|found| print(&line(found, now)));
        } else if !found.is_empty() {
            let header = [
                "HOST", "STATE", "SINCE", "AGE", "VERSION", "STARTS", "REASON",
            ];
            let mut lines = vec![header.map(str::to_owned)];
            lines.extend(found.iter().map(|found| row(found, now)));
            print(&table(&lines));
        }
        if found.is_empty() {
            return Err(Problem::Nobody("no host has left its status".to_owned()));
        }
        Ok(Status::Success)
    }
}

/// How long ago that was. A host whose clock is ahead is of age 0.
fn age(found: &Found, now: SystemTime) -> Option<Duration> {
    Some(now.duration_since(found.since?).unwrap_or_default())
}

fn line(found: &Found, now: SystemTime) -> String {
    let line = Line {
        host: &found.host,
        state: found.state.name(),
        age: age(found, now).map(|age| age.as_secs()),
        status: RawValue::from_string(one_line(&found.json)).ok(),
    };
    // Strings and numbers can always be written.
    serde_json::to_string(&line).unwrap_or_default()
}

fn row(found: &Found, now: SystemTime) -> [String; 7] {
    [
        found.host.clone(),
        found.state.name().to_owned(),
        found.since.map(iso8601).unwrap_or_default(),
        age(found, now).map(rough).unwrap_or_default(),
        found.version.clone().unwrap_or_default(),
        found
            .starts
            .map(|starts| starts.to_string())
            .unwrap_or_default(),
        found.reason.clone().unwrap_or_default(),
    ]
}

/// The two largest units.
fn rough(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days}d{}h", hours % 24),
        () if hours > 0 => format!("{hours}h{}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m{}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m1s"),
            (7260, "2h1m"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(rough(Duration::from_secs(seconds)), text);
        }
    }
}
