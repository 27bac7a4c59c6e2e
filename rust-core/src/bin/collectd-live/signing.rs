//! The arguments about signatures, which all subcommands share that send something.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use collectd_live::sender::{Seal, Signing as Library, Target};
use collectd_live::trust::{read_host_keys, read_key, Kind};

use crate::output::complain;

/// How to sign, and whom to believe.
#[derive(Args, Clone, Debug)]
pub(crate) struct Signing {
    /// Sign with the private key in this file
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Address the message to host:NAME, group:NAME or all, once for each. By default each host is sent one that
    /// only it acts upon
    #[arg(long = "for", value_name = "TARGET", requires = "key")]
    targets: Vec<String>,
    /// For how many seconds the signature is good, up to a day
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    lifetime: u64,
    /// Believe results only if the host has signed them: a file with the public key of each host on a line, of
    /// which the kid is the name of the host
    #[arg(long, value_name = "FILE")]
    host_keys: Option<PathBuf>,
}

impl Signing {
    /// Reads the keys.
    pub(crate) fn read(&self, kind: Kind, hosts_are_given: bool) -> Result<Library, String> {
        let with = match &self.key {
            None => None,
            Some(_) if self.targets.is_empty() && !hosts_are_given => {
                return Err("--for is needed with --key where no host is given".to_owned());
            }
            Some(path) => Some(Seal {
                key: read_key(path)?,
                kind,
                targets: self.targets.clone(),
                lifetime: Duration::from_secs(self.lifetime),
            }),
        };
        if let Some(wrong) = self
            .targets
            .iter()
            .find(|target| !collectd_live::trust::scope::is_target(target))
        {
            return Err(format!(
                "--for {wrong}: must be host:NAME, group:NAME or all"
            ));
        }
        let host_keys = match &self.host_keys {
            None => Vec::new(),
            Some(path) => read_host_keys(path)?,
        };
        Ok(Library { with, host_keys })
    }

    /// Whether there is a key.
    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }
}

/// Says that a result was passed over.
pub(crate) fn disbelieved(target: &Target, why: &str) {
    let name = target.host.as_deref().unwrap_or(&target.topic);
    complain(&format_args!("{name}: {why}"));
}
