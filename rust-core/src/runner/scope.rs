//! Under systemd, a scope of its own for each command, so that what a command leaves behind is not ended with
//! the daemon's service.
//!
//! `systemd-run --scope` makes one and becomes what it is told to run: this program once more, which says on its
//! standard input that it got so far, and then becomes the command. So whoever hears nothing knows that
//! the command has not run, and may run it without a scope.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};

use super::Job;
use crate::ffi::os;

/// What this program is told to become a command.
pub(super) const ARGUMENT: &str = "--in-scope";
/// How long systemd may take to make a scope.
const PATIENCE: Duration = Duration::from_secs(5);

/// What becoming a user changes in the environment.
const OF_USER: [&str; 4] = ["HOME", "USER", "LOGNAME", "SHELL"];

/// Said when the scope is there.
const THERE: u8 = b's';
/// Said before the number of the error of exec.
const NOT_EXECUTED: u8 = b'e';
/// Said before a reason in words.
const NOT_STARTED: u8 = b'n';

/// Makes scopes, where that can be done.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    systemd_run: Option<PathBuf>,
    /// This program.
    program: PathBuf,
    failed: AtomicBool,
}

/// What became of a command.
pub(super) enum Started {
    /// It runs.
    Running(Child),
    /// There is no scope, and the command has not run.
    NoScope,
    /// There is a scope, and the command cannot be executed.
    Failed(io::Error),
    /// The same for a reason in words.
    Refused(String),
}

impl Scopes {
    /// Looks whether this is a service of systemd.
    pub(super) fn detect() -> Self {
        let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let is_there = Path::new("/run/systemd/system").is_dir();
        let paths = ["/usr/bin/systemd-run", "/bin/systemd-run"];
        let systemd_run = paths.iter().map(PathBuf::from).find(|path| path.is_file());
        Self {
            systemd_run: systemd_run.filter(|_| is_there && is_service(&cgroup)),
            program: std::env::current_exe().unwrap_or_default(),
            failed: AtomicBool::new(false),
        }
    }

    /// With this program in the place of `systemd-run`, and this in the place of the helper's own.
    #[cfg(test)]
    fn with(systemd_run: &Path, program: &Path) -> Self {
        Self {
            systemd_run: Some(systemd_run.to_owned()),
            program: program.to_owned(),
            failed: AtomicBool::new(false),
        }
    }

    /// The words that run a command in a scope, but for the command itself.
    fn words(&self, job: &Job) -> Option<Vec<OsString>> {
        let systemd_run = self.systemd_run.as_ref()?;
        if self.failed.load(Ordering::Relaxed) {
            return None;
        }
        let unit = format!("--unit=collectd-monitor-{}-{}", std::process::id(), job.id);
        let mut words: Vec<OsString> = vec![systemd_run.into()];
        words.extend(["--scope", "--quiet", "--collect"].map(OsString::from));
        words.push(unit.into());
        words.push("--description=Command of collectd's plugin monitor".into());
        words.push("--".into());
        words.push((&self.program).into());
        words.push(ARGUMENT.into());
        words.push(job.user.clone().unwrap_or_default().into());
        words.push(job.group.clone().unwrap_or_default().into());
        // The user's own are only used where the configuration has none.
        let given = OF_USER.iter().filter(|name| job.env.contains_key(**name));
        words.push(given.copied().collect::<Vec<_>>().join(",").into());
        Some(words)
    }

    /// Starts a command in a scope of its own. The function adds what every command is started with.
    pub(super) fn start(
        &self,
        job: &Job,
        command: &[&str],
        prepare: impl Fn(&mut Command),
    ) -> Started {
        let Some(words) = self.words(job) else {
            return Started::NoScope;
        };
        let started = self.try_start(&words, command, prepare);
        if matches!(started, Started::NoScope) {
            // Commands must not wait for it each time.
            self.failed.store(true, Ordering::Relaxed);
        }
        started
    }

    fn try_start(
        &self,
        words: &[OsString],
        command: &[&str],
        prepare: impl Fn(&mut Command),
    ) -> Started {
        let Ok((heard, said)) = UnixStream::pair() else {
            return Started::NoScope;
        };
        let Some((program, arguments)) = words.split_first() else {
            return Started::NoScope;
        };
        let mut wrapped = Command::new(program);
        wrapped.args(arguments).args(command);
        prepare(&mut wrapped);
        wrapped.stdin(Stdio::from(OwnedFd::from(said)));
        let spawned = wrapped.spawn();
        // It holds a copy of the end that must close.
        drop(wrapped);
        let Ok(mut child) = spawned else {
            return Started::NoScope;
        };
        let text = hear(&heard, Instant::now() + PATIENCE);
        let started = match text.as_deref().and_then(<[u8]>::split_first) {
            Some((&THERE, [])) => return Started::Running(child),
            Some((&THERE, [NOT_EXECUTED, number @ ..])) => {
                let number = std::str::from_utf8(number).unwrap_or_default().parse();
                Started::Failed(
                    number.map_or_else(|_| ErrorKind::Other.into(), io::Error::from_raw_os_error),
                )
            }
            Some((&THERE, [NOT_STARTED, why @ ..])) => {
                Started::Refused(String::from_utf8_lossy(why).into_owned())
            }
            _ => Started::NoScope,
        };
        // One that still waits for systemd must not run the command later.
        if child.kill().is_err() {
            // It is gone already.
        }
        if child.wait().is_err() {
            // Nobody else waits for it; there is nothing to be done.
        }
        started
    }
}

/// What is said until the other end closes.
fn hear(heard: &UnixStream, until: Instant) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok()?;
        let mut fds = [PollFd::new(heard, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        }
        let mut chunk = [0; 1024];
        match rustix::io::read(heard, &mut chunk) {
            Ok(0) => return Some(text),
            Ok(count) => text.extend_from_slice(&chunk[..count]),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Whether a process with such a file `cgroup` belongs to a service.
fn is_service(cgroup: &str) -> bool {
    cgroup.lines().any(|line| {
        // Number, controllers, path. systemd's own hierarchy has no controller, or is the only one.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next(), parts.next().unwrap_or_default());
        matches!(controllers, Some("" | "name=systemd")) && path.ends_with(".service")
    })
}

/// Becomes a command, in the scope that is there by now. What is said of it is standard input.
pub(super) fn become_command(words: &[String]) -> ExitCode {
    let Ok(said) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let say = |text: &[u8]| {
        // Whoever does not listen any more has given up on this command.
        rustix::io::write(&said, text).is_ok_and(|count| count == text.len())
    };
    let [user, group, keep, program, arguments @ ..] = words else {
        return ExitCode::FAILURE;
    };
    if !say(&[THERE]) {
        return ExitCode::FAILURE;
    }
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let name = |text: &String| (!text.is_empty()).then(|| text.clone());
    let (user, group) = (name(user), name(group));
    if user.is_some() || group.is_some() {
        match os::Identity::find(user.as_deref(), group.as_deref()) {
            Ok(identity) => {
                identity.assume(&mut command);
                for name in keep.split(',') {
                    if let Some(value) = std::env::var_os(name) {
                        command.env(name, value);
                    }
                }
            }
            Err(why) => {
                say(&[&[NOT_STARTED], why.as_bytes()].concat());
                return ExitCode::FAILURE;
            }
        }
    }
    let error = command.exec();
    let number = error.raw_os_error().unwrap_or(0).to_string();
    say(&[&[NOT_EXECUTED], number.as_bytes()].concat());
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{CommandSpec, Program};

    fn job(user: Option<&str>) -> Job {
        let program = Program::Argv(vec!["/bin/true".into()]);
        let mut spec = CommandSpec::new(program.clone(), Duration::from_secs(5));
        spec.user = user.map(str::to_owned);
        spec.env = ["HOME", "X"]
            .map(|name| (name.to_owned(), crate::secret::Secret::new("/")))
            .into();
        Job::new(7, &spec, program)
    }

    #[test]
    fn only_a_service_of_systemd_has_scopes() {
        for (cgroup, expected) in [
            ("0::/system.slice/collectd.service\n", true),
            (
                "1:name=systemd:/system.slice/collectd.service\n0::/\n",
                true,
            ),
            ("0::/user.slice/user-0.slice/session-1.scope\n", false),
            ("0::/\n", false),
            (
                "4:memory:/system.slice/collectd.service\n0::/other\n",
                false,
            ),
            ("", false),
        ] {
            assert_eq!(is_service(cgroup), expected, "{cgroup:?}");
        }
    }

    #[test]
    fn the_words_are_those_that_systemd_run_knows() {
        let scopes = Scopes::with(Path::new("/usr/bin/systemd-run"), Path::new("/runner"));
        let unit = format!("--unit=collectd-monitor-{}-7", std::process::id());
        assert_eq!(
            scopes.words(&job(Some("www-data"))).unwrap(),
            [
                "/usr/bin/systemd-run",
                "--scope",
                "--quiet",
                "--collect",
                unit.as_str(),
                "--description=Command of collectd's plugin monitor",
                "--",
                "/runner",
                "--in-scope",
                "www-data",
                "",
                "HOME",
            ]
        );
        assert_eq!(Scopes::default().words(&job(None)), None);
    }

    /// A program in the place of systemd-run that does this with what stands behind `--`.
    fn fake(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("systemd-run");
        let skip = "while [ \"$1\" != -- ]; do shift; done; shift";
        std::fs::write(&path, format!("#!/bin/sh\n{skip}\n{script}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        path
    }

    #[test]
    fn without_a_scope_the_command_has_not_run_and_the_next_one_does_not_ask() {
        let dir = tempfile::tempdir().unwrap();
        let ran = dir.path().join("ran");
        let touch = ["/usr/bin/touch", ran.to_str().unwrap()];
        for systemd_run in [
            fake(dir.path(), "echo no >&2; exit 1"),
            "/nonexistent".into(),
        ] {
            let scopes = Scopes::with(&systemd_run, Path::new("/bin/false"));
            for _ in 0..2 {
                let started = scopes.start(&job(None), &touch, |_| {});
                assert!(matches!(started, Started::NoScope));
            }
            assert_eq!(scopes.words(&job(None)), None);
        }
        assert!(!ran.exists());
    }

    #[test]
    fn what_is_said_in_the_scope_decides() {
        let dir = tempfile::tempdir().unwrap();
        let start = |script: &str| {
            let systemd_run = fake(dir.path(), script);
            let scopes = Scopes::with(&systemd_run, Path::new("/bin/false"));
            scopes.start(&job(None), &["/bin/true"], |_| {})
        };
        match start("printf s >&0; exec 0</dev/null; exit 3") {
            Started::Running(mut child) => assert_eq!(child.wait().unwrap().code(), Some(3)),
            _ => panic!("it runs"),
        }
        match start("printf se2 >&0") {
            Started::Failed(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
            _ => panic!("there is no such file"),
        }
        match start("printf 'snno such user' >&0") {
            Started::Refused(why) => assert_eq!(why, "no such user"),
            _ => panic!("it is refused"),
        }
    }
}
