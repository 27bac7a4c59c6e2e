//! The audit log: one line of JSON for each decision, with who asked, for what, and why it was decided so.
//!
//! Lines are written by a thread of their own: a disk that hangs must not hold up a recovery. Each is written with
//! one call, and is not waited for until it is on the disk: it outlives the daemon, but not always the machine. The
//! system's log gets the same line. The file is opened anew when it is not the one of that name any more, so it can
//! be rotated by renaming it, or by copying and truncating it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{bounded, Receiver, Sender, TrySendError};
use serde::Serialize;
use tracing::{error, info};

use super::{Authority, Requester};
use crate::clock::iso8601;
use crate::daemon::{Daemon, LogLevel};
use crate::files;
use crate::protocol::Code;

/// How many lines may wait for the disk.
const WAITING: usize = 4096;
/// The longest name of a service, a command or the like that is written. Whoever sends longer ones is not known to
/// the configuration.
const MAX_NAME: usize = 256;
/// How many lines nobody who is known has caused are written in one go, and how many a second after that. Whoever
/// can publish to the topic, or open the control socket, could fill the disk otherwise.
const BURST: u32 = 1000;
const PER_SECOND: u32 = 20;

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Whoever has this key.
    Key(String),
    /// Somebody who claims to have this key.
    ClaimedKey(String),
    /// Somebody who can publish to the topic.
    Unsigned,
    /// This user, on the control socket.
    Uid(u32),
    /// This user, on the control socket, who may change nothing.
    #[serde(rename = "uid")]
    OtherUid(u32),
    /// A plugin of this daemon.
    Plugin(String),
    /// A rule of this host.
    Rule,
    /// The monitor itself.
    Monitor,
}

impl From<&Authority> for By {
    fn from(authority: &Authority) -> Self {
        match authority {
            Authority::Local => By::Rule,
            Authority::Unsigned => By::Unsigned,
            Authority::Key(signed) => By::Key(signed.kid.clone()),
        }
    }
}

impl From<&Requester> for By {
    fn from(requester: &Requester) -> Self {
        match requester {
            Requester::Other(uid) => By::OtherUid(*uid),
            Requester::Group(uid) | Requester::Owner(uid) => By::Uid(*uid),
            Requester::Plugin(name) => By::Plugin(name.clone()),
        }
    }
}

impl By {
    /// Where somebody comes from whom nobody has given a right, and who could fill the disk.
    fn door(&self) -> Option<Door> {
        match self {
            By::ClaimedKey(_) | By::Unsigned => Some(Door::Topic),
            By::OtherUid(_) => Some(Door::Socket),
            By::Key(_) | By::Uid(_) | By::Plugin(_) | By::Rule | By::Monitor => None,
        }
    }
}

/// Where somebody can come in whom nobody knows.
#[derive(Clone, Copy, Debug)]
enum Door {
    Topic,
    Socket,
}

/// A decision.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Who asked.
    pub by: By,
    /// What it was addressed to.
    pub targets: Vec<String>,
    /// What it was about.
    pub kind: &'static str,
    /// The service of a command.
    pub service: Option<String>,
    /// The command.
    pub command: Option<String>,
    /// The plugin.
    pub plugin: Option<String>,
    /// What the sender calls it.
    pub task: Option<String>,
    /// SHA-256 of the configurations that it is about, in hexadecimal digits.
    pub configurations: Vec<String>,
    /// What was decided, in a word.
    pub decision: &'static str,
    /// The code of a refusal.
    pub code: Option<Code>,
    /// Why, in words that hold no value of anything.
    pub reason: String,
}

impl Decision {
    /// A decision about something of a kind.
    pub fn new(by: By, kind: &'static str) -> Self {
        Self {
            by,
            targets: Vec::new(),
            kind,
            service: None,
            command: None,
            plugin: None,
            task: None,
            configurations: Vec::new(),
            decision: "allowed",
            code: None,
            reason: String::new(),
        }
    }

    /// The same, refused.
    #[must_use]
    pub fn refused(mut self, code: Option<Code>, reason: impl Into<String>) -> Self {
        self.decision = "refused";
        self.code = code;
        self.reason = reason.into();
        self
    }
}

#[derive(Serialize)]
struct Wire<'a> {
    time: String,
    host: &'a str,
    by: &'a By,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    targets: &'a [String],
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    configurations: &'a [String],
    decision: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    not_logged_before: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_NAME);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Takes decisions, from any thread. Never waits.
#[derive(Debug)]
pub struct Audit {
    host: String,
    /// None where nobody wants to know.
    lines: Option<Sender<String>>,
    /// Lines that were not written.
    lost: Arc<AtomicU64>,
    /// How much may be written of those who come in by each door.
    doors: [Mutex<Allowance>; 2],
}

/// How many lines may be written that nobody known has caused, and since when. Who floods one door does not keep
/// those at the other out of the log.
#[derive(Debug)]
struct Allowance(f64, Instant);

impl Audit {
    /// A log that nobody writes.
    pub fn none(host: &str) -> Self {
        Self::with(host, None, Arc::default())
    }

    fn with(host: &str, lines: Option<Sender<String>>, lost: Arc<AtomicU64>) -> Self {
        Self {
            host: host.to_owned(),
            lines,
            lost,
            doors: [(); 2].map(|()| Mutex::new(Allowance(f64::from(BURST), Instant::now()))),
        }
    }

    /// A log to a file, to the system's log, or to both.
    pub(crate) fn new(
        host: &str,
        file: Option<PathBuf>,
        syslog: Option<Arc<dyn Daemon>>,
    ) -> (Self, Option<Writer>) {
        if file.is_none() && syslog.is_none() {
            return (Self::none(host), None);
        }
        let (lines, waiting) = bounded(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            waiting,
            path: file,
            file: None,
            syslog,
            failed: None,
            unfinished: false,
            lost: Arc::clone(&lost),
        };
        (Self::with(host, Some(lines), lost), Some(writer))
    }

    /// How many lines were not written: the disk or the queue was full, or there were too many from nobody known.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Writes a decision down.
    pub fn record(&self, decision: &Decision, now: SystemTime) {
        let Some(lines) = &self.lines else { return };
        if decision.by.door().is_some_and(|door| !self.has_room(door)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let by = match &decision.by {
            By::ClaimedKey(kid) => &By::ClaimedKey(cut(kid).to_owned()),
            by => by,
        };
        let wire = Wire {
            time: iso8601(now),
            host: &self.host,
            by,
            targets: &decision.targets,
            kind: decision.kind,
            service: decision.service.as_deref().map(cut),
            command: decision.command.as_deref().map(cut),
            plugin: decision.plugin.as_deref().map(cut),
            task_id: decision.task.as_deref().map(cut),
            configurations: &decision.configurations,
            decision: decision.decision,
            code: decision.code.map(Code::number),
            reason: &decision.reason,
            not_logged_before: self.lost(),
        };
        // Strings and numbers can always be written.
        let line = serde_json::to_string(&wire).unwrap_or_default();
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = lines.try_send(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether there is room for one more line that nobody known has caused.
    fn has_room(&self, door: Door) -> bool {
        let mut allowance = self.doors[door as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Allowance(left, since) = &mut *allowance;
        let passed = since.elapsed().as_secs_f64();
        *since = Instant::now();
        *left = (*left + passed * f64::from(PER_SECOND)).min(f64::from(BURST));
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

/// Writes the lines. Belongs to a thread, which ends when the log is gone.
pub(crate) struct Writer {
    waiting: Receiver<String>,
    path: Option<PathBuf>,
    file: Option<File>,
    syslog: Option<Arc<dyn Daemon>>,
    /// What went wrong, and was said.
    failed: Option<String>,
    /// The last line was not written to its end.
    unfinished: bool,
    lost: Arc<AtomicU64>,
}

impl Writer {
    /// Writes until there is nothing left to write.
    pub(crate) fn run(mut self) {
        while let Ok(line) = self.waiting.recv() {
            if let Some(daemon) = &self.syslog {
                daemon.syslog(LogLevel::Info, &format!("collectd-live audit: {line}"));
            }
            self.write(&line);
        }
    }

    fn write(&mut self, line: &str) {
        let Some(path) = self.path.clone() else {
            return;
        };
        match self.append(&path, line) {
            Ok(()) => {
                if self.failed.take().is_some() {
                    info!("the audit log {} is written again", path.display());
                }
            }
            Err(why) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                if self.failed.as_ref() != Some(&why) {
                    error!("the audit log {} cannot be written: {why}", path.display());
                }
                self.failed = Some(why);
            }
        }
    }

    fn append(&mut self, path: &std::path::Path, line: &str) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        if let Some(file) = &self.file {
            let ours = file.metadata().map_err(text)?;
            let there = std::fs::symlink_metadata(path).ok();
            // It was renamed or deleted. What was written is in the old one.
            if there.is_none_or(|there| (there.dev(), there.ino()) != (ours.dev(), ours.ino())) {
                self.file = None;
            }
        }
        if self.file.is_none() {
            self.file = Some(open(path)?);
            self.unfinished = false;
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let start = if self.unfinished { "\n" } else { "" };
        self.unfinished = true;
        file.write_all(format!("{start}{line}\n").as_bytes())
            .map_err(text)?;
        self.unfinished = false;
        Ok(())
    }
}

fn open(path: &std::path::Path) -> Result<File, String> {
    let text = |error: std::io::Error| error.to_string();
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(text)?;
    let metadata = file.metadata().map_err(text)?;
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    files::check_own(path, &file).map_err(|error| error.to_string())?;
    Ok(file)
}

/// How long the lines may take to be written when the monitor stops.
pub(crate) const STOP_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeDaemon;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::thread;

    fn decision(by: By) -> Decision {
        let mut decision = Decision::new(by, "command");
        decision.service = Some("web".into());
        decision.command = Some("restart".into());
        decision
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        text.lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    #[test]
    fn a_decision_is_one_line_in_the_file_and_in_the_systems_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let daemon = Arc::new(FakeDaemon::new("h"));
        let syslog = Arc::clone(&daemon) as Arc<dyn Daemon>;
        let (audit, writer) = Audit::new("h", Some(path.clone()), Some(syslog));
        let refusal =
            decision(By::Key("alice".into())).refused(Some(Code::NotPermitted), "no\nway");
        audit.record(&refusal, SystemTime::UNIX_EPOCH);
        drop(audit);
        writer.unwrap().run();
        let [line] = &lines(&path)[..] else {
            panic!("one line")
        };
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00Z", "host": "h", "by": { "key": "alice" }, "kind": "command",
            "service": "web", "command": "restart", "decision": "refused", "code": 0x3108, "reason": "no\nway"
        });
        assert_eq!(*line, expected);
        let [(level, logged)] = &daemon.syslog_lines()[..] else {
            panic!("one line")
        };
        assert_eq!(*level, LogLevel::Info);
        assert!(
            logged.starts_with("collectd-live audit: {\"time\""),
            "{logged}"
        );
        assert!(!logged.contains('\n'));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn no_line_is_lost_when_the_file_is_renamed_meanwhile() {
        const LINES: usize = 20_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let (audit, writer) = Audit::new("h", Some(path.clone()), None);
        let writer = writer.unwrap();
        let waiting = writer.waiting.clone();
        let thread = thread::spawn(move || writer.run());
        let mut rotated = 0;
        for line in 0..LINES {
            // The queue is bounded; this test is about the file.
            while waiting.len() >= WAITING {
                thread::yield_now();
            }
            audit.record(
                &decision(By::Uid(u32::try_from(line).unwrap())),
                SystemTime::now(),
            );
            if line % 1000 == 999 && path.exists() {
                fs::rename(&path, dir.path().join(format!("audit.{rotated}"))).unwrap();
                rotated += 1;
            }
        }
        assert_eq!(audit.lost(), 0);
        drop(audit);
        drop(waiting);
        thread.join().unwrap();
        assert!(rotated >= 10, "{rotated}");
        let mut seen = Vec::new();
        for file in fs::read_dir(dir.path()).unwrap() {
            for line in lines(&file.unwrap().path()) {
                seen.push(usize::try_from(line["by"]["uid"].as_u64().unwrap()).unwrap());
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..LINES).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_that_cannot_be_trusted_or_written_is_said_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        for path in [path, "/dev/full".into(), dir.path().to_owned()] {
            let (audit, writer) = Audit::new("h", Some(path.clone()), None);
            audit.record(&decision(By::Uid(0)), SystemTime::now());
            let lost = Arc::clone(&audit.lost);
            drop(audit);
            writer.unwrap().run();
            assert_eq!(lost.load(Ordering::Relaxed), 1, "{}", path.display());
        }
    }

    #[test]
    fn whoever_is_not_known_cannot_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let (audit, writer) = Audit::new("h", Some(path.clone()), None);
        for _ in 0..3000 {
            audit.record(&decision(By::Unsigned), SystemTime::now());
            audit.record(&decision(By::ClaimedKey("x".into())), SystemTime::now());
        }
        audit.record(&decision(By::Key("alice".into())), SystemTime::now());
        let lost = audit.lost();
        drop(audit);
        writer.unwrap().run();
        let lines = lines(&path);
        assert!(lines.len() < 2000, "{}", lines.len());
        let last = lines.last().unwrap();
        assert_eq!(last["by"]["key"], "alice");
        assert_eq!(last["not_logged_before"], lost);
        assert_eq!(lines.len() as u64 + lost, 6001);
    }

    #[test]
    fn whoever_can_open_the_control_socket_cannot_fill_the_disk_nor_hide_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let (audit, writer) = Audit::new("h", Some(path.clone()), None);
        let other = By::from(&Requester::Other(1000));
        for _ in 0..3000 {
            audit.record(&decision(other.clone()), SystemTime::now());
        }
        let lost = audit.lost();
        assert!(lost > 1000, "{lost}");
        audit.record(&decision(By::Unsigned), SystemTime::now());
        audit.record(&decision(By::from(&Requester::Group(7))), SystemTime::now());
        assert_eq!(audit.lost(), lost);
        drop(audit);
        writer.unwrap().run();
        let lines = lines(&path);
        assert_eq!(lines.len() as u64 + lost, 3002);
        assert_eq!(lines[0]["by"], serde_json::json!({ "uid": 1000 }));
        let last = lines.last().unwrap();
        assert_eq!(last["by"], serde_json::json!({ "uid": 7 }));
        assert_eq!(last["not_logged_before"], lost);
    }

    #[test]
    fn a_name_without_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let (audit, writer) = Audit::new("h", Some(path.clone()), None);
        let mut long = decision(By::Key("a".into()));
        long.service = Some("é".repeat(100_000));
        audit.record(&long, SystemTime::now());
        drop(audit);
        writer.unwrap().run();
        assert!(fs::metadata(&path).unwrap().len() < 1000);
    }
}
