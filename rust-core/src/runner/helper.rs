//! The helper's side: runs commands, watches them, ends them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags, Signal};

use super::scope::{self, Scopes, Started};
use super::{read_frame, write_frame, End, Job, Report, PROTOCOL};
use crate::boundary::{self, Boundary};
use crate::ffi::os;
use crate::settings::Program;

/// How long a command has between TERM and KILL after its timeout.
const GRACE: Duration = Duration::from_secs(5);
/// The same when the monitor stops and the daemon waits for it.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// How long to wait for a command to be gone after KILL. One that hangs in the kernel stays.
const AFTER_KILL: Duration = Duration::from_secs(2);
/// How often to look whether a process group is empty, for which there is no event.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// The program `collectd-live-runner`.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1).map(OsString::into_string);
    if words.next() == Some(Ok(scope::ARGUMENT.to_owned())) {
        // What is not UTF-8 did not come from the monitor.
        return match words.collect::<Result<Vec<_>, _>>() {
            Ok(words) => scope::become_command(&words),
            Err(_) => ExitCode::FAILURE,
        };
    }
    let stdin = io::stdin();
    if rustix::net::sockopt::socket_type(stdin.as_fd()).is_err() {
        let text = "This program is started by collectd's plugin monitor, with a socket as its standard input.\n";
        // There is nobody to tell that standard error is closed.
        drop(io::stderr().write_all(text.as_bytes()));
        return ExitCode::from(2);
    }
    os::forget_parent();
    boundary::helper_begins();
    match stdin.as_fd().try_clone_to_owned() {
        Ok(socket) => serve(UnixStream::from(socket)),
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(mut socket: UnixStream) -> ExitCode {
    let Ok((stop, stopped)) = UnixStream::pair() else {
        return ExitCode::FAILURE;
    };
    let Ok(reports) = socket.try_clone() else {
        return ExitCode::FAILURE;
    };
    let reports = Mutex::new(reports);
    let scopes = Scopes::detect();
    if !tell(&reports, &Report::Hello { protocol: PROTOCOL }) {
        return ExitCode::FAILURE;
    }
    thread::scope(|scope| {
        while let Ok(Some(job)) = read_frame::<Job>(&mut socket) {
            let (reports, stopped, scopes) = (&reports, stopped.as_fd(), &scopes);
            let id = job.id;
            let started =
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn_scoped(scope, move || {
                        // If nobody listens any more, the main thread has seen that as well.
                        tell(reports, &run(&job, scopes, stopped));
                    });
            if let Err(error) = started {
                tell(
                    reports,
                    &Report::NotStarted {
                        id,
                        error: error.to_string(),
                    },
                );
            }
        }
        // The monitor is gone or wants to be. Every thread sees its end of the pair close.
        drop(stop);
    });
    ExitCode::SUCCESS
}

fn tell(reports: &Mutex<UnixStream>, report: &Report) -> bool {
    let mut socket = reports.lock().unwrap_or_else(PoisonError::into_inner);
    write_frame(&mut *socket, report).is_ok()
}

fn run(job: &Job, scopes: &Scopes, stopped: BorrowedFd<'_>) -> Report {
    let (program, arguments) = match &job.program {
        Program::Shell(line) => ("/bin/sh", vec!["-c", line.as_str()]),
        Program::Argv(argv) => {
            let mut words = argv.iter().map(String::as_str);
            (words.next().unwrap_or_default(), words.collect())
        }
    };
    let not_started = |error: String| Report::NotStarted { id: job.id, error };
    let prepare = |command: &mut Command| {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .envs(&job.env);
        if let Some(cwd) = &job.cwd {
            command.current_dir(cwd);
        }
    };
    if let Some(cwd) = &job.cwd {
        // The error of a missing directory would look like that of a missing program.
        match std::fs::metadata(cwd) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return not_started(format!("{}: is not a directory", cwd.display())),
            Err(error) => return not_started(format!("{}: {error}", cwd.display())),
        }
    }
    let exited = |status| Report::Finished {
        id: job.id,
        end: End::Exited(status),
        output: String::new(),
        errors: String::new(),
    };
    boundary::reached_by_helper(Boundary::BeforeFork);
    let words: Vec<&str> = [program].into_iter().chain(arguments).collect();
    let spawned = match scopes.start(job, &words, prepare) {
        Started::Running(child) => Ok(child),
        Started::Failed(error) => Err(error),
        Started::Refused(why) => return not_started(why),
        Started::NoScope => {
            let mut command = Command::new(program);
            command.args(&words[1..]);
            if job.user.is_some() || job.group.is_some() {
                match os::Identity::find(job.user.as_deref(), job.group.as_deref()) {
                    Ok(identity) => identity.assume(&mut command),
                    Err(error) => return not_started(error),
                }
            }
            prepare(&mut command);
            command.spawn()
        }
    };
    boundary::reached_by_helper(Boundary::AfterExec);
    let child = match spawned {
        Ok(child) => child,
        // As a shell says it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return exited(127),
        // The kernel says EACCES of a file that cannot be executed, and EPERM of a user one cannot become.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => return exited(126),
        Err(error) => return not_started(error.to_string()),
    };
    match watch(child, job, stopped) {
        Ok((end, [output, errors])) => Report::Finished {
            id: job.id,
            end,
            output,
            errors,
        },
        Err(error) => not_started(error.to_string()),
    }
}

/// What a command is doing.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// It runs, until then.
    Running(Instant),
    /// It was asked to end, and has until then.
    Terminating(Instant, End),
    /// It was ended, and should be gone by then.
    Killed(Instant, End),
}

fn watch(mut child: Child, job: &Job, stopped: BorrowedFd<'_>) -> io::Result<(End, [String; 2])> {
    let group = Pid::from_child(&child);
    let set_up = |child: &mut Child| {
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        Ok::<_, io::Error>((
            [
                Stream::new(stdout, job.max_output)?,
                Stream::new(stderr, job.max_output)?,
            ],
            pidfd_open(group, PidfdFlags::empty())?,
        ))
    };
    let (mut streams, pidfd) = match set_up(&mut child) {
        Ok(both) => both,
        Err(error) => {
            signal(group, Signal::KILL);
            child.wait()?;
            return Err(error);
        }
    };

    let mut phase = Phase::Running(Instant::now() + Duration::from_millis(job.timeout_ms));
    loop {
        let until = match phase {
            Phase::Running(until) | Phase::Terminating(until, _) | Phase::Killed(until, _) => until,
        };
        let running = matches!(phase, Phase::Running(_));
        let ready = wait(&streams, pidfd.as_fd(), running.then_some(stopped), until)?;
        for (stream, ready) in streams.iter_mut().zip(ready.output) {
            if ready {
                stream.read()?;
            }
        }
        if ready.exited {
            // What it printed last may still be in the pipes. Its descendants may hold them open for ever.
            for stream in &mut streams {
                stream.read()?;
            }
            break;
        }
        phase = match phase {
            Phase::Running(_) if ready.stopped => {
                signal(group, Signal::TERM);
                Phase::Terminating(Instant::now() + STOP_GRACE, End::Stopped)
            }
            _ if Instant::now() < until => phase,
            Phase::Running(_) => {
                signal(group, Signal::TERM);
                Phase::Terminating(Instant::now() + GRACE, End::TimedOut)
            }
            Phase::Terminating(_, end) => {
                signal(group, Signal::KILL);
                Phase::Killed(Instant::now() + AFTER_KILL, end)
            }
            // It hangs in the kernel. Its sender need not.
            Phase::Killed(_, end) => return Ok((end, streams.map(Stream::finish))),
        };
    }

    // Until the leader is waited for, no other process can get the number of its group.
    match phase {
        Phase::Running(_) => {}
        Phase::Terminating(until, _) => {
            wait_for_group(group, until);
            signal(group, Signal::KILL);
            wait_for_group(group, Instant::now() + AFTER_KILL);
        }
        Phase::Killed(until, _) => wait_for_group(group, until),
    }
    boundary::reached_by_helper(Boundary::BeforeWait);
    let status = child.wait()?;
    boundary::reached_by_helper(Boundary::AfterWait);
    let end = match phase {
        Phase::Running(_) => End::Exited(shell_status(status)),
        Phase::Terminating(_, end) | Phase::Killed(_, end) => end,
    };
    Ok((end, streams.map(Stream::finish)))
}

fn signal(group: Pid, signal: Signal) {
    if kill_process_group(group, signal).is_err() {
        // A group that is gone cannot be signalled, and need not be.
    }
}

/// The status as a shell gives it.
fn shell_status(status: ExitStatus) -> u8 {
    let status = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(255);
    u8::try_from(status).unwrap_or(255)
}

/// Waits until only the leader's exit status is left of a group.
fn wait_for_group(group: Pid, until: Instant) {
    while group_is_alive(group) && Instant::now() < until {
        thread::sleep(GROUP_POLL);
    }
}

/// Whether a group has a member that is not a zombie.
fn group_is_alive(group: Pid) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return false;
    };
    let group = group.as_raw_nonzero().get().to_string();
    processes.flatten().any(|entry| {
        let is_process = entry
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|b| b.is_ascii_digit());
        let stat = match is_process.then(|| std::fs::read_to_string(entry.path().join("stat"))) {
            Some(Ok(stat)) => stat,
            _ => return false,
        };
        // The name, in parentheses, may hold anything: fields are counted from its end.
        let Some((_, fields)) = stat.rsplit_once(')') else {
            return false;
        };
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next();
        let _parent = fields.next();
        !matches!(state, Some("Z" | "X")) && fields.next() == Some(&group)
    })
}

struct Ready {
    output: [bool; 2],
    exited: bool,
    stopped: bool,
}

/// Waits until something happens, or the time has come.
fn wait(
    streams: &[Stream; 2],
    pidfd: BorrowedFd<'_>,
    stopped: Option<BorrowedFd<'_>>,
    until: Instant,
) -> io::Result<Ready> {
    let mut fds = vec![PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let stop_at = stopped.map(|stopped| {
        fds.push(PollFd::from_borrowed_fd(stopped, PollFlags::IN));
        fds.len() - 1
    });
    let outputs_at = streams.each_ref().map(|stream| {
        stream.pipe.as_ref().map(|pipe| {
            fds.push(PollFd::new(pipe, PollFlags::IN));
            fds.len() - 1
        })
    });
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
    Ok(Ready {
        output: outputs_at.map(ready),
        exited: ready(Some(0)),
        stopped: ready(stop_at),
    })
}

/// What a command writes to a pipe, as much of it as is wanted.
struct Stream {
    pipe: Option<File>,
    kept: Vec<u8>,
    limit: usize,
    total: u64,
}

impl Stream {
    fn new(pipe: Option<OwnedFd>, limit: usize) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self {
            pipe: pipe.map(File::from),
            kept: Vec::new(),
            limit,
            total: 0,
        })
    }

    /// Reads what is there, but not for ever.
    fn read(&mut self) -> io::Result<()> {
        const ROUNDS: usize = 64;
        let mut chunk = [0; 16 * 1024];
        for _ in 0..ROUNDS {
            let Some(pipe) = &mut self.pipe else {
                return Ok(());
            };
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(count) => self.take(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.limit.saturating_sub(self.kept.len()).min(bytes.len());
        self.kept.extend_from_slice(&bytes[..room]);
    }

    /// The output as text: without its final newline, or cut at a character and marked.
    fn finish(self) -> String {
        let cut = self.total > self.kept.len() as u64;
        let mut kept = self.kept.as_slice();
        if cut {
            // Half a character at the end is not the command's fault.
            if let Err(error) = std::str::from_utf8(kept) {
                if error.error_len().is_none() {
                    kept = &kept[..error.valid_up_to()];
                }
            }
        } else if let Some(rest) = kept.strip_suffix(b"\n") {
            kept = rest;
        }
        let mut text = String::from_utf8_lossy(kept).into_owned();
        // What is not UTF-8 grows when it is replaced.
        let grown = text.len() > self.limit;
        if grown {
            text.truncate(text.floor_char_boundary_at(self.limit));
        }
        if cut || grown {
            text.push_str(&format!("\n[truncated: {} bytes in all]", self.total));
        }
        text
    }
}

trait FloorCharBoundary {
    fn floor_char_boundary_at(&self, index: usize) -> usize;
}

impl FloorCharBoundary for str {
    /// The last start of a character that is not behind the index.
    fn floor_char_boundary_at(&self, index: usize) -> usize {
        (0..=index.min(self.len()))
            .rev()
            .find(|at| self.is_char_boundary(*at))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::CommandSpec;

    struct Ran {
        end: End,
        output: String,
        errors: String,
        took: Duration,
    }

    fn job(program: Program) -> Job {
        let spec = CommandSpec::new(program.clone(), Duration::from_secs(30));
        Job::new(1, &spec, program)
    }

    fn run_it(job: &Job) -> Result<Ran, String> {
        let (_stop, stopped) = UnixStream::pair().unwrap();
        let started = Instant::now();
        match run(job, &Scopes::default(), stopped.as_fd()) {
            Report::Finished {
                id: 1,
                end,
                output,
                errors,
            } => Ok(Ran {
                end,
                output,
                errors,
                took: started.elapsed(),
            }),
            Report::NotStarted { id: 1, error } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn run_job(program: Program, timeout: Duration, max_output: usize) -> Ran {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap();
        run_it(&Job {
            timeout_ms,
            max_output,
            ..job(program)
        })
        .unwrap()
    }

    fn sh(line: &str) -> Ran {
        run_job(
            Program::Shell(line.to_owned()),
            Duration::from_secs(30),
            65_536,
        )
    }

    fn argv(words: &[&str]) -> Ran {
        let argv = words.iter().map(|word| (*word).to_owned()).collect();
        run_job(Program::Argv(argv), Duration::from_secs(30), 65_536)
    }

    #[test]
    fn the_status_is_a_shells() {
        for (line, status) in [
            ("exit 0", 0),
            ("exit 3", 3),
            ("exit 255", 255),
            ("/nonexistent/program", 127),
            ("kill -9 $$", 137),
            ("kill -TERM $$", 143),
        ] {
            assert_eq!(sh(line).end, End::Exited(status), "{line}");
        }
        assert_eq!(argv(&["/nonexistent/program"]).end, End::Exited(127));
        assert_eq!(argv(&["/etc/passwd"]).end, End::Exited(126));
        assert_eq!(
            argv(&["/bin/sh", "-c", "exit $#", "x", "a b", "c"]).end,
            End::Exited(2)
        );
    }

    #[test]
    fn the_output_is_without_its_final_newline_and_without_standard_error() {
        assert_eq!(sh("echo a; echo b >&2; echo c").output, "a\nc");
        assert_eq!(sh("printf 'a\\n\\n'").output, "a\n");
        assert_eq!(sh("printf a").output, "a");
        assert_eq!(sh("printf 'a\\000b'").output, "a\0b");
        assert_eq!(sh("printf 'a\\377b'").output, "a\u{fffd}b");
        assert_eq!(sh(":").output, "");
    }

    #[test]
    fn standard_error_is_told_apart_and_capped_like_the_output() {
        let ran = sh("echo a; echo b >&2; exit 1");
        assert_eq!((ran.output.as_str(), ran.errors.as_str()), ("a", "b"));
        let ran = run_job(
            Program::Shell("printf abcdef >&2; printf xy".into()),
            Duration::from_secs(30),
            4,
        );
        assert_eq!(ran.errors, "abcd\n[truncated: 6 bytes in all]");
        assert_eq!(ran.output, "xy");
        // Neither pipe may fill up while the other is read.
        let ran = sh("head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; exit 5");
        assert_eq!(ran.end, End::Exited(5));
        assert!(ran.errors.ends_with("[truncated: 300000 bytes in all]"));
        assert!(ran.output.ends_with("[truncated: 300000 bytes in all]"));
    }

    #[test]
    fn a_command_runs_where_and_with_the_environment_that_it_is_given() {
        let mut job = job(Program::Shell("pwd; echo \"$GREETING\"".into()));
        job.cwd = Some("/usr".into());
        job.env = [("GREETING".to_owned(), "a  b".to_owned())].into();
        assert_eq!(run_it(&job).unwrap().output, "/usr\na  b");
        for (cwd, why) in [
            ("/nonexistent", "No such file"),
            ("/etc/passwd", "is not a directory"),
        ] {
            job.cwd = Some(cwd.into());
            let error = run_it(&job).map(|ran| ran.end).unwrap_err();
            assert!(error.starts_with(cwd) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_command_runs_as_the_user_and_the_groups_that_it_is_given() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can become another user");
            return;
        }
        let id = |words: &[&str]| {
            let output = Command::new("id").args(words).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let mut job = job(Program::Shell(
            "id -u; id -g; id -G; echo $HOME $USER $LOGNAME".into(),
        ));
        // One of Debian's fixed users, and a group that is not his.
        job.user = Some("nobody".into());
        let expected = format!(
            "{}\n{}\n{}\n/nonexistent nobody nobody",
            id(&["-u", "nobody"]),
            id(&["-g", "nobody"]),
            id(&["-G", "nobody"])
        );
        assert_eq!(run_it(&job).unwrap().output, expected);
        job.program = Program::Shell("id -un; id -gn; id -Gn".into());
        job.group = Some("adm".into());
        assert_eq!(run_it(&job).unwrap().output, "nobody\nadm\nadm nogroup");
        job.user = None;
        job.program = Program::Shell("id -un; id -gn".into());
        assert_eq!(run_it(&job).unwrap().output, "root\nadm");
        job.user = Some("no such user".into());
        let error = run_it(&job).map(|ran| ran.end).unwrap_err();
        assert_eq!(error, "there is no user \"no such user\"");
        job.user = Some("nobody".into());
        job.group = Some("no such group".into());
        let error = run_it(&job).map(|ran| ran.end).unwrap_err();
        assert_eq!(error, "there is no group \"no such group\"");
    }

    #[test]
    fn output_is_capped_on_a_character_boundary_and_marked() {
        let ran = run_job(
            Program::Shell("printf 'aéé'".into()),
            Duration::from_secs(30),
            4,
        );
        assert_eq!(ran.output, "aé\n[truncated: 5 bytes in all]");
        let ran = run_job(
            Program::Shell("printf 'abcd'".into()),
            Duration::from_secs(30),
            4,
        );
        assert_eq!(ran.output, "abcd");
        let ran = run_job(
            Program::Shell("printf 'a\\377\\377'".into()),
            Duration::from_secs(30),
            3,
        );
        assert_eq!(ran.output, "a\n[truncated: 3 bytes in all]");
        let ran = sh("head -c 10000000 /dev/zero; exit 7");
        assert_eq!(ran.end, End::Exited(7));
        assert!(ran.output.len() < 65_536 + 64, "{}", ran.output.len());
        assert!(ran.output.ends_with("\n[truncated: 10000000 bytes in all]"));
    }

    #[test]
    fn a_hung_command_is_ended_with_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let line = format!(
            "trap '' TERM; (trap '' TERM; while :; do sleep 100; done) & echo $! > {0}; echo $$ >> {0}; \
             echo begun; while :; do sleep 100; done",
            pids.display()
        );
        let ran = run_job(Program::Shell(line), Duration::from_millis(500), 65_536);
        assert_eq!((ran.end, ran.output.as_str()), (End::TimedOut, "begun"));
        assert!(
            ran.took >= GRACE && ran.took < GRACE + Duration::from_secs(5),
            "{:?}",
            ran.took
        );
        for pid in std::fs::read_to_string(&pids).unwrap().lines() {
            assert!(is_gone(pid), "{pid} is still there");
        }
    }

    #[test]
    fn term_is_enough_for_a_command_that_heeds_it() {
        let ran = run_job(
            Program::Shell("trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done".into()),
            Duration::from_millis(300),
            65_536,
        );
        assert_eq!((ran.end, ran.output.as_str()), (End::TimedOut, "bye"));
        assert!(ran.took < GRACE, "{:?}", ran.took);
    }

    #[test]
    fn a_descendant_that_ignores_term_is_killed_though_the_shell_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let line = format!(
            "(trap '' TERM; while :; do sleep 100; done) & echo $! > {}; wait",
            pid.display()
        );
        let ran = run_job(Program::Shell(line), Duration::from_millis(500), 65_536);
        assert_eq!(ran.end, End::TimedOut);
        assert!(is_gone(std::fs::read_to_string(&pid).unwrap().trim()));
    }

    #[test]
    fn a_descendant_that_holds_the_output_neither_delays_the_end_nor_is_killed() {
        let ran = sh("sleep 20 & echo $!");
        assert_eq!(ran.end, End::Exited(0));
        assert!(ran.took < Duration::from_secs(10), "{:?}", ran.took);
        assert!(!is_gone(&ran.output));
        let pid = Pid::from_raw(ran.output.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }

    #[test]
    fn a_command_ends_when_the_monitor_stops() {
        let (stop, stopped) = UnixStream::pair().unwrap();
        let job = job(Program::Shell("echo begun; exec sleep 100".into()));
        thread::scope(|scope| {
            let report = scope.spawn(|| run(&job, &Scopes::default(), stopped.as_fd()));
            drop(stop);
            match report.join().unwrap() {
                Report::Finished {
                    end: End::Stopped, ..
                } => {}
                other => panic!("{other:?}"),
            }
        });
    }

    /// Whether a process is gone, or only waits for init to take note.
    fn is_gone(pid: &str) -> bool {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat
                .rsplit_once(')')
                .is_some_and(|(_, rest)| rest.starts_with(" Z")),
            Err(_) => true,
        }
    }
}
