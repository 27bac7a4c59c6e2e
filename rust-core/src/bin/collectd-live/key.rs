//! `collectd-live key`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use collectd_live::clock::parse_iso8601;
use collectd_live::files;
use collectd_live::trust::edit::{with_key, without_key, Scope};
use collectd_live::trust::{Kind, PublicKey, SigningKey};

use crate::output::{complain, print, Status};

/// Makes keys, and says what they are trusted with.
#[derive(Args)]
pub(crate) struct Key {
    #[command(subcommand)]
    action: Action,
}

/// What the manual adds.
pub(crate) const EXAMPLES: &str = "\
Make a key for yourself, and print the part of it that others may know:

    collectd-live key generate ~/.config/collectd-live.key --name alice

On a host, as root: let it restart web services, and ask for the state of everything:

    collectd-live key trust /etc/collectd/monitor/trust.json alice.jwk --kind command --allow 'web*/restart' --allow '*/status' --target 'host:*'

Take that back:

    collectd-live key revoke /etc/collectd/monitor/trust.json alice
";

#[derive(Subcommand)]
enum Action {
    /// Makes a key in a new file that only you can read, and prints its public part
    Generate {
        /// The file
        file: PathBuf,
        /// The name of the key. For the key of a host, the name of the host
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Prints the public part of a key
    Show {
        /// The file
        file: PathBuf,
    },
    /// Adds a key to a trust file
    Trust(Box<Trust>),
    /// Removes a key from a trust file. From then on nothing that it has signed is acted upon
    Revoke {
        /// The trust file
        trust_file: PathBuf,
        /// The name of the key
        name: String,
    },
}

#[derive(Args)]
struct Trust {
    /// The trust file. It is made if it is not there
    trust_file: PathBuf,
    /// The file with the key
    key: PathBuf,
    /// A kind of message that it may send, once for each: command, parameters, configuration, plugins, hold
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Vec<Kind>,
    /// Commands that it may send, once for each: * stands for any characters, ? for one
    #[arg(long, value_name = "SERVICE/COMMAND", value_parser = allowed)]
    allow: Vec<(String, String)>,
    /// Targets that it may address, once for each: host:NAME, group:NAME or all, with * and ?
    #[arg(long, value_name = "TARGET")]
    target: Vec<String>,
    /// The end of its time, as in 2030-01-31T00:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<String>,
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::from_name(text).ok_or_else(|| "is not a kind of message".to_owned())
}

fn allowed(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((service, command)) if !service.is_empty() && !command.is_empty() => {
            Ok((service.to_owned(), command.to_owned()))
        }
        _ => Err("must be SERVICE/COMMAND".to_owned()),
    }
}

fn time(text: &str) -> Result<String, String> {
    match parse_iso8601(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("must be a time like 2030-01-31T00:00:00Z".to_owned()),
    }
}

impl Key {
    pub(crate) fn run(self) -> Status {
        let result = match self.action {
            Action::Generate { file, name } => generate(&file, name.as_deref()),
            Action::Show { file } => show(&file),
            Action::Trust(arguments) => arguments.run(),
            Action::Revoke { trust_file, name } => revoke(&trust_file, &name),
        };
        match result {
            Ok(()) => Status::Success,
            Err(what) => {
                complain(&what);
                Status::Usage
            }
        }
    }
}

fn generate(file: &Path, name: Option<&str>) -> Result<(), String> {
    let key = SigningKey::generate(name)?;
    let jwk = format!("{}\n", key.to_jwk()?);
    files::create_private(file, jwk.as_bytes()).map_err(|error| error.to_string())?;
    print(&key.public().to_jwk());
    Ok(())
}

fn read_public(file: &Path) -> Result<PublicKey, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    PublicKey::from_jwk(&text).map_err(|what| format!("{}: {what}", file.display()))
}

fn show(file: &Path) -> Result<(), String> {
    print(&read_public(file)?.to_jwk());
    Ok(())
}

impl Trust {
    fn run(self) -> Result<(), String> {
        let key = read_public(&self.key)?;
        let text = match fs::read_to_string(&self.trust_file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(format!("{}: {error}", self.trust_file.display())),
        };
        let scope = Scope {
            kinds: self.kind,
            commands: self.allow,
            targets: self.target,
            until: self.until,
        };
        let changed = with_key(&self.trust_file, &text, &key, &scope)?;
        files::replace(&self.trust_file, changed.as_bytes()).map_err(|error| error.to_string())
    }
}

fn revoke(trust_file: &Path, name: &str) -> Result<(), String> {
    let text =
        fs::read_to_string(trust_file).map_err(|e| format!("{}: {e}", trust_file.display()))?;
    let changed = without_key(trust_file, &text, name)?;
    files::replace(trust_file, changed.as_bytes()).map_err(|error| error.to_string())
}
