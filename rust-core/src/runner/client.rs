//! The daemon's side: starts the helper and talks to it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use tracing::{debug, error};

use super::{read_frame, write_frame, Event, Job, Report, Runner, PROTOCOL};
use crate::logging::Logger;
use crate::threads::{self, Failure};

/// How long the helper may take to say hello, or to take a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a command may know of the daemon's environment. The rest, like `NOTIFY_SOCKET`, is not its business.
pub(crate) const ENVIRONMENT: [&str; 9] = [
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ",
];

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs commands through the helper, and starts it again when it is gone.
pub struct Client {
    path: PathBuf,
    events: Sender<Event>,
    logger: Logger,
    failure: Arc<Failure>,
    helper: Option<Helper>,
}

struct Helper {
    socket: UnixStream,
    child: Child,
    reader: JoinHandle<()>,
}

impl Client {
    /// Starts the helper.
    pub(crate) fn start(
        path: PathBuf,
        events: Sender<Event>,
        logger: Logger,
        failure: Arc<Failure>,
    ) -> Result<Self, String> {
        let mut client = Self {
            path,
            events,
            logger,
            failure,
            helper: None,
        };
        client.helper = Some(client.spawn()?);
        Ok(client)
    }

    fn spawn(&self) -> Result<Helper, String> {
        let fail = |what: &str, error: &dyn std::fmt::Display| {
            format!("the helper {} {what}: {error}", self.path.display())
        };
        // The standard library checks this only in the child.
        let metadata = std::fs::metadata(&self.path).map_err(|e| fail("cannot be started", &e))?;
        if !metadata.is_file() {
            return Err(fail("cannot be started", &"it is not a file"));
        }
        let (mut ours, theirs) = UnixStream::pair().map_err(|e| fail("gets no socket", &e))?;
        let mut command = Command::new(&self.path);
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .env_clear()
            .env("PATH", DEFAULT_PATH);
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        #[cfg(debug_assertions)]
        if let Some(value) = std::env::var_os(crate::boundary::VARIABLE) {
            command.env(crate::boundary::VARIABLE, value);
        }
        let mut child = command.spawn().map_err(|e| fail("cannot be started", &e))?;
        // The command holds a copy of the helper's end, which would hide that the helper closes its own.
        drop(command);

        let greeted = self.greet(&mut ours).and_then(|()| {
            let from = ours.try_clone()?;
            let events = self.events.clone();
            threads::spawn("monitor-runner", &self.logger, &self.failure, || {
                read(from, events)
            })
        });
        match greeted {
            Ok(reader) => Ok(Helper {
                socket: ours,
                child,
                reader,
            }),
            Err(error) => {
                drop(ours);
                reap(&mut child);
                Err(fail("does not work", &error))
            }
        }
    }

    fn greet(&self, socket: &mut UnixStream) -> io::Result<()> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        match read_frame(socket)? {
            Some(Report::Hello { protocol: PROTOCOL }) => {}
            Some(Report::Hello { protocol }) => {
                let what = format!("it speaks version {protocol}, not {PROTOCOL}");
                return Err(io::Error::other(what));
            }
            Some(_) => return Err(io::Error::other("it does not say hello")),
            None => return Err(io::Error::other("it has ended at once")),
        }
        socket.set_read_timeout(None)
    }
}

fn read(mut from: UnixStream, events: Sender<Event>) {
    loop {
        let event = match read_frame(&mut from) {
            Ok(Some(report)) => Event::Report(report),
            Ok(None) => Event::Lost,
            Err(error) => {
                error!("the helper says something strange: {error}");
                Event::Lost
            }
        };
        let last = event == Event::Lost;
        if events.send(event).is_err() || last {
            return;
        }
    }
}

/// Waits for the helper, which ends when its socket does. Where the daemon ignores SIGCHLD, or `exec` was
/// faster, there is nobody left to wait for: that is as good.
fn reap(child: &mut Child) {
    if let Err(error) = child.wait() {
        debug!("the helper was reaped by somebody else: {error}");
    }
}

impl Runner for Client {
    fn run(&mut self, job: &Job) -> Result<(), String> {
        if self.helper.is_none() {
            self.helper = Some(self.spawn()?);
        }
        let Some(helper) = &mut self.helper else {
            return Err("there is no helper".to_owned());
        };
        write_frame(&mut helper.socket, job).map_err(|error| {
            // What was written in part cannot be taken back. Closing the socket ends the helper, and its
            // reader says so.
            drop(helper.socket.shutdown(std::net::Shutdown::Both));
            format!("the helper does not take the command: {error}")
        })
    }

    fn lost(&mut self) {
        if let Some(mut helper) = self.helper.take() {
            drop(helper.socket);
            reap(&mut helper.child);
            // The thread's panic was reported by the thread.
            drop(helper.reader.join());
        }
    }

    fn stop(&mut self) {
        if let Some(helper) = &self.helper {
            // The helper ends its commands, says how they ended, and then itself.
            if let Err(error) = helper.socket.shutdown(std::net::Shutdown::Write) {
                debug!("the helper was gone before it was told to stop: {error}");
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
        self.lost();
    }
}
