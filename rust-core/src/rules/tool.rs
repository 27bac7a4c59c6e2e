//! Rule files outside of a daemon: checked, and tried with what was recorded.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::check::{check_commands, check_dialect, check_matches, sort, Finding, Weight};
use super::episode::Ended;
use super::files::Directory;
use super::lua::{Broken, Environment, Limits, LuaState, Plain, Source};
use super::record;
use super::replay::{Happening, Replay, What};
use super::task::Action;
use super::{Evaluate as _, Sample, Subject};
use crate::clock::iso8601;
use crate::daemon::{
    Daemon, DataSource, DataValue, LogLevel, Notification, SourceType, ValueList, Verb,
};
use crate::logging::{Device, Logger, Threshold};
use crate::settings::{Block, Services, Settings};

/// What is looked at, and how.
#[derive(Debug)]
pub struct Tool {
    /// Where the rule files are.
    pub directory: PathBuf,
    /// What they may do.
    pub limits: Limits,
    /// The commands that the host has, if that is known.
    pub services: Option<Services>,
    /// The name of the host that they run on.
    pub hostname: String,
}

/// What has come of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many values and notifications there were.
    pub subjects: usize,
    /// How many actions would have been run.
    pub runs: usize,
    /// How often a rule has failed.
    pub failures: usize,
    /// The handlers that nothing was for.
    pub unmatched: Vec<String>,
}

/// Reads the services of a host from its JSON file.
pub fn read_services(path: &Path) -> Result<Services, String> {
    // Without rules there would have to be a broker.
    let block = Block::default()
        .with("LocalMonitorConfigDir", "/")
        .with("MonitorConfigPath", &*path.to_string_lossy());
    let settings = Settings::read(&block).map_err(|problems| problems.to_string())?;
    let mut services = settings.services;
    let none = || format!("{}: has no Services", path.display());
    services.current().cloned().ok_or_else(none)
}

impl Tool {
    /// Everything that can be said about the files without running their handlers.
    pub fn check(&self) -> Result<Vec<Finding>, String> {
        let daemon = Arc::new(Recorded::new(&self.hostname));
        let logger = Logger::new(daemon.clone(), Device::Collectd, Threshold::Debug);
        let _entered = logger.enter();
        let mut findings = Vec::new();
        for sources in self.read()? {
            for source in &sources {
                let text = String::from_utf8_lossy(&source.text);
                findings.extend(check_dialect(&source.name, &text, self.limits.sandbox));
                if let Some(services) = &self.services {
                    findings.extend(check_commands(&source.name, &text, services));
                }
            }
            let (state, broken) = self.load(&sources, &daemon)?;
            findings.extend(check_matches(state.handlers()));
            for source in &sources {
                let broken = broken.iter().find(|broken| broken.file == source.name);
                let has_handlers = state.handlers().iter().any(|h| h.file == source.name);
                let (weight, what) = match broken {
                    Some(broken) => (Weight::Error, broken.why.clone()),
                    None if has_handlers => continue,
                    None => (Weight::Warning, "returns no handlers".to_owned()),
                };
                findings.push(Finding {
                    place: source.name.to_string(),
                    line: None,
                    weight,
                    what,
                });
            }
        }
        sort(&mut findings);
        Ok(findings)
    }

    /// Gives the rules what was recorded, and tells each thing that would happen. Every action is taken to end at
    /// once with this status, if the host has its command.
    pub fn replay(
        &self,
        recordings: &[PathBuf],
        status: u8,
        mut tell: impl FnMut(&Happening),
    ) -> Result<Summary, String> {
        let mut subjects = Vec::new();
        for recording in recordings {
            subjects.extend(record::read(recording)?);
        }
        subjects.sort_by_key(Subject::time);
        let daemon = Arc::new(Recorded::new(&self.hostname));
        let logger = Logger::new(daemon.clone(), Device::Collectd, Threshold::Debug);
        let _entered = logger.enter();
        let mut summary = Summary {
            subjects: subjects.len(),
            ..Summary::default()
        };
        let mut replays = Vec::new();
        for sources in self.read()? {
            let (state, broken) = self.load(&sources, &daemon)?;
            if let Some(Broken { file, why }) = broken.into_iter().next() {
                return Err(format!("{file}: {why}"));
            }
            let (services, hostname) = (self.services.clone(), self.hostname.clone());
            let end = move |action: &Action| end(action, services.as_ref(), &hostname, status);
            replays.push(Replay::new(state, Box::new(end)));
        }
        for subject in &subjects {
            daemon.see(subject);
            for replay in &mut replays {
                let mut happenings = daemon.take(subject);
                happenings.extend(replay.subject(subject));
                happenings.extend(daemon.take(subject));
                for happening in &happenings {
                    match &happening.what {
                        What::Run { .. } => summary.runs += 1,
                        What::Fail { .. } => summary.failures += 1,
                        What::Notify { .. } | What::Log { .. } => {}
                    }
                    tell(happening);
                }
            }
        }
        let unmatched = replays.iter().flat_map(Replay::unmatched);
        summary.unmatched = unmatched.map(str::to_owned).collect();
        Ok(summary)
    }

    /// The files of each state.
    fn read(&self) -> Result<Vec<Vec<Source>>, String> {
        let directory = &self.directory;
        std::fs::read_dir(directory)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        let found = Directory::new(directory, false).look();
        let found = found.ok_or_else(|| format!("{}: has no rule files", directory.display()))?;
        if let Some(problem) = found.problems.into_iter().next() {
            return Err(problem);
        }
        let (isolated, shared): (Vec<_>, Vec<_>) =
            found.sources.into_iter().partition(Source::is_isolated);
        let mut states: Vec<_> = isolated.into_iter().map(|source| vec![source]).collect();
        if !shared.is_empty() {
            states.insert(0, shared);
        }
        if states.is_empty() {
            return Err(format!("{}: has no rule files", directory.display()));
        }
        Ok(states)
    }

    fn load(
        &self,
        sources: &[Source],
        daemon: &Arc<Recorded>,
    ) -> Result<(LuaState, Vec<Broken>), String> {
        let environment = Environment {
            daemon: daemon.clone(),
            directory: self.directory.clone(),
            limits: self.limits,
            strict: false,
        };
        LuaState::load(sources, &environment, &Plain::Nil)
    }
}

/// How an action is taken to end.
fn end(action: &Action, services: Option<&Services>, hostname: &str, status: u8) -> Ended {
    let ended = match status {
        0 => Ended::Succeeded,
        status => Ended::Failed(format!("exit status {status}")),
    };
    let (
        Action::Command {
            host,
            service,
            command,
            params,
        },
        Some(services),
    ) = (action, services)
    else {
        return ended;
    };
    if host.as_deref().is_some_and(|host| host != hostname) {
        return ended;
    }
    let Some(known) = services.0.get(service) else {
        return Ended::NotRun(format!("there is no service {service:?}"));
    };
    match known.commands.get(command) {
        None => Ended::NotRun(format!(
            "the service {service:?} has no command {command:?}"
        )),
        Some(spec) => match spec.parameters.fill(&spec.program, params) {
            Ok(_) => ended,
            Err(why) => Ended::NotRun(why),
        },
    }
}

/// The daemon as it was when something was recorded.
struct Recorded {
    hostname: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: Duration,
    last: HashMap<String, (Arc<Sample>, Option<Vec<f64>>)>,
    types: BTreeMap<String, Vec<DataSource>>,
    /// What the rules said and sent.
    told: Vec<What>,
}

impl Recorded {
    fn new(hostname: &str) -> Self {
        Self {
            hostname: hostname.to_owned(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is only ever changed as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a value into the cache, as the daemon does before it writes it.
    fn see(&self, subject: &Subject) {
        let mut state = self.state();
        state.now = subject
            .time()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if let Subject::Metric(sample) = subject {
            let name = subject.identifier();
            let before = state.last.get(&name).map(|(before, _)| Arc::clone(before));
            let rates = rates(before.as_deref(), sample);
            state.last.insert(name, (Arc::clone(sample), rates));
            let series = &sample.series;
            state
                .types
                .insert(series.type_.clone(), series.sources.clone());
        }
    }

    /// What the rules have said since the last time.
    fn take(&self, subject: &Subject) -> Vec<Happening> {
        let told = std::mem::take(&mut self.state().told);
        let happening = |what| Happening {
            time: iso8601(subject.time()),
            rule: "-".to_owned(),
            series: subject.identifier(),
            what,
        };
        told.into_iter().map(happening).collect()
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate is not exact")]
fn rates(before: Option<&Sample>, now: &Sample) -> Option<Vec<f64>> {
    let seconds = |before: &Sample| Some(now.time.duration_since(before.time).ok()?.as_secs_f64());
    let passed = before.and_then(seconds).filter(|seconds| *seconds > 0.0);
    let rate = |(at, value): (usize, &DataValue)| {
        let before = before.and_then(|before| before.values.get(at));
        let passed = passed.unwrap_or(f64::NAN);
        match (*value, before) {
            (DataValue::Gauge(value), _) => value,
            (DataValue::Absolute(count), _) => count as f64 / now.interval.as_secs_f64(),
            (DataValue::Derive(new), Some(DataValue::Derive(old))) => {
                new.wrapping_sub(*old) as f64 / passed
            }
            // It wraps around at 32 bits or at 64.
            (DataValue::Counter(new), Some(DataValue::Counter(old))) => {
                let more = match (new < *old, *old <= u64::from(u32::MAX)) {
                    (true, true) => (u64::from(u32::MAX) - old) + new + 1,
                    _ => new.wrapping_sub(*old),
                };
                more as f64 / passed
            }
            _ => f64::NAN,
        }
    };
    Some(now.values.iter().enumerate().map(rate).collect())
}

impl Daemon for Recorded {
    fn log(&self, level: LogLevel, line: &str) {
        let level = match level {
            LogLevel::Error => "error",
            LogLevel::Warning => "warning",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        };
        let message = line.to_owned();
        self.state().told.push(What::Log { level, message });
    }

    fn syslog(&self, level: LogLevel, line: &str) {
        self.log(level, line);
    }

    fn dispatch_notification(&self, notification: &Notification) -> bool {
        self.state().told.push(What::Notify {
            severity: notification.severity.name(),
            message: notification.message.clone(),
            dry: false,
        });
        true
    }

    fn data_sources(&self, type_: &str) -> Option<Vec<DataSource>> {
        let known = self.state().types.get(type_).cloned();
        // Most types are like this, and nobody has types.db here.
        let usual = || DataSource {
            name: "value".to_owned(),
            type_: SourceType::Gauge,
        };
        Some(known.unwrap_or_else(|| vec![usual()]))
    }

    fn dispatch_values(&self, values: &ValueList) -> bool {
        let message = format!("dispatches {:?} of {}", values.values, values.type_);
        let level = "value";
        self.state().told.push(What::Log { level, message });
        true
    }

    fn last_values(&self, series: &str) -> Option<Vec<DataValue>> {
        Some(self.state().last.get(series)?.0.values.clone())
    }

    fn rates(&self, series: &str) -> Option<Vec<f64>> {
        self.state().last.get(series)?.1.clone()
    }

    fn change_plugin(&self, _: Verb, _: &str) -> Result<String, String> {
        // Actions are told, and not run.
        Err("There is no daemon.".to_owned())
    }

    fn hostname(&self) -> String {
        self.hostname.clone()
    }

    fn state_dir(&self) -> PathBuf {
        // Nothing that is tried here is to outlive it.
        PathBuf::from("/nonexistent")
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + self.state().now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tool(files: &[(&str, &str)]) -> (tempfile::TempDir, Tool) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let tool = Tool {
            directory: directory.path().to_owned(),
            limits: Limits::default(),
            services: None,
            hostname: "node1".into(),
        };
        (directory, tool)
    }

    /// The lines of a replay of free memory, one value each ten seconds.
    fn told(tool: &Tool, values: &[f64]) -> (Vec<String>, Summary) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node1/memory");
        fs::create_dir_all(&path).unwrap();
        let mut text = "epoch,value\n".to_owned();
        for (at, value) in values.iter().enumerate() {
            text.push_str(&format!("{},{value}\n", 1_000_000_000 + 10 * at));
        }
        fs::write(path.join("memory-free"), text).unwrap();
        let mut lines = Vec::new();
        let recordings = [directory.path().to_owned()];
        let summary = tool.replay(&recordings, 0, |happening| {
            let line = happening.line();
            lines.push(line.split_once("01:").unwrap().1.to_owned());
        });
        (lines, summary.unwrap())
    }

    const LOW: &str = r#"
return {
  low = {
    match = { plugin = "memory", type_instance = "free" },
    handler = function(m)
      if m.values[1] < 100 then
        return { service = "web", command = "restart", ["for"] = "20s", verify = "1m", escalate = { { service = "web", command = "reset" } } }
      end
    end,
  },
  other = { match = { plugin = "cpu" }, handler = function() error("never") end },
}
"#;

    #[test]
    fn a_recording_tells_what_would_be_done() {
        let (_directory, mut tool) = tool(&[("memory.lua", LOW)]);
        let (lines, summary) = told(&tool, &[500.0, 50.0, 40.0, 30.0, 40.0, 400.0, 500.0]);
        assert_eq!(
            lines,
            [
                "47:10Z  memory::metric::low  node1/memory/memory-free  run: web restart",
                "47:30Z  memory::metric::low  node1/memory/memory-free  OKAY: recovered 20 s after web restart",
            ]
        );
        assert_eq!(summary.subjects, 7);
        assert_eq!((summary.runs, summary.failures), (1, 0));
        assert_eq!(summary.unmatched, ["memory::metric::other"]);
        // A host without such a service.
        tool.services = Some(Services::default());
        let (lines, _) = told(&tool, &[50.0, 50.0, 50.0]);
        let ends: Vec<_> = lines
            .iter()
            .map(|line| line.rsplit_once("free  ").unwrap().1)
            .collect();
        assert_eq!(
            ends,
            [
                "run: web restart",
                "WARNING: web restart has not helped (there is no service \"web\"), next is web reset",
                "run: web reset (step 2)",
                "FAILURE: web reset has not helped (there is no service \"web\"), nothing is done until the condition is cleared",
            ]
        );
    }

    #[test]
    fn what_rules_say_and_how_they_fail_is_told() {
        let rule = r#"return function(m)
            collectd.log_info("free: " .. m.values[1])
            if m.values[1] > 1 then error("oh") end
        end"#;
        let (_directory, tool) = tool(&[
            ("f.lua", rule),
            (
                "g.lua",
                "-- monitor: isolated\nreturn function() return 5 end",
            ),
        ]);
        let (lines, summary) = told(&tool, &[1.0, 2.0]);
        assert!(
            lines
                .iter()
                .any(|line| line.contains("info: ") && line.contains("free: 2")),
            "{lines:?}"
        );
        assert!(
            lines
                .iter()
                .any(|line| line.contains("f::metric") && line.contains("f.lua:3: oh")),
            "{lines:?}"
        );
        assert!(
            lines
                .iter()
                .any(|line| line.contains("g::metric") && line.contains("fails: ")),
            "{lines:?}"
        );
        assert_eq!(summary.failures, 3);
    }

    #[test]
    fn files_are_checked() {
        let (_directory, mut tool) = tool(&[
            ("a.lua", "return function( end"),
            ("b.lua", "local x = 1"),
            (
                "c.lua",
                r#"return { match = { plguin = "x" }, handler = function() os.exit(1) end }"#,
            ),
            (
                "d.lua",
                r#"return function() return { service = "web", command = "x" } end"#,
            ),
        ]);
        tool.services = Some(Services::default());
        let findings = tool.check().unwrap();
        let told: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 5, "{told:#?}");
        assert!(told[0].starts_with("a: error: a.lua:1:"), "{told:?}");
        assert_eq!(told[1], "b: warning: returns no handlers");
        assert!(
            told[2].starts_with("c: error: ") && told[2].contains("plguin"),
            "{told:?}"
        );
        assert!(
            told[3].starts_with("c:1: error: os.exit is refused"),
            "{told:?}"
        );
        assert_eq!(told[4], "d:1: error: there is no service \"web\"");
    }
}
