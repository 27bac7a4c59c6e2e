//! What the fuzzers call: each parser, and what must hold of whatever it makes of an input.
//!
//! The inputs that are kept in `tests/fuzz/corpus` are also tried by the unit tests.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::{iso8601, parse_iso8601};
use crate::protocol::{command_to_json, Answer, Code, Content, Message, Outcome};
use crate::sender::{Found, Pattern};
use crate::settings::split_address;
use crate::trust::tried;
pub use crate::trust::tried::Host;
use crate::{settings, store};

/// A parser, with what must hold.
pub type Target = fn(&[u8]);

/// All of them, by the names of their inputs.
pub const TARGETS: [(&str, Target); 5] = [
    ("message", message),
    ("settings", settings),
    ("journal", journal),
    ("envelope", envelope),
    ("trust", trust),
];

/// A signed message.
///
/// # Panics
/// If something does not hold.
pub fn envelope(data: &[u8]) {
    tried::envelope(data);
}

/// A trust file.
///
/// # Panics
/// If something does not hold.
pub fn trust(data: &[u8]) {
    tried::trust_file(data);
}

/// A message from the broker: a command for the monitor, a result or a status for a sender.
///
/// # Panics
/// If something does not hold.
pub fn message(data: &[u8]) {
    match Message::parse(data) {
        Ok(message) => understood(&message),
        Err(unreadable) => {
            assert!(matches!(unreadable.code, Code::Unreadable | Code::TooLong));
            // Its text is logged, and the message may hold secrets.
            assert!(unreadable.reason.starts_with("it"));
        }
    }
    if let Some(answer) = Answer::parse(data) {
        assert!(!answer.task.to_string().is_empty());
    }
    if let Some(found) = Found::read("host", data) {
        assert!(!data.is_empty());
        if let Some(since) = found.since {
            written_and_read(since);
        }
    }
}

fn understood(message: &Message) {
    let outcome = Outcome {
        task: message.task.clone(),
        message: String::new(),
        errors: String::new(),
        code: Code::Exit(0),
        at: UNIX_EPOCH,
        request: None,
        reply: None,
    };
    // Whoever sent it must find its id in the result.
    let json = outcome.to_json("host");
    assert!(json.starts_with(&format!("{{\"task_id\":{},", message.task)));
    let answer = Answer::parse(json.as_bytes());
    assert_eq!(
        answer.map(|answer| answer.task).as_ref(),
        Some(&message.task)
    );

    let Content::Command {
        service,
        command,
        arguments,
    } = &message.content
    else {
        return;
    };
    let json = command_to_json(&message.task, service, command, arguments, UNIX_EPOCH);
    let again = Message::parse(json.as_bytes());
    let again = again.unwrap_or_else(|why| panic!("{}: {json}", why.reason));
    assert_eq!(
        (&again.task, &again.content),
        (&message.task, &message.content)
    );
    // The time makes it another task, and nothing else does.
    let same = Message {
        timestamp: message.timestamp.clone(),
        ..again.clone()
    };
    assert_eq!(same.key(), message.key());
    if message.timestamp != again.timestamp {
        assert_ne!(again.key(), message.key());
    }
}

/// A time is written to the second, and years that do not have four digits are none for the reader.
fn written_and_read(time: SystemTime) {
    let text = iso8601(time);
    if text.len() == "2020-11-26T00:41:19Z".len() && !text.starts_with('-') {
        let again = parse_iso8601(&text).unwrap_or_else(|| panic!("{text}"));
        let apart = time.duration_since(again).unwrap_or_else(|e| e.duration());
        assert!(apart < Duration::from_secs(1), "{text}");
    }
}

/// The JSON file of settings, and the values that have a syntax of their own.
///
/// # Panics
/// If something does not hold.
pub fn settings(data: &[u8]) {
    settings::try_file(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok((host, port)) = split_address(text) {
        assert!(!host.is_empty() && port != Some(0));
    }
    if let Some(time) = parse_iso8601(text) {
        written_and_read(time);
    }
    if let Ok(pattern) = Pattern::parse(text) {
        assert!(rumqttc::valid_filter(&pattern.filter()));
        assert_eq!(
            pattern.host(&text.replace("%h", "web1").replace('+', "x")),
            Some("web1")
        );
    }
}

/// A journal. An input is a list of records, each behind its length (two bytes), and behind an empty one what
/// is to be damaged: offsets (two bytes), each with what to change there.
///
/// # Panics
/// If something does not hold.
pub fn journal(data: &[u8]) {
    let mut records = Vec::new();
    let mut rest = data;
    while let Some((length, behind)) = number(rest) {
        rest = behind;
        if length == 0 {
            break;
        }
        let (record, behind) = rest.split_at(length.min(rest.len()));
        records.push(record.to_vec());
        rest = behind;
    }
    let mut damage = BTreeMap::new();
    while let Some((offset, behind)) = number(rest) {
        let Some((change, behind)) = behind.split_first() else {
            break;
        };
        damage.insert(offset, *change);
        rest = behind;
    }
    store::try_journal(&records, &damage);
}

fn number(data: &[u8]) -> Option<(usize, &[u8])> {
    let (bytes, rest) = data.split_first_chunk::<2>()?;
    Some((usize::from(u16::from_le_bytes(*bytes)), rest))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    #[test]
    fn the_inputs_that_are_kept_pass() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        for (name, target) in super::TARGETS {
            let inputs = fs::read_dir(corpus.join(name)).expect("a corpus");
            let mut tried = 0;
            for input in inputs {
                let path = input.expect("an input").path();
                let input = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                // Shown where it fails.
                eprintln!("{}", path.display());
                target(&input);
                tried += 1;
            }
            assert!(tried > 0, "{name}");
        }
    }
}
