//! What is printed, and the status at the end. Scripts rely on both.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use collectd_live::sender::{Ending, Error, Stop, Summary};

/// How a subcommand ended. clap itself ends the program with [`Status::Usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Status {
    /// It did what was asked for.
    Success = 0,
    /// The command on a host failed.
    Failed = 1,
    /// The arguments are wrong, or a file that they name.
    Usage = 2,
    /// A monitor refused, or could not run the command to its end.
    Refused = 3,
    /// There was no answer in time.
    NoAnswer = 4,
    /// The broker cannot be reached, does not let us in, or was lost.
    Connection = 5,
    /// The run was stopped before all hosts were sent the command.
    Stopped = 6,
    /// The user did not want to wait any longer: as if the signal had ended the program.
    Interrupted = 130,
}

/// Every status, for the manual.
pub(crate) const STATUSES: [(Status, &str); 8] = [
    (
        Status::Success,
        "Success. Without --result-topic: the broker has the command.",
    ),
    (
        Status::Failed,
        "The command failed: its exit status was not 0.",
    ),
    (
        Status::Usage,
        "The arguments are wrong, or a file that they name.",
    ),
    (
        Status::Refused,
        "The monitor refused the command, or it did not run to its end.",
    ),
    (
        Status::NoAnswer,
        "There was no result in time, or nobody to ask.",
    ),
    (
        Status::Connection,
        "The broker cannot be reached, does not let us in, or was lost.",
    ),
    (
        Status::Stopped,
        "The run was stopped before all hosts were sent the command.",
    ),
    (Status::Interrupted, "Ended by Ctrl-C."),
];

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}

impl From<&Summary> for Status {
    /// With several hosts, the worst counts.
    fn from(summary: &Summary) -> Self {
        match summary.stop {
            Some(Stop::Lost) => return Status::Connection,
            Some(Stop::Interrupted) => return Status::Interrupted,
            Some(Stop::Canary | Stop::Failures) => return Status::Stopped,
            None => {}
        }
        let endings = summary.endings.iter().map(|ending| match ending {
            Ending::Succeeded => Status::Success,
            Ending::Failed => Status::Failed,
            Ending::Refused => Status::Refused,
            Ending::NoAnswer | Ending::Unknown | Ending::NotSent => Status::NoAnswer,
        });
        endings.max().unwrap_or(Status::Success)
    }
}

/// Why a subcommand ends early.
pub(crate) enum Problem {
    /// The arguments do not go together, or a file is wrong.
    Usage(String),
    /// There is nobody to ask.
    Nobody(String),
    /// The broker does not help.
    Broker(Error),
}

impl Problem {
    /// Says so.
    pub(crate) fn report(&self) -> Status {
        match self {
            Problem::Usage(what) => {
                complain(what);
                Status::Usage
            }
            Problem::Nobody(what) => {
                complain(what);
                Status::NoAnswer
            }
            Problem::Broker(error) => {
                complain(error);
                Status::from(error)
            }
        }
    }
}

impl From<String> for Problem {
    fn from(what: String) -> Self {
        Problem::Usage(what)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Problem::Broker(error)
    }
}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        match error {
            Error::Timeout => Status::NoAnswer,
            Error::Connection(_) => Status::Connection,
            Error::Interrupted => Status::Interrupted,
        }
    }
}

/// Text that came over the network, in one line and unable to control a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// The same JSON without anything that could control a terminal or end the line.
pub(crate) fn one_line(json: &str) -> String {
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

/// Lines in columns. The first is a heading, and the last column may be of any length.
pub(crate) fn table<const N: usize>(lines: &[[String; N]]) -> String {
    let cells: Vec<[String; N]> = lines
        .iter()
        .map(|line| line.each_ref().map(|cell| printable(cell)))
        .collect();
    let mut widths = [0; N];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines = cells.iter().map(|line| {
        let cells = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line: Vec<_> = cells.collect();
        line.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Prints a line, or several.
pub(crate) fn print(line: &str) {
    // Whoever closed our standard output can still read the exit status.
    drop(writeln!(io::stdout(), "{line}"));
}

/// Says what went wrong.
pub(crate) fn complain(error: &dyn Display) {
    // There is nobody to tell that standard error is closed.
    drop(writeln!(io::stderr(), "collectd-live: {error}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_controls_a_terminal() {
        let json = "{\"a\":\n\"\u{9b}2J\u{7f}\"}";
        assert_eq!(printable(json), "{\"a\":\\n\"\\u{9b}2J\\u{7f}\"}");
        assert_eq!(one_line(json), "{\"a\": \"\\u009b2J\\u007f\"}");
    }

    #[test]
    fn a_table_has_columns() {
        let lines = [["A", "B"], ["é\n", "x"], ["b", ""]].map(|line| line.map(str::to_owned));
        assert_eq!(table(&lines), "A    B\né\\n  x\nb");
    }

    #[test]
    fn the_worst_host_decides() {
        let status = |endings: &[Ending], stop| {
            Status::from(&Summary {
                endings: endings.to_vec(),
                stop,
                lost: None,
            })
        };
        assert_eq!(status(&[], None), Status::Success);
        let all = [Ending::Succeeded, Ending::Refused, Ending::Failed];
        assert_eq!(status(&all, None), Status::Refused);
        assert_eq!(status(&all, Some(Stop::Canary)), Status::Stopped);
        assert_eq!(status(&all, Some(Stop::Interrupted)), Status::Interrupted);
        assert_eq!(status(&all, Some(Stop::Lost)), Status::Connection);
    }
}
