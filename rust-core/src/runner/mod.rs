//! Commands run as children of a small helper process, not of the daemon.
//!
//! The daemon ignores SIGCHLD, its plugin `exec` takes the status of any child, and a child would inherit
//! its signal mask and whatever descriptors its plugins forgot to close. The helper has none of that. It is
//! started when the monitor is initialised, and it ends when its socket to the monitor does.
//!
//! On the socket each message is JSON behind its length as four bytes, most significant first.

mod client;
mod helper;
mod scope;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{de::DeserializeOwned, Deserialize, Serialize};

pub use client::Client;
pub(crate) use client::ENVIRONMENT;
pub use helper::main as helper_main;

use crate::settings::{CommandSpec, Program, MAX_MAX_OUTPUT};

/// Changes when the messages do: a daemon may meet a helper that was installed after it was started.
const PROTOCOL: u32 = 2;

/// The longest message: two full outputs of which every byte needs escaping, and their frame.
const MAX_FRAME: usize = 2 * MAX_MAX_OUTPUT * 6 + 64 * 1024;

/// A command to run.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What the reports about it are called.
    pub id: u64,
    #[serde(with = "program")]
    /// What to execute.
    pub program: Program,
    /// When to end it, in milliseconds.
    pub timeout_ms: u64,
    /// How many bytes to report of its output, and how many of its standard error.
    pub max_output: usize,
    /// Who runs it, where that is not the helper's user.
    pub user: Option<String>,
    /// Its group, where that is not the user's.
    pub group: Option<String>,
    /// What its environment holds besides the helper's.
    pub env: BTreeMap<String, String>,
    /// Where it runs, where that is not the helper's directory.
    pub cwd: Option<PathBuf>,
}

impl Job {
    /// A job that executes this as the configuration says.
    pub fn new(id: u64, spec: &CommandSpec, program: Program) -> Self {
        let env = spec.env.iter();
        Self {
            id,
            program,
            timeout_ms: u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX),
            max_output: spec.max_output,
            user: spec.user.clone(),
            group: spec.group.clone(),
            env: env
                .map(|(name, value)| (name.clone(), value.expose().to_owned()))
                .collect(),
            cwd: spec.cwd.clone(),
        }
    }
}

impl fmt::Debug for Job {
    /// Without what may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id)
            .field("timeout_ms", &self.timeout_ms)
            .finish_non_exhaustive()
    }
}

/// The program as it crosses the socket.
mod program {
    use super::{Deserialize, Program, Serialize};
    use serde::{Deserializer, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Wire {
        Shell(String),
        Argv(Vec<String>),
    }

    pub(super) fn serialize<S: Serializer>(program: &Program, s: S) -> Result<S::Ok, S::Error> {
        match program {
            Program::Shell(line) => Wire::Shell(line.clone()).serialize(s),
            Program::Argv(argv) => Wire::Argv(argv.clone()).serialize(s),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Program, D::Error> {
        Ok(match Wire::deserialize(d)? {
            Wire::Shell(line) => Program::Shell(line),
            Wire::Argv(argv) => Program::Argv(argv),
        })
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// By itself, with this status as a shell gives it.
    Exited(u8),
    /// It took too long and was ended.
    TimedOut,
    /// The monitor was stopped, and the command with it.
    Stopped,
}

/// What the helper says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    /// First of all.
    Hello {
        /// The version of these messages.
        protocol: u32,
    },
    /// A command has ended.
    Finished {
        /// Which.
        id: u64,
        /// How.
        end: End,
        /// What it printed, as much of it as was asked for.
        output: String,
        /// The same for its standard error.
        errors: String,
    },
    /// A command was not started.
    NotStarted {
        /// Which.
        id: u64,
        /// Why.
        error: String,
    },
}

/// What the engine hears of its runner.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A report about a job.
    Report(Report),
    /// The helper is gone, with all that ran in it.
    Lost,
}

/// Something that runs commands, and sends an [`Event`] for each.
pub trait Runner: Send {
    /// Starts a command. If this fails, no report follows.
    fn run(&mut self, job: &Job) -> Result<(), String>;

    /// Takes note that the helper is gone.
    fn lost(&mut self);

    /// Ends what still runs.
    fn stop(&mut self);
}

fn write_frame(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    to.write_all(&frame)
}

/// Reads a message, or none if the other side has closed its end between two.
fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        match from.read(&mut length[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > MAX_FRAME {
        return Err(io::Error::other("a message is too long"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use std::time::Duration;

    #[test]
    fn messages_cross_the_socket_as_they_are() {
        let program = Program::Argv(vec!["a".into(), "b c\n".into()]);
        let spec = CommandSpec {
            user: Some("u".into()),
            env: [("A".to_owned(), Secret::new("b"))].into(),
            cwd: Some("/x".into()),
            ..CommandSpec::new(program.clone(), Duration::from_millis(1500))
        };
        let job = Job::new(3, &spec, program);
        assert_eq!((job.timeout_ms, job.env["A"].as_str()), (1500, "b"));
        let report = Report::Finished {
            id: 3,
            end: End::Exited(255),
            output: "\0é\n".into(),
            errors: "e".into(),
        };
        let mut wire = Vec::new();
        write_frame(&mut wire, &job).unwrap();
        write_frame(&mut wire, &report).unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(read_frame(&mut wire).unwrap(), Some(job));
        assert_eq!(read_frame(&mut wire).unwrap(), Some(report));
        assert_eq!(read_frame::<Report>(&mut wire).unwrap(), None);
    }

    #[test]
    fn a_broken_frame_is_an_error() {
        for wire in [
            &b"\0\0"[..],
            b"\0\0\0\x05{}",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x02{}",
        ] {
            let mut from = wire;
            assert!(read_frame::<Report>(&mut from).is_err(), "{wire:?}");
        }
    }

    #[test]
    fn the_longest_output_fits_into_a_frame() {
        let report = Report::Finished {
            id: u64::MAX,
            end: End::TimedOut,
            output: "\0".repeat(MAX_MAX_OUTPUT),
            errors: "\0".repeat(MAX_MAX_OUTPUT),
        };
        let mut wire = Vec::new();
        write_frame(&mut wire, &report).unwrap();
        assert!(wire.len() <= MAX_FRAME);
    }
}
