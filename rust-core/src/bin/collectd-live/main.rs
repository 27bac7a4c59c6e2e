//! The command line of collectd-live.
//!
//! Each subcommand is a module with its arguments and a function `run`, which ends in a [`Status`]
//! or a [`Problem`].

mod broker;
mod fleet;
mod generate;
mod hold;
mod hosts;
mod key;
mod list;
mod message;
mod migrate;
mod output;
mod ping;
mod rules;
mod send_command;
mod signing;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use output::{Problem, Status};

/// Sends recovery commands to hosts that run collectd's plugin monitor.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    SendCommand(Box<send_command::SendCommand>),
    Ping(Box<ping::Ping>),
    List(Box<list::List>),
    Rules(rules::Rules),
    Migrate(migrate::Migrate),
    Hold(Box<hold::Hold>),
    Release(Box<hold::Release>),
    Key(key::Key),
    #[command(hide = true)]
    Generate(generate::Generate),
}

impl Action {
    fn run(self) -> Result<Status, Problem> {
        Ok(match self {
            Action::SendCommand(arguments) => arguments.run()?,
            Action::Ping(arguments) => arguments.run()?,
            Action::List(arguments) => arguments.run()?,
            Action::Rules(arguments) => arguments.run(),
            Action::Migrate(arguments) => arguments.run(),
            Action::Hold(arguments) => arguments.run()?,
            Action::Release(arguments) => arguments.run()?,
            Action::Key(arguments) => arguments.run(),
            Action::Generate(arguments) => arguments.run(),
        })
    }
}

fn main() -> ExitCode {
    let status = Cli::parse().command.run();
    status.unwrap_or_else(|problem| problem.report()).into()
}
