//! `collectd-live send-command`.

use std::time::Duration;

use clap::Args;
use collectd_live::sender::{send, Order, Progress};
use collectd_live::settings::Argument;

use crate::broker::{filter, seconds, topic, Broker};
use crate::output::{complain, one_line, print, printable, Status};

/// Sends a command and waits for its result.
///
/// Prints what it sends and the result that answers it. Results of other tasks are passed over. Without
/// --result-topic it only waits until the broker has the command.
#[derive(Args)]
#[command(
    disable_help_flag = true,
    after_help = "Exit status:\n  \
        0  the command succeeded (without --result-topic: was delivered to the broker)\n  \
        1  the command failed: its exit status was not 0\n  \
        2  the arguments are wrong\n  \
        3  the monitor refused the command, or it did not run to its end\n  \
        4  there was no result in time\n  \
        5  the broker cannot be reached, does not let us in, or was lost"
)]
pub(crate) struct SendCommand {
    /// The service, as the host's configuration calls it
    service: String,
    /// The command of that service
    command: String,
    /// A parameter of the command, once for each. true, false and whole numbers are sent as such; quotes
    /// around a value make it a string
    #[arg(long, value_name = "NAME=VALUE", value_parser = parameter)]
    parameter: Vec<(String, Argument)>,
    #[command(flatten)]
    broker: Broker,
    /// The topic that the host takes commands from
    #[arg(short, long, value_parser = topic)]
    topic: String,
    /// The topic that the host sends results to
    #[arg(short, long, value_parser = filter)]
    result_topic: Option<String>,
    /// How many seconds to wait for the result
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    timeout: Duration,
    /// Print nothing but the result, as JSON in one line
    #[arg(long)]
    json: bool,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

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
        let remote = match self.broker.remote(self.topic, self.result_topic) {
            Ok(remote) => remote,
            Err(what) => {
                complain(&what);
                return Status::Usage;
            }
        };
        let order = Order {
            remote,
            service: self.service,
            command: self.command,
            parameters: self.parameter.into_iter().collect(),
            timeout: self.timeout,
        };
        let only_json = self.json;
        let result = send(&order, &mut |progress| match progress {
            Progress::Received(json) if only_json => print(&one_line(json)),
            Progress::Sent(_) if only_json => {}
            Progress::Sent(json) => print(&format!("Send command: {}", printable(json))),
            Progress::Received(json) => print(&format!("Received a result: {}", printable(json))),
        });
        match result {
            Ok(answer) => answer.as_ref().map_or(Status::Success, Status::from),
            Err(error) => {
                complain(&error);
                Status::from(&error)
            }
        }
    }
}
