//! The command line of collectd-live.
//!
//! Each subcommand is a module with its arguments and a function `run`, which ends in a [`Status`].

mod broker;
mod output;
mod send_command;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use output::Status;

/// Sends recovery commands to hosts that run collectd's plugin monitor.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    SendCommand(Box<send_command::SendCommand>),
}

impl Command {
    fn run(self) -> Status {
        match self {
            Command::SendCommand(arguments) => arguments.run(),
        }
    }
}

fn main() -> ExitCode {
    Cli::parse().command.run().into()
}
