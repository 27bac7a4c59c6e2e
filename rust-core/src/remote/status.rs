//! What the monitor says of itself: retained, so that whoever asks later finds it.

use std::time::SystemTime;

use serde::Serialize;

use crate::clock::iso8601;

/// What this version can do, for senders that ask.
const CAPABILITIES: [&str; 4] = ["commands", "parameters", "journal", "ping"];

#[derive(Serialize)]
struct Online<'a> {
    state: &'a str,
    host: &'a str,
    version: &'a str,
    starts: u64,
    since: String,
    capabilities: &'a [&'a str],
}

#[derive(Serialize)]
struct Offline<'a> {
    state: &'a str,
    host: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

/// The monitor is connected.
pub(super) fn online(host: &str, starts: u64, now: SystemTime) -> Vec<u8> {
    json(&Online {
        state: "online",
        host,
        version: env!("CARGO_PKG_VERSION"),
        starts,
        since: iso8601(now),
        capabilities: &CAPABILITIES,
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
