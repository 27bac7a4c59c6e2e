//! What the monitor says of itself: retained, so that whoever asks later finds it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::clock::iso8601;
use crate::store::Hold;

/// What this version can do, for senders that ask.
const CAPABILITIES: [&str; 6] = [
    "commands",
    "parameters",
    "journal",
    "ping",
    "signatures",
    "hold",
];

#[derive(Serialize)]
struct Online<'a> {
    state: &'a str,
    host: &'a str,
    version: &'a str,
    starts: u64,
    since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    capabilities: &'a [&'a str],
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<OnHold<'a>>,
}

#[derive(Serialize)]
struct OnHold<'a> {
    target: &'a str,
    until: String,
    by: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct Offline<'a> {
    state: &'a str,
    host: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

/// The monitor is connected, and may have a problem or be on hold.
pub(super) fn online(
    host: &str,
    starts: u64,
    since: SystemTime,
    problem: Option<&str>,
    hold: Option<&Hold>,
) -> Vec<u8> {
    json(&Online {
        state: "online",
        host,
        version: env!("CARGO_PKG_VERSION"),
        starts,
        since: iso8601(since),
        problem,
        capabilities: &CAPABILITIES,
        hold: hold.map(|hold| OnHold {
            target: &hold.target,
            until: iso8601(UNIX_EPOCH + Duration::from_secs(hold.until)),
            by: &hold.by,
            reason: &hold.reason,
        }),
    })
}

/// It is not. The broker says so if the monitor cannot, and knows no time.
pub(super) fn offline(host: &str, reason: &str, now: Option<SystemTime>) -> Vec<u8> {
    json(&Offline {
        state: "offline",
        host,
        reason,
        since: now.map(iso8601),
    })
}

fn json(status: &impl Serialize) -> Vec<u8> {
    // Text and numbers can always be written.
    serde_json::to_vec(status).unwrap_or_default()
}
