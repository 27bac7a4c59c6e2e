//! What it costs to sign a message, to verify it, and the same of a result: `cargo bench -p collectd-live --bench signing`.
//!
//! The message is a command with parameters. Verifying it is all that a host does until it knows that the message may be
//! acted upon: taking the envelope apart, looking whether the trust file has changed, the signature, and the scope.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime};

use collectd_live::fuzz::Host;
use collectd_live::trust::{envelope_digest, sign, verify_result, Kind, SigningKey};

const ROUNDS: u32 = 2000;
/// A message may cost so much, on either side.
const LIMIT: Duration = Duration::from_micros(200);

const MESSAGE: &str = r#"{"task_id":3257537054256916,"timestamp":"2026-11-22T03:48:05Z","service":"web","command":"block","parameters":{"address":"192.0.2.17","minutes":30}}"#;
const RESULT: &str = r#"{"task_id":3257537054256916,"timestamp":"2026-11-22T03:48:05Z","message":"up since 2026","code":0,"state":"finished","host":"web1"}"#;

/// The median and the slowest hundredth.
fn measure(name: &str, mut once: impl FnMut()) -> Duration {
    for _ in 0..ROUNDS / 10 {
        once();
    }
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            once();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let median = times[times.len() / 2];
    let slow = times[times.len() - times.len() / 100];
    println!("{name:<20} {:>7.1} {:>7.1}", micros(median), micros(slow));
    median
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("trust.json");
    let key = SigningKey::generate(Some("alice")).expect("a key");
    let public = key.public();
    let entry = format!(
        r#"{{"keys":[{{"kid":"alice","x":"{}","kinds":["command","parameters"],"services":{{"web*":["*"]}},"targets":["host:*"]}}]}}"#,
        public.x()
    );
    fs::write(&path, entry).expect("a file");
    let host = Host::new(&path).expect("a trust file");
    let targets = ["host:web1".to_owned()];
    let now = SystemTime::now();
    let signed = || {
        let lifetime = Duration::from_secs(300);
        sign(&key, &targets, Kind::Command, MESSAGE, now, lifetime).expect("a signature")
    };
    let envelope = signed();
    let request = envelope_digest(&envelope);
    let answer = || Host::sign_result(&key, RESULT, request, now).expect("a signature");
    let result = answer();
    let keys = [public.clone()];
    // A file that was written a moment ago is read each time; see what it costs when it is settled.
    let settled = Instant::now() + Duration::from_millis(1100);
    while Instant::now() < settled {
        black_box(signed());
    }

    println!("{:<20} {:>7} {:>7}   (microseconds)", "", "median", "99 %");
    let worst = [
        measure("sign a message", || drop(black_box(signed()))),
        measure("verify a message", || {
            host.accepts(black_box(envelope.as_bytes()), now)
                .expect("it is permitted");
        }),
        measure("sign a result", || drop(black_box(answer()))),
        measure("verify a result", || {
            verify_result(black_box(&result), &keys, request).expect("it is signed");
        }),
    ]
    .into_iter()
    .max()
    .unwrap_or_default();
    assert!(worst < LIMIT, "{worst:?} is more than {LIMIT:?}");
}
