//! How the result of a rule's command is told: as a notification.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::daemon::{Notification, Severity};
use crate::protocol::{Code, Outcome};

/// Who says so. Sites know it by this name.
pub(super) const PLUGIN: &str = "lua-collectd-monitor-local";
/// The longest message of a notification: `NOTIF_MAX_MSG_LEN` has room for its end, too.
const MAX_MESSAGE: usize = 255;
const TOO_LONG: &str = "The message is too long.";

#[derive(Serialize)]
struct Wire<'a> {
    task_id: &'a RawValue,
    message: &'a str,
    code: u32,
}

/// The notification of a result.
pub(super) fn notification(
    rule: &str,
    outcome: &Outcome,
    host: &str,
    now: SystemTime,
) -> Notification {
    let json = |message: &str| {
        let wire = Wire {
            task_id: outcome.task.raw(),
            message,
            code: outcome.code.number(),
        };
        // Strings and numbers can always be written.
        serde_json::to_string(&wire).unwrap_or_default()
    };
    let mut message = json(&outcome.message);
    if message.len() > MAX_MESSAGE {
        message = json(TOO_LONG);
    }
    Notification {
        severity: match outcome.code {
            Code::Exit(0) => Severity::Okay,
            _ => Severity::Failure,
        },
        time: now,
        message,
        host: host.to_owned(),
        plugin: PLUGIN.to_owned(),
        plugin_instance: String::new(),
        type_: rule.to_owned(),
        type_instance: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn told(message: &str, code: Code) -> Notification {
        let outcome = Outcome {
            task: 7.into(),
            message: message.to_owned(),
            errors: String::new(),
            code,
            at: UNIX_EPOCH,
            request: None,
            reply: None,
        };
        notification("disk::metric::full", &outcome, "node1", UNIX_EPOCH)
    }

    #[test]
    fn a_result_is_told_as_the_original_did() {
        let n = told("all \"well\"", Code::Exit(0));
        assert_eq!(
            n.message,
            r#"{"task_id":7,"message":"all \"well\"","code":0}"#
        );
        assert_eq!(
            (n.severity, &*n.host, &*n.plugin, &*n.type_),
            (Severity::Okay, "node1", PLUGIN, "disk::metric::full")
        );
        assert_eq!((&*n.plugin_instance, &*n.type_instance), ("", ""));
        assert_eq!(told("", Code::Exit(1)).severity, Severity::Failure);
        assert_eq!(told("", Code::NoSuchService).severity, Severity::Failure);
    }

    #[test]
    fn a_message_gives_way_when_the_whole_does_not_fit() {
        let room = MAX_MESSAGE - r#"{"task_id":7,"message":"","code":0}"#.len();
        let fits = told(&"x".repeat(room), Code::Exit(0)).message;
        assert_eq!(fits.len(), MAX_MESSAGE);
        let short = told(&"x".repeat(room + 1), Code::Exit(0)).message;
        assert_eq!(
            short,
            r#"{"task_id":7,"message":"The message is too long.","code":0}"#
        );
        // What is short may be long when it is escaped.
        assert!(told(&"\u{1}".repeat(room), Code::Exit(0))
            .message
            .contains(TOO_LONG));
    }
}
