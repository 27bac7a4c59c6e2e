//! Which hosts are there: what their monitors have left on their status topics.

use std::time::{Duration, SystemTime};

use rumqttc::{Event, Packet};
use serde::Deserialize;
use tokio::time::{sleep_until, timeout, Instant};

use super::{block_on, is_host, Error, Interrupts, Link};
use crate::clock::parse_iso8601;
use crate::settings::Remote;

/// A topic of which one level holds the name of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    levels: Vec<String>,
    at: usize,
}

impl Pattern {
    /// Reads a topic in which `%h` stands for the host. Other levels may be `+`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let levels: Vec<_> = text.split('/').map(str::to_owned).collect();
        let mut hosts = levels.iter().enumerate().filter(|(_, l)| l.contains("%h"));
        let (Some((at, level)), None) = (hosts.next(), hosts.next()) else {
            return Err("must hold %h in one of its levels".to_owned());
        };
        if level.matches("%h").count() > 1 || level.contains(['+', '#']) {
            return Err("must hold %h once, and no + or # beside it".to_owned());
        }
        let pattern = Self { at, levels };
        match rumqttc::valid_filter(&pattern.filter()) {
            true => Ok(pattern),
            false => Err("is not a topic to subscribe to".to_owned()),
        }
    }

    /// What to subscribe to.
    pub fn filter(&self) -> String {
        let mut levels: Vec<_> = self.levels.iter().map(String::as_str).collect();
        levels[self.at] = "+";
        levels.join("/")
    }

    /// The host that a topic is about.
    pub fn host<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let level = topic.split('/').nth(self.at)?;
        let (before, after) = self.levels[self.at].split_once("%h")?;
        let host = level.strip_prefix(before)?.strip_suffix(after)?;
        is_host(host).then_some(host)
    }
}

/// What a host's monitor says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostState {
    /// It is connected.
    Online,
    /// It is not.
    Offline,
    /// It says something else.
    Unknown,
}

impl HostState {
    /// As it stands in the message.
    pub fn name(self) -> &'static str {
        match self {
            HostState::Online => "online",
            HostState::Offline => "offline",
            HostState::Unknown => "unknown",
        }
    }
}

/// A host that has left a message on its status topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name, as it stands in the topic.
    pub host: String,
    /// Whether its monitor is there.
    pub state: HostState,
    /// Since when, by the host's clock.
    pub since: Option<SystemTime>,
    /// Why it is not there.
    pub reason: Option<String>,
    /// Which version it is.
    pub version: Option<String>,
    /// How often it was started.
    pub starts: Option<u64>,
    /// The message itself.
    pub json: String,
}

#[derive(Default, Deserialize)]
struct Wire {
    #[serde(default)]
    state: String,
    since: Option<String>,
    reason: Option<String>,
    version: Option<String>,
    starts: Option<u64>,
}

impl Found {
    /// Reads a status message. None if the payload is empty: then the status was deleted.
    pub fn read(host: &str, payload: &[u8]) -> Option<Self> {
        if payload.is_empty() {
            return None;
        }
        let json = String::from_utf8_lossy(payload).into_owned();
        let wire: Wire = serde_json::from_str(&json).unwrap_or_default();
        Some(Self {
            host: host.to_owned(),
            state: match wire.state.as_str() {
                "online" => HostState::Online,
                "offline" => HostState::Offline,
                _ => HostState::Unknown,
            },
            since: wire.since.as_deref().and_then(parse_iso8601),
            reason: wire.reason,
            version: wire.version,
            starts: wire.starts,
            json,
        })
    }
}

/// Collects the status of every host that has one, in the order of names.
///
/// MQTT does not tell which retained message is the last one, so it is over when none has come for a while.
pub fn discover(
    remote: &Remote,
    pattern: &Pattern,
    quiet: Duration,
    patience: Duration,
) -> Result<Vec<Found>, Error> {
    block_on(async {
        let mut link = Link::new(remote)?;
        let mut interrupts = Interrupts::new()?;
        let filter = pattern.filter();
        let arrival = link.arrive(remote, &[]);
        tokio::select! {
            arrived = timeout(patience, arrival) => arrived.unwrap_or(Err(Error::Timeout))?,
            () = interrupts.wait() => return Err(Error::Interrupted),
        }
        let found = tokio::select! {
            found = collect(&mut link, remote, &filter, pattern, quiet) => found?,
            () = interrupts.wait() => return Err(Error::Interrupted),
        };
        link.leave().await;
        Ok(found)
    })
}

async fn collect(
    link: &mut Link,
    remote: &Remote,
    filter: &str,
    pattern: &Pattern,
    quiet: Duration,
) -> Result<Vec<Found>, Error> {
    let mut found = std::collections::BTreeMap::new();
    link.subscribe(remote, &[filter])?;
    let mut until = Instant::now() + quiet;
    loop {
        let event = tokio::select! {
            event = link.events.poll() => event?,
            () = sleep_until(until) => return Ok(found.into_values().collect()),
        };
        match event {
            Event::Incoming(Packet::SubAck(ack)) => {
                Link::check(&[filter], &ack.return_codes)?;
                until = Instant::now() + quiet;
            }
            Event::Incoming(Packet::Publish(publish)) => {
                until = Instant::now() + quiet;
                let Some(host) = pattern.host(&publish.topic) else {
                    continue;
                };
                match Found::read(host, &publish.payload) {
                    Some(status) => drop(found.insert(host.to_owned(), status)),
                    None => drop(found.remove(host)),
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_found_in_a_topic() {
        for (pattern, filter, topic, host) in [
            ("status/%h", "status/+", "status/web1", Some("web1")),
            ("%h", "+", "web1", Some("web1")),
            ("a/x-%h-y/b", "a/+/b", "a/x-web1-y/b", Some("web1")),
            ("a/x-%h-y/b", "a/+/b", "a/web1/b", None),
            ("a/x-%h-y/b", "a/+/b", "a/x--y/b", None),
            (
                "+/%h/status",
                "+/+/status",
                "site/web1/status",
                Some("web1"),
            ),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(parsed.filter(), filter);
            assert_eq!(parsed.host(topic), host, "{topic} in {pattern}");
        }
        for wrong in ["", "status", "%h/%h", "%h%h", "#/%h", "+%h", "a#/%h"] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_status_is_read_as_far_as_it_is_one() {
        let online = br#"{"state":"online","host":"x","version":"0.1.0","starts":3,"since":"2026-11-22T05:40:00Z","capabilities":["a"]}"#;
        let found = Found::read("web1", online).unwrap();
        assert_eq!(
            (found.host.as_str(), found.state),
            ("web1", HostState::Online)
        );
        assert_eq!(found.version.as_deref(), Some("0.1.0"));
        assert_eq!(found.starts, Some(3));
        assert!(found.since.is_some());
        let lost = Found::read("a", br#"{"state":"offline","reason":"lost"}"#).unwrap();
        assert_eq!((lost.state, lost.since), (HostState::Offline, None));
        assert_eq!(lost.reason.as_deref(), Some("lost"));
        for other in [&b"up"[..], b"\xff", b"{}", b"{\"state\":\"ill\"}", b"[1]"] {
            let found = Found::read("a", other).unwrap();
            assert_eq!(found.state, HostState::Unknown, "{other:?}");
        }
        assert_eq!(Found::read("a", b""), None);
    }
}
