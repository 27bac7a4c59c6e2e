//! `collectd-live rules`: rule files outside of a daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use collectd_live::rules::check::Weight;
use collectd_live::rules::lua::Limits;
use collectd_live::rules::tool::{read_services, Tool};
use serde::Serialize;

use crate::output::{complain, print, printable, Status};

/// Checks rule files, and tries them with recorded values.
#[derive(Args)]
pub(crate) struct Rules {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(Check),
    Test(Test),
}

/// Checks rule files without running their handlers.
///
/// Finds mistakes of syntax, services and commands that the host does not have, matches that can never match, and
/// what the sandbox or the dialect does not have. Tasks that a rule puts together while it runs are seen by `test'.
///
/// The exit status is 1 if something does not work, and 2 if the files cannot be read.
#[derive(Args)]
struct Check {
    #[command(flatten)]
    files: Files,
}

/// Gives the rules values that were recorded, and prints what they would do and when.
///
/// Nothing is run: every action is taken to end at once.
///
/// The exit status is 1 if a rule fails, and 2 if the files cannot be read.
#[derive(Args)]
struct Test {
    #[command(flatten)]
    files: Files,
    /// Values and notifications: a file or directory of collectd's plugin csv, or lines of JSON as the plugin
    /// write_http sends them. May be given several times
    #[arg(long, value_name = "PATH", required = true)]
    replay: Vec<PathBuf>,
    /// The exit status that every command is taken to have
    #[arg(long, value_name = "STATUS", default_value = "0")]
    exit: u8,
}

#[derive(Args)]
struct Files {
    /// The directory of the rule files, LocalMonitorConfigDir of the host
    directory: PathBuf,
    /// The JSON file with the host's services, MonitorConfigPath of the host
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// The rules may do what the daemon may, `Sandbox false' of the host
    #[arg(long)]
    no_sandbox: bool,
    /// The name of the host that the rules run on
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    hostname: String,
    /// Print JSON, an object for each line
    #[arg(long)]
    json: bool,
}

/// What the manual adds.
pub(crate) const EXAMPLES: &str = "\
See whether a rule would have helped yesterday:

    collectd-live rules test /etc/collectd/rules --config /etc/collectd/config.json --replay /var/lib/collectd/csv/node1

Check rules before they are installed:

    collectd-live rules check ./rules --config config.json
";

impl Files {
    fn tool(&self) -> Result<Tool, String> {
        let services = self.config.as_deref().map(read_services).transpose()?;
        Ok(Tool {
            directory: self.directory.clone(),
            limits: Limits {
                sandbox: !self.no_sandbox,
                ..Limits::default()
            },
            services,
            hostname: self.hostname.clone(),
        })
    }
}

/// A finding for programs.
#[derive(Serialize)]
struct Found<'a> {
    place: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    weight: &'a str,
    message: &'a str,
}

/// What is printed at the end, for programs.
#[derive(Serialize)]
struct Sum<'a> {
    event: &'a str,
    subjects: usize,
    runs: usize,
    failures: usize,
    unmatched: &'a [String],
}

impl Rules {
    pub(crate) fn run(self) -> Status {
        let status = match self.command {
            Command::Check(check) => check.run(),
            Command::Test(test) => test.run(),
        };
        status.unwrap_or_else(|what| {
            complain(&printable(&what));
            Status::Usage
        })
    }
}

impl Check {
    fn run(self) -> Result<Status, String> {
        let findings = self.files.tool()?.check()?;
        for finding in &findings {
            if self.files.json {
                print_json(&Found {
                    place: &finding.place,
                    line: finding.line,
                    weight: finding.weight.name(),
                    message: &finding.what,
                });
            } else {
                print(&printable(&finding.to_string()));
            }
        }
        let wrong = findings.iter().any(|f| f.weight == Weight::Error);
        Ok(match wrong {
            true => Status::Failed,
            false => Status::Success,
        })
    }
}

impl Test {
    fn run(self) -> Result<Status, String> {
        let json = self.files.json;
        let tool = self.files.tool()?;
        let summary = tool.replay(&self.replay, self.exit, |happening| match json {
            true => print_json(happening),
            false => print(&printable(&happening.line())),
        })?;
        let (subjects, runs, failures) = (summary.subjects, summary.runs, summary.failures);
        if json {
            print_json(&Sum {
                event: "summary",
                subjects,
                runs,
                failures,
                unmatched: &summary.unmatched,
            });
        } else {
            print(&format!(
                "{subjects} values and notifications, {runs} actions, {failures} failures of rules"
            ));
            for name in &summary.unmatched {
                print(&format!("Nothing was for {}.", printable(name)));
            }
        }
        Ok(match failures {
            0 => Status::Success,
            _ => Status::Failed,
        })
    }
}

fn print_json(value: &impl Serialize) {
    // Strings and numbers can always be written.
    print(&serde_json::to_string(value).unwrap_or_default());
}
