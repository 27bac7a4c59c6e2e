//! `collectd-live hold` and `collectd-live release`.

use std::time::SystemTime;

use clap::Args;
use collectd_live::protocol::{hold_to_json, MAX_HOLD};
use collectd_live::trust::Kind;

use crate::generate::statuses;
use crate::message::Message;
use crate::output::{Problem, Status};

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
    message: Message,
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
    message: Message,
}

/// What the manual adds.
pub(crate) const EXAMPLES: &str = "\
Two hours without recoveries on one host:

    collectd-live hold -h broker.example.com -t commands/%h -r results/%h --key alice.key --seconds 7200 --reason 'new disks' web1

The same for all hosts of a group that are online:

    collectd-live hold -h broker.example.com -t commands/%h -r results/%h --key alice.key --for group:web --discover status/%h
";

impl Hold {
    pub(crate) fn run(self) -> Result<Status, Problem> {
        send(self.message, Some((self.seconds, &self.reason)))
    }
}

impl Release {
    pub(crate) fn run(self) -> Result<Status, Problem> {
        send(self.message, None)
    }
}

fn send(message: Message, hold: Option<(u64, &str)>) -> Result<Status, Problem> {
    if !message.signing.has_key() {
        return Err("--key is needed: a hold must be signed".to_owned().into());
    }
    message.send(Kind::Hold, None, &mut |task| {
        hold_to_json(task, hold, SystemTime::now())
    })
}
