//! `collectd-live migrate`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use collectd_live::migrate::{check, Item, Report, Weight};
use serde::Serialize;

use crate::output::{complain, print, printable, Status};

/// Says what becomes of a site of lua-collectd-monitor.
///
/// Reads its collectd.conf with all that it includes, and the JSON file and the rules that are named there.
/// Prints what would behave differently, what to remove from collectd.conf, and what to write instead. Nothing
/// is changed.
#[derive(Args)]
#[command(after_help = "Exit status:\n  \
    0  the new block is all it takes\n  \
    1  something else needs attention\n  \
    2  the configuration cannot be read, or lua-collectd-monitor is not in it")]
pub(crate) struct Migrate {
    /// Check, and change nothing. There is nothing else that can be done yet
    #[arg(long, required = true)]
    check: bool,
    /// The configuration
    #[arg(
        value_name = "COLLECTD.CONF",
        default_value = "/etc/collectd/collectd.conf"
    )]
    configuration: PathBuf,
    /// The daemon that reads it, if not the one that collectd-live was installed with
    #[arg(long, value_name = "PATH")]
    collectd: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the manual adds.
pub(crate) const EXAMPLES: &str = "\
See what there is to do on a host that runs lua-collectd-monitor:

    collectd-live migrate --check /etc/collectd/collectd.conf
";

/// The report for programs.
#[derive(Serialize)]
struct Json<'a> {
    attention: bool,
    notes: Vec<JsonNote<'a>>,
    remove: Vec<JsonPlace<'a>>,
    write: &'a str,
}

#[derive(Serialize)]
struct JsonNote<'a> {
    attention: bool,
    place: &'a str,
    what: &'a str,
}

#[derive(Serialize)]
struct JsonPlace<'a> {
    place: &'a str,
    what: &'a str,
}

impl Migrate {
    pub(crate) fn run(self) -> Status {
        let daemon = self.collectd.clone().unwrap_or_else(installed);
        let tree = match read(&daemon, &self.configuration) {
            Ok(tree) => tree,
            Err(what) => {
                complain(&what);
                return Status::Usage;
            }
        };
        let Some(report) = check(&tree) else {
            complain(&format_args!(
                "{}: there is no lua-collectd-monitor in it",
                self.configuration.display()
            ));
            return Status::Usage;
        };
        match self.json {
            true => print(&json(&report)),
            false => print(&text(&report)),
        }
        match report.needs_attention() {
            true => Status::Failed,
            false => Status::Success,
        }
    }
}

/// The daemon beside this program, else the one in the path.
fn installed() -> PathBuf {
    let beside = env::current_exe().ok().and_then(|program| {
        let prefix = program.parent()?.parent()?.to_owned();
        Some(prefix.join("sbin/collectd"))
    });
    match beside {
        Some(path) if path.is_file() => path,
        _ => PathBuf::from("collectd"),
    }
}

/// Has the daemon read a configuration. It does no more than that.
fn read(daemon: &Path, configuration: &Path) -> Result<Vec<Item>, String> {
    let name = daemon.display();
    let output = Command::new(daemon)
        .arg("-j")
        .arg("-C")
        .arg(configuration)
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let what = match errors.contains("invalid option") {
            true => format!("{name} cannot print a configuration: it is not collectd-live's"),
            false => errors.trim_end().to_owned(),
        };
        return Err(what);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))
}

fn text(report: &Report) -> String {
    let mut lines: Vec<_> = report
        .notes
        .iter()
        .map(|note| printable(&note.to_string()))
        .collect();
    lines.push("Remove:".to_owned());
    let removed = report.remove.iter();
    lines.extend(
        removed.map(|(place, what)| format!("  {}: {}", printable(place), printable(what))),
    );
    lines.push("Write instead:".to_owned());
    lines.extend(
        report
            .write
            .lines()
            .map(|line| format!("  {}", printable(line))),
    );
    lines.join("\n")
}

fn json(report: &Report) -> String {
    let notes = report.notes.iter().map(|note| JsonNote {
        attention: note.weight == Weight::Attention,
        place: &note.place,
        what: &note.what,
    });
    let remove = report.remove.iter();
    let json = Json {
        attention: report.needs_attention(),
        notes: notes.collect(),
        remove: remove
            .map(|(place, what)| JsonPlace { place, what })
            .collect(),
        write: &report.write,
    };
    // Text can always be written.
    serde_json::to_string(&json).unwrap_or_default()
}
