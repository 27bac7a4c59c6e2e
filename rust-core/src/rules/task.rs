//! What a rule asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub use crate::daemon::Verb;
use crate::settings::Argument;

/// What can be done about a fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// To run a command of a service.
    Command {
        /// The host whose monitor runs it, where that is not this one.
        host: Option<String>,
        /// The service's name.
        service: String,
        /// The command's name.
        command: String,
        /// What the rule chose of it.
        params: BTreeMap<String, Argument>,
    },
    /// To have the daemon do something with a plugin.
    Plugin {
        /// What.
        verb: Verb,
        /// With which.
        plugin: String,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Command {
                host,
                service,
                command,
                params,
            } => {
                write!(f, "{service} {command}")?;
                for (name, value) in params {
                    match value {
                        Argument::Text(text) => write!(f, " {name}={text:?}")?,
                        Argument::Integer(number) => write!(f, " {name}={number}")?,
                        Argument::Flag(flag) => write!(f, " {name}={flag}")?,
                    }
                }
                match host {
                    Some(host) => write!(f, " on {host}"),
                    None => Ok(()),
                }
            }
            Action::Plugin { verb, plugin } => write!(f, "{} plugin {plugin}", verb.name()),
        }
    }
}

/// So many of the last so many values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How many.
    pub hits: u32,
    /// Of how many.
    pub of: u32,
}

/// What shows that an action has helped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify<F> {
    /// How long after the action's end it may take to show.
    pub within: Duration,
    /// The condition, where it is not that the task's own has ended.
    pub check: Option<F>,
}

/// What a rule asks for. A function of the rule is named by an `F`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task<F> {
    /// What to do.
    pub action: Action,
    /// How long the condition must hold without a break.
    pub hold: Duration,
    /// How often it must hold, where not every time.
    pub times: Option<Times>,
    /// What ends an episode, where it is not that the condition does not hold.
    pub clear: Option<F>,
    /// How long after a start the same action is not started again.
    pub cooldown: Duration,
    /// How often the same action may be started within an hour.
    pub max_per_hour: Option<u32>,
    /// What shows that the action has helped, where that is not its exit status.
    pub verify: Option<Verify<F>>,
    /// What to do when it has not, one after the other.
    pub escalate: Vec<Action>,
    /// Only say what would be done.
    pub dry_run: bool,
}

impl<F> Task<F> {
    /// A task that says no more than what to do.
    pub fn new(action: Action) -> Self {
        Self {
            action,
            hold: Duration::ZERO,
            times: None,
            clear: None,
            cooldown: Duration::ZERO,
            max_per_hour: None,
            verify: None,
            escalate: Vec::new(),
            dry_run: false,
        }
    }

    /// Whether one fault is one episode, with an end, rather than a reason to act for each value.
    pub fn has_episodes(&self) -> bool {
        self.clear.is_some() || self.verify.is_some() || !self.escalate.is_empty()
    }

    /// The action of a step: that of the task itself, then the others.
    pub fn step(&self, step: usize) -> Option<&Action> {
        match step.checked_sub(1) {
            None => Some(&self.action),
            Some(at) => self.escalate.get(at),
        }
    }
}
