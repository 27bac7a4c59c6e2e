//! Manual pages and completions, made from what clap knows of the arguments. The build installs them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::{generate_to, Shell};
use clap_mangen::roff::{bold, roman, Roff};
use clap_mangen::Man;

use crate::output::{complain, Status, STATUSES};
use crate::{hold, key, list, migrate, ping, rules, send_command, Cli};

/// What the manual page of a subcommand shows beside its arguments: indented lines are commands.
const EXAMPLES: [(&str, &str); 7] = [
    ("send-command", send_command::EXAMPLES),
    ("ping", ping::EXAMPLES),
    ("list", list::EXAMPLES),
    ("key", key::EXAMPLES),
    ("hold", hold::EXAMPLES),
    ("rules", rules::EXAMPLES),
    ("migrate", migrate::EXAMPLES),
];

/// Writes manual pages and completions of shells into a directory.
#[derive(Args)]
pub(crate) struct Generate {
    /// The directory
    directory: PathBuf,
}

impl Generate {
    pub(crate) fn run(self) -> Status {
        match write(&self.directory) {
            Ok(()) => Status::Success,
            Err(error) => {
                complain(&format_args!("{}: {error}", self.directory.display()));
                Status::Usage
            }
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut cli = Cli::command();
    cli.build();
    pages(&cli, "", directory)?;
    for shell in [Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut Cli::command(), "collectd-live", directory)?;
    }
    let path = generate_to(Shell::Bash, &mut Cli::command(), "collectd-live", directory)?;
    // clap_complete (clap issue 6421) spells the states of a program with a hyphen in two ways.
    let script = fs::read_to_string(&path)?;
    fs::write(
        path,
        script.replace("collectd__subcmd__live__", "collectd__live__"),
    )
}

fn is_shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

/// Writes the page of a command, and those of its subcommands.
fn pages(command: &Command, path: &str, directory: &Path) -> io::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let man = Man::new(command.clone())
        .title(name.to_owned())
        .source(concat!("collectd-live ", env!("CARGO_PKG_VERSION")))
        .manual("collectd-live");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(is_shown) {
        man.render_subcommands_section(&mut page)?;
    }
    rest(path).to_writer(&mut page)?;
    fs::write(directory.join(format!("{name}.1")), page)?;
    for inner in command.get_subcommands().filter(|inner| is_shown(inner)) {
        let path = format!("{path} {}", inner.get_name());
        pages(inner, path.trim_start(), directory)?;
    }
    Ok(())
}

/// What clap does not know.
fn rest(path: &str) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", ["EXIT STATUS"]);
    for (status, what) in STATUSES {
        roff.control("TP", []);
        roff.text([bold((status as u8).to_string())]);
        roff.text([roman(what)]);
    }
    if let Some((_, examples)) = EXAMPLES.iter().find(|(name, _)| *name == path) {
        roff.control("SH", ["EXAMPLES"]);
        for line in examples.lines() {
            match line.strip_prefix("    ") {
                Some(command) => {
                    roff.control("RS", ["4"]);
                    roff.control("EX", []);
                    roff.text([roman(command)]);
                    roff.control("EE", []);
                    roff.control("RE", []);
                }
                None if line.is_empty() => {}
                None => {
                    roff.control("PP", []);
                    roff.text([roman(line)]);
                }
            }
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("collectd.conf"),
        roman("(5), the section on the plugin monitor"),
    ]);
    roff
}

/// The exit statuses for --help.
pub(crate) fn statuses() -> String {
    let mut text = "Exit status:".to_owned();
    for (status, what) in STATUSES {
        text.push_str(&format!("\n  {:3}  {what}", status as u8));
    }
    text
}
