//! `collectd-live hold` and `collectd-live release`.

use std::time::{Duration, SystemTime};

use clap::Args;
use collectd_live::protocol::{hold_to_json, TaskId, MAX_HOLD};
use collectd_live::sender::{Limits, Order};
use collectd_live::trust::Kind;

use crate::broker::{filter, seconds, topic, Broker};
use crate::generate::statuses;
use crate::hosts::Hosts;
use crate::output::{complain, Status};
use crate::send_command::{conclude, to_fleet, to_one};
use crate::signing::Signing;

/// Who is told, and how.
#[derive(Args)]
struct Common {
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    signing: Signing,
    /// The topic that the host takes commands from
    #[arg(short, long, value_parser = topic)]
    topic: String,
    /// The topic that the host sends results to
    #[arg(short, long, value_parser = filter)]
    result_topic: Option<String>,
    /// How many seconds to wait for a result
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    timeout: Duration,
    /// Print nothing but the result, as JSON in one line. With hosts, a line for each, which has the result in it
    #[arg(long)]
    json: bool,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Stops recovery actions of hosts until they are released, or the time is over.
///
/// Commands that run are not ended. Those that wait for their turn, and those that come, are refused. It must be
/// signed with a key that may do so.
#[derive(Args)]
#[command(disable_help_flag = true, after_help = statuses())]
pub(crate) struct Hold {
    /// For how many seconds
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = hold_seconds)]
    seconds: u64,
    /// Why, for whoever is refused
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    common: Common,
}

fn hold_seconds(text: &str) -> Result<u64, String> {
    let seconds = text.parse().ok();
    seconds
        .filter(|seconds| (1..=MAX_HOLD).contains(seconds))
        .ok_or_else(|| format!("must be a whole number of seconds from 1 to {MAX_HOLD}"))
}

/// Ends a hold.
///
/// It ends the hold of the same target: that of a group is ended for the group.
#[derive(Args)]
#[command(disable_help_flag = true, after_help = statuses())]
pub(crate) struct Release {
    #[command(flatten)]
    common: Common,
}

/// What the manual adds.
pub(crate) const EXAMPLES: &str = "\
Two hours without recoveries on one host:

    collectd-live hold -h broker.example.com -t commands/%h -r results/%h --key alice.key --seconds 7200 --reason 'new disks' web1

The same for all hosts of a group that are online:

    collectd-live hold -h broker.example.com -t commands/%h -r results/%h --key alice.key --for group:web --discover status/%h
";

impl Hold {
    pub(crate) fn run(self) -> Status {
        let (seconds, reason) = (self.seconds, self.reason);
        self.common
            .run(&mut |task| hold_to_json(task, Some((seconds, &reason)), SystemTime::now()))
    }
}

impl Release {
    pub(crate) fn run(self) -> Status {
        self.common
            .run(&mut |task| hold_to_json(task, None, SystemTime::now()))
    }
}

impl Common {
    fn run(self, message: &mut dyn FnMut(&TaskId) -> String) -> Status {
        let fleet = self.hosts.are_given();
        let prepared = self.broker.remote().and_then(|remote| {
            if !self.signing.has_key() {
                return Err("--key is needed: a hold must be signed".to_owned());
            }
            Ok((remote, self.signing.read(Kind::Hold, fleet)?))
        });
        let (remote, signing) = match prepared {
            Ok(prepared) => prepared,
            Err(what) => {
                complain(&what);
                return Status::Usage;
            }
        };
        let (topic, results) = (&self.topic, self.result_topic.as_deref());
        let targets = match self.hosts.targets(&remote, topic, results, self.timeout) {
            Ok(targets) => targets,
            Err(problem) => {
                let (what, status) = problem.report();
                complain(what);
                return status;
            }
        };
        let order = Order {
            remote,
            targets,
            limits: Limits::none(self.timeout),
            rounds: 1,
            pause: Duration::ZERO,
            signing,
        };
        conclude(match fleet {
            true => to_fleet(&order, message, self.json),
            false => to_one(&order, message, self.json),
        })
    }
}
