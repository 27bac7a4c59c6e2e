//! `collectd-live send-command`.

use std::time::{Duration, SystemTime};

use clap::Args;
use collectd_live::protocol::{command_to_json, TaskId};
use collectd_live::sender::{send, Ending, Error, Limits, Order, Progress, Summary};
use collectd_live::settings::Argument;
use collectd_live::trust::Kind;

use crate::broker::{filter, seconds, topic, Broker};
use crate::fleet::Fleet;
use crate::generate::statuses;
use crate::hosts::{Care, Hosts};
use crate::output::{complain, one_line, print, printable, Status};
use crate::signing::{disbelieved, Signing};

/// Sends a command and waits for its result.
///
/// Prints what it sends and the result that answers it. Results of other tasks are passed over. Without
/// --result-topic it only waits until the broker has the command.
///
/// With hosts it sends the command to each of them, %h in the topics being its name: first to one, and if the
/// command succeeds there, to the others, ten at once, until a tenth of all has failed. It shows how far it
/// is if standard error is a terminal, and prints a table at the end. Ctrl-C ends it at once; hosts that were
/// sent the command and have not answered may still run it.
#[derive(Args)]
#[command(disable_help_flag = true, after_help = statuses())]
pub(crate) struct SendCommand {
    /// The service, as the hosts' configuration calls it
    service: String,
    /// The command of that service
    command: String,
    #[command(flatten)]
    hosts: Hosts,
    /// A parameter of the command, once for each. true, false and whole numbers are sent as such; quotes
    /// around a value make it a string
    #[arg(long, value_name = "NAME=VALUE", value_parser = parameter)]
    parameter: Vec<(String, Argument)>,
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
    #[command(flatten)]
    care: Care,
    /// Print nothing but the result, as JSON in one line. With hosts, a line for each, which has the result in it
    #[arg(long)]
    json: bool,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// What the manual adds.
pub(crate) const EXAMPLES: &str = "\
Restart a service of a host, and see what became of it:

    collectd-live send-command -h broker.example.com -t commands/web1 -r results/web1 web restart

The same on three hosts, the first one first:

    collectd-live send-command -h broker.example.com -t commands/%h -r results/%h web restart web1 web2 web3

On all hosts that are online, five at once, two in a second, whatever becomes of it; for programs:

    collectd-live send-command -h broker.example.com -t commands/%h -r results/%h --discover status/%h --canary 0 --parallel 5 --rate 2 --max-failures 100% --json web status
";

fn parameter(text: &str) -> Result<(String, Argument), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    let argument = match value {
        "true" => Argument::Flag(true),
        "false" => Argument::Flag(false),
        _ => match value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) {
            Some(text) => Argument::Text(text.to_owned()),
            None => match value.parse() {
                Ok(number) => Argument::Integer(number),
                Err(_) => Argument::Text(value.to_owned()),
            },
        },
    };
    Ok((name.to_owned(), argument))
}

impl SendCommand {
    pub(crate) fn run(self) -> Status {
        let remote = match self.broker.remote() {
            Ok(remote) => remote,
            Err(what) => {
                complain(&what);
                return Status::Usage;
            }
        };
        let (topic, result_topic) = (&self.topic, self.result_topic.as_deref());
        let targets = self
            .hosts
            .targets(&remote, topic, result_topic, self.timeout);
        let targets = match targets {
            Ok(targets) => targets,
            Err(problem) => {
                let (what, status) = problem.report();
                complain(what);
                return status;
            }
        };
        let fleet = self.hosts.are_given();
        let signing = match self.signing.read(Kind::Command, fleet) {
            Ok(signing) => signing,
            Err(what) => {
                complain(&what);
                return Status::Usage;
            }
        };
        let order = Order {
            remote,
            targets,
            limits: match fleet {
                true => self.care.limits(self.timeout),
                false => Limits::none(self.timeout),
            },
            rounds: 1,
            pause: Duration::ZERO,
            signing,
        };
        let parameters = self.parameter.into_iter().collect();
        let mut message = |task: &TaskId| {
            let now = SystemTime::now();
            command_to_json(task, &self.service, &self.command, &parameters, now)
        };
        let result = match fleet {
            true => to_fleet(&order, &mut message, self.json),
            false => to_one(&order, &mut message, self.json),
        };
        conclude(result)
    }
}

/// Says what went wrong, if anything did.
pub(crate) fn conclude(result: Result<Summary, Error>) -> Status {
    match result {
        Ok(summary) => {
            if let Some(lost) = &summary.lost {
                complain(&format_args!("the connection is lost: {lost}"));
            } else if let Some(stop) = summary.stop {
                complain(&stop);
            }
            Status::from(&summary)
        }
        Err(error) => {
            complain(&error);
            Status::from(&error)
        }
    }
}

pub(crate) type Message<'a> = &'a mut dyn FnMut(&TaskId) -> String;

pub(crate) fn to_fleet(order: &Order, message: Message<'_>, json: bool) -> Result<Summary, Error> {
    let mut fleet = Fleet::new(&order.targets, json);
    let summary = send(order, message, &mut |progress| match progress {
        Progress::Ended(target, ending, reply) => fleet.ended(target, ending, reply),
        Progress::Disbelieved(target, why) => disbelieved(&order.targets[target], why),
        Progress::Sent(..) => {}
    })?;
    fleet.finish(&summary);
    Ok(summary)
}

pub(crate) fn to_one(order: &Order, message: Message<'_>, json: bool) -> Result<Summary, Error> {
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
