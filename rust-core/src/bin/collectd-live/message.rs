//! A message to one host or many, and what comes back: what the subcommands share that change something.

use std::time::Duration;

use clap::Args;
use collectd_live::protocol::TaskId;
use collectd_live::sender::{send, Ending, Error, Limits, Order, Progress, Summary};
use collectd_live::trust::Kind;

use crate::broker::{filter, seconds, topic, Broker};
use crate::fleet::Fleet;
use crate::hosts::{Care, Hosts};
use crate::output::{complain, one_line, print, printable, Problem, Status};
use crate::signing::{disbelieved, Signing};

/// Who is told, and how.
#[derive(Args)]
pub(crate) struct Message {
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    pub(crate) signing: Signing,
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

/// Writes the message of a task.
pub(crate) type Text<'a> = &'a mut dyn FnMut(&TaskId) -> String;

impl Message {
    /// Sends it, with this care where it goes to many, and says what has come of it.
    pub(crate) fn send(
        self,
        kind: Kind,
        care: Option<&Care>,
        message: Text<'_>,
    ) -> Result<Status, Problem> {
        let fleet = self.hosts.are_given();
        let remote = self.broker.remote()?;
        let (topic, results) = (&self.topic, self.result_topic.as_deref());
        let targets = self.hosts.targets(&remote, topic, results, self.timeout)?;
        let limits = care.filter(|_| fleet).map(|care| care.limits(self.timeout));
        let order = Order {
            remote,
            targets,
            limits: limits.unwrap_or_else(|| Limits::none(self.timeout)),
            rounds: 1,
            pause: Duration::ZERO,
            signing: self.signing.read(kind, fleet)?,
        };
        let summary = match fleet {
            true => to_fleet(&order, message, self.json),
            false => to_one(&order, message, self.json),
        }?;
        if let Some(lost) = &summary.lost {
            complain(&format_args!("the connection is lost: {lost}"));
        } else if let Some(stop) = summary.stop {
            complain(&stop);
        }
        Ok(Status::from(&summary))
    }
}

fn to_fleet(order: &Order, message: Text<'_>, json: bool) -> Result<Summary, Error> {
    let mut fleet = Fleet::new(&order.targets, json);
    let summary = send(order, message, &mut |progress| match progress {
        Progress::Ended(target, ending, reply) => fleet.ended(target, ending, reply),
        Progress::Disbelieved(target, why) => disbelieved(&order.targets[target], why),
        Progress::Sent(..) => {}
    })?;
    fleet.finish(&summary);
    Ok(summary)
}

fn to_one(order: &Order, message: Text<'_>, json: bool) -> Result<Summary, Error> {
    send(order, message, &mut |progress| match progress {
        Progress::Ended(_, _, Some(reply)) if reply.answer.is_none() => {}
        Progress::Ended(_, _, Some(reply)) if json => print(&one_line(reply.json)),
        Progress::Ended(_, _, Some(reply)) => {
            print(&format!("Received a result: {}", printable(reply.json)));
        }
        Progress::Ended(_, Ending::NoAnswer, None) => complain(&"there was no result in time"),
        Progress::Ended(..) => {}
        Progress::Disbelieved(target, why) => disbelieved(&order.targets[target], why),
        Progress::Sent(..) if json => {}
        Progress::Sent(_, text) => print(&format!("Send command: {}", printable(text))),
    })
}
