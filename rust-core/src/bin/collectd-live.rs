//! The command line of collectd-live.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use collectd_live::secret::Secret;
use collectd_live::sender::{read_password, send, Error, Order, Progress};
use collectd_live::settings::{split_address, Argument, Qos, Remote, Tls};

/// Sends recovery commands to hosts that run collectd's plugin monitor.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    SendCommand(SendCommand),
}

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
struct SendCommand {
    /// The service, as the host's configuration calls it
    service: String,
    /// The command of that service
    command: String,
    /// A parameter of the command, once for each. true, false and whole numbers are sent as such; quotes
    /// around a value make it a string
    #[arg(long, value_name = "NAME=VALUE", value_parser = parameter)]
    parameter: Vec<(String, Argument)>,
    /// The MQTT broker, with a port if it is not the usual one
    #[arg(short = 'h', long, value_name = "HOST[:PORT]", default_value = "localhost", value_parser = address)]
    host: (String, Option<u16>),
    /// The user for the broker
    #[arg(short, long)]
    user: Option<String>,
    /// The user's password. Other users may see it here; COLLECTD_LIVE_PASSWORD hides it
    #[arg(short, long, env = "COLLECTD_LIVE_PASSWORD", hide_env_values = true, value_parser = secret, requires = "user")]
    password: Option<Secret>,
    /// The password is the first line of this file
    #[arg(
        long,
        value_name = "PATH",
        requires = "user",
        conflicts_with = "password"
    )]
    password_file: Option<PathBuf>,
    /// Use TLS
    #[arg(short, long)]
    secure: bool,
    /// The authorities that may vouch for the broker, instead of the system's
    #[arg(long, value_name = "PEM", requires = "secure")]
    ca_file: Option<PathBuf>,
    /// Our certificate, where the broker wants one
    #[arg(long, value_name = "PEM", requires = "secure", requires = "key")]
    cert: Option<PathBuf>,
    /// The key of the certificate
    #[arg(long, value_name = "PEM", requires = "cert")]
    key: Option<PathBuf>,
    /// The quality of service, for the command and its result
    #[arg(short, long, default_value = "2", value_parser = qos)]
    qos: Qos,
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

fn address(text: &str) -> Result<(String, Option<u16>), String> {
    split_address(text).map_err(|what| format!("the address {what}"))
}

fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text))
}

fn qos(text: &str) -> Result<Qos, String> {
    let level = text.parse::<u8>().ok();
    level
        .and_then(|level| Qos::try_from(level).ok())
        .ok_or_else(|| "must be 0, 1 or 2".to_owned())
}

fn topic(text: &str) -> Result<String, String> {
    match !text.is_empty() && rumqttc::valid_topic(text) {
        true => Ok(text.to_owned()),
        false => Err("is not a topic to publish to".to_owned()),
    }
}

fn filter(text: &str) -> Result<String, String> {
    match rumqttc::valid_filter(text) {
        true => Ok(text.to_owned()),
        false => Err("is not a topic to subscribe to".to_owned()),
    }
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

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e6 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("must be a number of seconds".to_owned()),
    }
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::SendCommand(arguments) => ExitCode::from(arguments.run()),
    }
}

impl SendCommand {
    fn run(self) -> u8 {
        let (host, port) = self.host;
        let password = match self.password_file.as_deref().map(read_password) {
            None => self.password,
            Some(Ok(password)) => Some(password),
            Some(Err(what)) => {
                complain(&what);
                return 2;
            }
        };
        let order = Order {
            remote: Remote {
                host,
                port: port.unwrap_or(if self.secure { 8883 } else { 1883 }),
                tls: self.secure.then_some(Tls {
                    ca_file: self.ca_file,
                    identity: self.cert.zip(self.key),
                }),
                user: self.user,
                password,
                password_file: None,
                clean_session: true,
                client_id: None,
                qos: self.qos,
                command_topic: self.topic,
                result_topic: self.result_topic,
                status_topic: None,
                reconnect: None,
                keep_alive: Duration::from_secs(30),
            },
            service: self.service,
            command: self.command,
            parameters: self.parameter.into_iter().collect(),
            timeout: self.timeout,
        };
        let only_json = self.json;
        let result = send(&order, &mut |progress| match progress {
            Progress::Received(json) if only_json => print_line(&one_line(json)),
            Progress::Sent(_) if only_json => {}
            Progress::Sent(json) => print("Send command", json),
            Progress::Received(json) => print("Received a result", json),
        });
        match result {
            Ok(None) => 0,
            Ok(Some(answer)) => match answer.code {
                0 => 0,
                1..=255 => 1,
                _ => 3,
            },
            Err(error) => {
                complain(&error);
                match error {
                    Error::Timeout => 4,
                    Error::Connection(_) => 5,
                }
            }
        }
    }
}

/// Prints a message. What came over the network must not be able to control the terminal.
fn print(what: &str, json: &str) {
    let mut line = format!("{what}: ");
    for c in json.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    print_line(&line);
}

/// The same JSON without anything that could control a terminal or end the line.
fn one_line(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // White space between the parts. In a string it is escaped already.
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line
}

fn print_line(line: &str) {
    // Whoever closed our standard output can still read the exit status.
    drop(writeln!(io::stdout(), "{line}"));
}

fn complain(error: &dyn std::fmt::Display) {
    // There is nobody to tell that standard error is closed.
    drop(writeln!(io::stderr(), "collectd-live: {error}"));
}
