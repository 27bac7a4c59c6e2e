//! `collectd-live ping`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use clap::Args;
use collectd_live::protocol::{command_to_json, Code, TaskId, PING};
use collectd_live::sender::{send, Ending, Limits, Order, Progress, Reply, Stop, Target};
use collectd_live::trust::Kind;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::broker::{filter, seconds, topic, Broker};
use crate::fleet::code;
use crate::generate::statuses;
use crate::hosts::Hosts;
use crate::output::{complain, one_line, print, printable, Problem, Status};
use crate::signing::{disbelieved, Signing};

/// Measures how long hosts take to answer.
///
/// Sends a message that makes a monitor answer and do nothing else. A monitor that does not know it, such as
/// lua-collectd-monitor, answers that there is no such service, which is an answer as well. The time is that
/// from here to the broker, to the monitor, and back.
#[derive(Args)]
#[command(disable_help_flag = true, after_help = statuses())]
pub(crate) struct Ping {
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
    result_topic: String,
    /// How often to ask each host
    #[arg(short, long, value_name = "TIMES", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How many seconds to wait between two rounds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// How many seconds to wait for an answer
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    timeout: Duration,
    /// Print JSON, a line for each answer that came or did not come
    #[arg(long)]
    json: bool,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// What the manual adds.
pub(crate) const EXAMPLES: &str = "\
See whether a host's monitor is there, and how fast:

    collectd-live ping -h broker.example.com -t commands/%h -r results/%h web1

Ask all hosts that say they are online, three times:

    collectd-live ping -h broker.example.com -t commands/%h -r results/%h --discover status/%h -c 3
";

/// An answer, or none, for programs.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    answered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    milliseconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
}

impl Ping {
    pub(crate) fn run(self) -> Result<Status, Problem> {
        let remote = self.broker.remote()?;
        let (topic, results) = (&self.topic, Some(self.result_topic.as_str()));
        let targets = self.hosts.targets(&remote, topic, results, self.timeout)?;
        let signing = self.signing.read(Kind::Command, self.hosts.are_given())?;
        let order = Order {
            remote,
            targets,
            limits: Limits::none(self.timeout),
            rounds: self.count,
            pause: self.interval,
            signing,
        };
        let parameters = BTreeMap::new();
        let mut message = |task: &TaskId| {
            let (service, command) = PING;
            command_to_json(task, service, command, &parameters, SystemTime::now())
        };
        let json = self.json;
        let mut sent = 0;
        let mut times = Vec::new();
        let summary = send(&order, &mut message, &mut |progress| match progress {
            Progress::Sent(..) => sent += 1,
            Progress::Disbelieved(target, why) => disbelieved(&order.targets[target], why),
            Progress::Ended(target, _, reply) => {
                if let Some(reply) = reply {
                    times.push(reply.took);
                }
                let target = &order.targets[target];
                match json {
                    true => print(&line(target, reply)),
                    false => print(&sentence(target, reply, self.timeout)),
                }
            }
        })?;
        if !json {
            print(&statistics(sent, &mut times));
        }
        Ok(match (&summary.lost, summary.stop) {
            (Some(lost), _) => {
                complain(&format_args!("the connection is lost: {lost}"));
                Status::Connection
            }
            (None, Some(Stop::Interrupted)) => Status::Interrupted,
            (None, _) if times.len() < sent || summary.endings.contains(&Ending::NoAnswer) => {
                Status::NoAnswer
            }
            (None, _) => Status::Success,
        })
    }
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

fn line(target: &Target, reply: Option<Reply<'_>>) -> String {
    let line = Line {
        host: target.host.as_deref(),
        answered: reply.is_some(),
        milliseconds: reply.map(|reply| milliseconds(reply.took)),
        result: reply.and_then(|reply| RawValue::from_string(one_line(reply.json)).ok()),
    };
    // Strings and numbers can always be written.
    serde_json::to_string(&line).unwrap_or_default()
}

fn sentence(target: &Target, reply: Option<Reply<'_>>, timeout: Duration) -> String {
    let name = target.host.as_deref().unwrap_or(&target.topic);
    let Some(reply) = reply else {
        return format!("{name}: no answer in {} s", timeout.as_secs_f64());
    };
    let remark = match reply.answer {
        None => String::new(),
        Some(answer) if answer.code == 0 => format!(", {}", printable(&answer.message)),
        Some(answer) if answer.code == Code::NoSuchService.number() => {
            ", a monitor that does not know ping".to_owned()
        }
        Some(answer) => format!(", {}: {}", code(answer.code), printable(&answer.message)),
    };
    format!("{name}: {:.3} ms{remark}", milliseconds(reply.took))
}

fn statistics(sent: usize, times: &mut [Duration]) -> String {
    times.sort_unstable();
    let mut text = format!("{sent} asked, {} answered", times.len());
    if let (Some(first), Some(last)) = (times.first(), times.last()) {
        let median = times[times.len() / 2];
        text.push_str(&format!(
            "; minimum {:.3}, median {:.3}, maximum {:.3} ms",
            milliseconds(*first),
            milliseconds(median),
            milliseconds(*last)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_are_those_of_the_answers() {
        let mut times = [3, 1, 2].map(Duration::from_millis);
        assert_eq!(
            statistics(4, &mut times),
            "4 asked, 3 answered; minimum 1.000, median 2.000, maximum 3.000 ms"
        );
        assert_eq!(statistics(1, &mut []), "1 asked, 0 answered");
    }
}
