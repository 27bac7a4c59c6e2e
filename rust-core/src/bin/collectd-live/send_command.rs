//! `collectd-live send-command`.

use std::time::SystemTime;

use clap::Args;
use collectd_live::protocol::command_to_json;
use collectd_live::settings::Argument;
use collectd_live::trust::Kind;

use crate::generate::statuses;
use crate::hosts::Care;
use crate::message::Message;
use crate::output::{Problem, Status};

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
    /// A parameter of the command, once for each. true, false and whole numbers are sent as such; quotes
    /// around a value make it a string
    #[arg(long, value_name = "NAME=VALUE", value_parser = parameter)]
    parameter: Vec<(String, Argument)>,
    #[command(flatten)]
    message: Message,
    #[command(flatten)]
    care: Care,
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
    pub(crate) fn run(self) -> Result<Status, Problem> {
        let parameters = self.parameter.into_iter().collect();
        self.message
            .send(Kind::Command, Some(&self.care), &mut |task| {
                let now = SystemTime::now();
                command_to_json(task, &self.service, &self.command, &parameters, now)
            })
    }
}
