//! Where the monitor's own log lines go: `tracing` events, filtered by `LogLevel`, to `LogDevice`.
//!
//! There is no process-wide subscriber, because that could be set only once in the life of the daemon.
//! Each thread of the monitor, and each call from C, has the current one as its default for as long as it
//! lasts: see [`Logger::enter`].

use std::fmt;
use std::io::Write as _;
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

use crate::daemon::{Daemon, LogLevel};

/// The target of events that end the monitor's work. Only these pass `LogLevel fatal`.
pub const FATAL: &str = "collectd_live::fatal";

/// Where lines go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The daemon's own log.
    #[default]
    Collectd,
    /// The system's log.
    Syslog,
    /// Standard output.
    Stdout,
}

/// The least important event that is still logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Threshold {
    /// Only what ends the monitor's work.
    Fatal,
    /// What went wrong.
    Error,
    /// What may go wrong.
    #[default]
    Warn,
    /// What happens.
    Info,
    /// What happens, in detail.
    Debug,
}

impl Threshold {
    fn filter(self) -> LevelFilter {
        match self {
            Threshold::Fatal | Threshold::Error => LevelFilter::ERROR,
            Threshold::Warn => LevelFilter::WARN,
            Threshold::Info => LevelFilter::INFO,
            Threshold::Debug => LevelFilter::DEBUG,
        }
    }
}

/// A way to log, to be made the default of each thread that logs.
#[derive(Clone)]
pub struct Logger(Dispatch);

impl fmt::Debug for Logger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logger")
    }
}

/// Keeps a [`Logger`] in force on this thread until it is dropped.
#[must_use]
#[derive(Debug)]
pub struct Entered(
    #[expect(dead_code, reason = "held for its drop")] tracing::dispatcher::DefaultGuard,
);

impl Logger {
    /// A logger to this device.
    pub fn new(daemon: Arc<dyn Daemon>, device: Device, threshold: Threshold) -> Self {
        Self(Dispatch::new(Sink {
            daemon,
            device,
            threshold,
        }))
    }

    /// Makes it this thread's default.
    pub fn enter(&self) -> Entered {
        Entered(tracing::dispatcher::set_default(&self.0))
    }
}

struct Sink {
    daemon: Arc<dyn Daemon>,
    device: Device,
    threshold: Threshold,
}

impl Subscriber for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries may trace as well, and what they trace was not written with secrets in mind.
        metadata.is_event()
            && metadata.target().split("::").next() == Some("collectd_live")
            && *metadata.level() <= self.threshold.filter()
            && (self.threshold != Threshold::Fatal || metadata.target() == FATAL)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.threshold.filter())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        // Spans are not used, but an id may not be zero.
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.write(*event.metadata().level(), &line.finish());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Sink {
    fn write(&self, level: Level, text: &str) {
        let severity = match level {
            Level::ERROR => LogLevel::Error,
            Level::WARN => LogLevel::Warning,
            Level::INFO => LogLevel::Info,
            _ => LogLevel::Debug,
        };
        match self.device {
            // A collectd that was not built for debugging drops LOG_DEBUG; LogLevel has let the line
            // through, so it is wanted.
            Device::Collectd if severity == LogLevel::Debug => {
                self.daemon
                    .log(LogLevel::Info, &format!("monitor plugin: debug: {text}"));
            }
            Device::Collectd => self
                .daemon
                .log(severity, &format!("monitor plugin: {text}")),
            Device::Syslog => self
                .daemon
                .syslog(severity, &format!("monitor plugin: {text}")),
            Device::Stdout => {
                let line = format!(
                    "monitor plugin: {}: {text}\n",
                    level.as_str().to_lowercase()
                );
                // There is nowhere left to say that standard output is closed.
                drop(std::io::stdout().lock().write_all(line.as_bytes()));
            }
        }
    }
}

/// An event as one line: its message, then its fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn field(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        match field.name() {
            "message" => self.message.push_str(&value.to_string()),
            name => self.fields.push_str(&format!(" {name}={value}")),
        }
    }

    /// A name that came over the network must not be able to write a second line.
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        if !self.message.chars().any(char::is_control) {
            return self.message;
        }
        self.message
            .chars()
            .flat_map(|c| {
                let escaped: Box<dyn Iterator<Item = char>> = match c {
                    c if c.is_control() => Box::new(c.escape_default()),
                    c => Box::new(std::iter::once(c)),
                };
                escaped
            })
            .collect()
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.field(field, format_args!("{value}"));
        } else {
            self.field(field, format_args!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeDaemon;
    use crate::secret::Secret;
    use tracing::{debug, error, info, warn};

    fn log(device: Device, threshold: Threshold, events: impl FnOnce()) -> Arc<FakeDaemon> {
        let daemon = Arc::new(FakeDaemon::new("h"));
        let logger = Logger::new(Arc::clone(&daemon) as Arc<dyn Daemon>, device, threshold);
        let entered = logger.enter();
        events();
        drop(entered);
        error!("after the logger is gone");
        daemon
    }

    fn texts(lines: &[(LogLevel, String)]) -> Vec<&str> {
        lines.iter().map(|(_, line)| line.as_str()).collect()
    }

    #[test]
    fn the_threshold_decides_what_is_logged() {
        let all = || {
            error!(target: FATAL, "f");
            error!("e");
            warn!("w");
            info!("i");
            debug!("d");
            tracing::trace!("t");
        };
        for (threshold, count) in [
            (Threshold::Fatal, 1),
            (Threshold::Error, 2),
            (Threshold::Warn, 3),
            (Threshold::Info, 4),
            (Threshold::Debug, 5),
        ] {
            assert_eq!(
                log(Device::Collectd, threshold, all).lines().len(),
                count,
                "{threshold:?}"
            );
        }
    }

    #[test]
    fn fields_follow_the_message() {
        let daemon = log(Device::Collectd, Threshold::Warn, || {
            warn!(service = "web", count = 3, "refused");
        });
        let expected = "monitor plugin: refused service=\"web\" count=3".to_owned();
        assert_eq!(daemon.lines(), [(LogLevel::Warning, expected)]);
    }

    #[test]
    fn debug_lines_pass_a_daemon_that_drops_log_debug() {
        let daemon = log(Device::Collectd, Threshold::Debug, || debug!("detail"));
        assert_eq!(
            daemon.lines(),
            [(LogLevel::Info, "monitor plugin: debug: detail".to_owned())]
        );
    }

    #[test]
    fn syslog_is_a_device_of_its_own() {
        let daemon = log(Device::Syslog, Threshold::Warn, || warn!("to syslog"));
        assert!(daemon.lines().is_empty());
        assert_eq!(texts(&daemon.syslog_lines()), ["monitor plugin: to syslog"]);
    }

    #[test]
    fn one_event_is_one_line() {
        let daemon = log(Device::Collectd, Threshold::Warn, || {
            warn!("a {}", "x\nmonitor plugin: forged\x1b[2J");
        });
        assert_eq!(
            texts(&daemon.lines()),
            ["monitor plugin: a x\\nmonitor plugin: forged\\u{1b}[2J"]
        );
    }

    #[test]
    fn events_of_other_crates_are_not_logged() {
        let daemon = log(Device::Collectd, Threshold::Debug, || {
            error!(target: "other_crate", "CONNECT password=hunter2");
        });
        assert!(daemon.lines().is_empty());
    }

    #[test]
    fn a_secret_is_redacted() {
        let secret = Secret::new("hunter2");
        let daemon = log(Device::Collectd, Threshold::Debug, || {
            error!(?secret, "leak {secret:?}")
        });
        assert_eq!(
            texts(&daemon.lines()),
            ["monitor plugin: leak [redacted] secret=[redacted]"]
        );
    }
}
