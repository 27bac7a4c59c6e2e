//! The arguments about hosts, which all subcommands share that send something to many.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use collectd_live::sender::{discover, is_host, HostState, Limits, Pattern, Target, Tolerance};
use collectd_live::settings::Remote;

use crate::broker::seconds;
use crate::output::Problem;

/// Which hosts.
#[derive(Args, Clone, Debug)]
pub(crate) struct Hosts {
    /// The hosts, by the names that stand for %h in the topics
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
    /// More hosts, one on a line. # begins a comment, and - is the standard input
    #[arg(long, value_name = "PATH")]
    hosts_file: Option<PathBuf>,
    /// More hosts: those of which the retained status on this topic, such as status/%h, is that they are online
    #[arg(long, value_name = "TOPIC", value_parser = pattern)]
    discover: Option<Pattern>,
    /// Discovery is over when no status has come for so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    quiet: Duration,
}

impl Hosts {
    /// Whether hosts were named. Otherwise the topics are that of one host already.
    pub(crate) fn are_given(&self) -> bool {
        !self.hosts.is_empty() || self.hosts_file.is_some() || self.discover.is_some()
    }

    /// Everybody who is to be sent something.
    pub(crate) fn targets(
        &self,
        remote: &Remote,
        topic: &str,
        result_topic: Option<&str>,
        patience: Duration,
    ) -> Result<Vec<Target>, Problem> {
        let varies = topic.contains("%h");
        if !self.are_given() {
            let result_varies = result_topic.is_some_and(|topic| topic.contains("%h"));
            return match varies || result_varies {
                true => Err(Problem::Usage(
                    "%h in a topic stands for a host, and none is given".to_owned(),
                )),
                false => Ok(vec![Target::topic(topic, result_topic)]),
            };
        }
        if !varies {
            let what = "with hosts, --topic must hold %h, which stands for the host";
            return Err(Problem::Usage(what.to_owned()));
        }
        let mut names = Vec::new();
        for name in &self.hosts {
            names.push(checked(name)?);
        }
        if let Some(path) = &self.hosts_file {
            names.extend(read(path)?);
        }
        if let Some(pattern) = &self.discover {
            let found = discover(remote, pattern, self.quiet, patience)?;
            let online = found.into_iter().filter(|f| f.state == HostState::Online);
            names.extend(online.map(|found| found.host));
        }
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        if names.is_empty() {
            return Err(Problem::Nobody("there are no hosts".to_owned()));
        }
        let targets = names
            .iter()
            .map(|name| Target::host(name, topic, result_topic));
        Ok(targets.collect::<Result<_, _>>()?)
    }
}

fn checked(name: &str) -> Result<String, String> {
    match is_host(name) {
        true => Ok(name.to_owned()),
        false => Err(format!("{name:?} cannot be the name of a host")),
    }
}

/// The hosts in a file.
fn read(path: &Path) -> Result<Vec<String>, String> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().read_to_string(&mut text).map(drop),
        _ => fs::read_to_string(path).map(|all| text = all),
    };
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    lines(&text).map_err(|(line, what)| format!("{}:{line}: {what}", path.display()))
}

fn lines(text: &str) -> Result<Vec<String>, (usize, String)> {
    let mut names = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if !name.is_empty() {
            names.push(checked(name).map_err(|what| (index + 1, what))?);
        }
    }
    Ok(names)
}

/// How careful to be with many hosts.
#[derive(Args, Clone, Debug)]
pub(crate) struct Care {
    /// So many hosts go first; the others follow only if all of these succeed
    #[arg(long, value_name = "HOSTS", default_value = "1")]
    canary: usize,
    /// So many hosts at once
    #[arg(long, value_name = "HOSTS", default_value = "10")]
    parallel: NonZeroUsize,
    /// At most so many hosts in a second
    #[arg(long, value_name = "HOSTS", value_parser = rate)]
    rate: Option<f64>,
    /// Stop when more hosts than this did not succeed: a number, or a share of all as in 10%
    #[arg(long, value_name = "HOSTS", default_value = "10%", value_parser = tolerance)]
    max_failures: Tolerance,
}

impl Care {
    pub(crate) fn limits(&self, timeout: Duration) -> Limits {
        Limits {
            canary: self.canary,
            parallel: self.parallel,
            interval: self
                .rate
                .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate)),
            tolerance: self.max_failures,
            timeout,
        }
    }
}

pub(crate) fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::parse(text)
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("must be a number from 0.001 to 1000000".to_owned()),
    }
}

fn tolerance(text: &str) -> Result<Tolerance, String> {
    let tolerance = match text.strip_suffix('%') {
        Some(share) => share
            .parse::<f64>()
            .ok()
            .filter(|share| (0.0..=100.0).contains(share))
            .map(Tolerance::Percent),
        None => text.parse().ok().map(Tolerance::Hosts),
    };
    tolerance.ok_or_else(|| "must be a number of hosts, or a share of them such as 10%".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_hosts_has_one_on_a_line() {
        let text = "web1\n\n# those that are new\n  web2  # since May\r\n";
        assert_eq!(lines(text).unwrap(), ["web1", "web2"]);
        let (line, what) = lines("web1\nweb/2\n").unwrap_err();
        assert_eq!((line, what.contains("web/2")), (2, true));
    }

    #[test]
    fn failures_are_a_number_or_a_share() {
        assert_eq!(tolerance("3"), Ok(Tolerance::Hosts(3)));
        assert_eq!(tolerance("2.5%"), Ok(Tolerance::Percent(2.5)));
        for wrong in ["", "%", "-1", "101%", "NaN%", "1.5", "x"] {
            assert!(tolerance(wrong).is_err(), "{wrong}");
        }
    }
}
