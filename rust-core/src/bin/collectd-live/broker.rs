//! The arguments about the broker, which all subcommands that talk to one share.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use collectd_live::secret::Secret;
use collectd_live::sender::read_password;
use collectd_live::settings::{split_address, Qos, Remote, Tls};

/// How to reach the broker. `-h` is the host, as ever, so a subcommand with these has its help under --help.
#[derive(Args, Clone, Debug)]
pub(crate) struct Broker {
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
    #[arg(long, value_name = "PEM", requires = "secure", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// The key of the certificate
    #[arg(long, value_name = "PEM", requires = "cert")]
    cert_key: Option<PathBuf>,
    /// The quality of service, for what is sent and what is received
    #[arg(short, long, default_value = "2", value_parser = qos)]
    qos: Qos,
}

impl Broker {
    /// The broker in the monitor's own terms. The topics are the caller's.
    pub(crate) fn remote(&self) -> Result<Remote, String> {
        let this = self.clone();
        let (host, port) = this.host;
        let password = match this.password_file {
            Some(path) => Some(read_password(&path)?),
            None => this.password,
        };
        Ok(Remote {
            host,
            port: port.unwrap_or(if this.secure { 8883 } else { 1883 }),
            tls: this.secure.then_some(Tls {
                ca_file: this.ca_file,
                identity: this.cert.zip(this.cert_key),
            }),
            user: this.user,
            password,
            clean_session: true,
            qos: this.qos,
            ..Remote::default()
        })
    }
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

/// A topic to publish to.
pub(crate) fn topic(text: &str) -> Result<String, String> {
    match !text.is_empty() && rumqttc::valid_topic(text) {
        true => Ok(text.to_owned()),
        false => Err("is not a topic to publish to".to_owned()),
    }
}

/// A topic to subscribe to.
pub(crate) fn filter(text: &str) -> Result<String, String> {
    match rumqttc::valid_filter(text) {
        true => Ok(text.to_owned()),
        false => Err("is not a topic to subscribe to".to_owned()),
    }
}

/// A time.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e6 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("must be a number of seconds".to_owned()),
    }
}
