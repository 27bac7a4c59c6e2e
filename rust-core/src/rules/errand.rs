//! Commands of rules for other hosts: sent as `collectd-live send-command` does it, and waited for.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tracing::{debug, warn};

use super::Settings;
use crate::daemon::Daemon;
use crate::engine::LocalEnd;
use crate::protocol::{command_to_json, Code, Outcome, TaskId};
use crate::remote::connect;
use crate::sender::{self, Ending, Limits, Order, Progress, Seal, Signing, Target};
use crate::settings::{Argument, Remote};
use crate::trust::{self, Kind};

/// How long to wait for a result. A command that takes longer goes on, but nobody knows how it ends.
const PATIENCE: Duration = Duration::from_secs(300);
/// How many connections there are at once. What is more waits.
const MAX_UNDER_WAY: usize = 32;
/// How many errands may wait to be looked at.
const QUEUE: usize = 1024;
/// How long a name lookup that hangs may hold up the shutdown.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(1);

/// A command for another host.
pub(super) struct Errand {
    pub(super) run: u64,
    pub(super) host: String,
    pub(super) service: String,
    pub(super) command: String,
    pub(super) params: BTreeMap<String, Argument>,
    pub(super) reply: Sender<LocalEnd>,
}

/// Where errands are given, or why they cannot be.
#[derive(Clone)]
pub(super) struct Errands {
    queue: Result<mpsc::Sender<Errand>, &'static str>,
    not_held: NotHeld,
}

/// Whether recovery actions may be begun, or why not. What runs here, the engine refuses by itself.
pub(crate) type NotHeld = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

impl Errands {
    pub(super) fn give(&self, errand: Errand) -> Result<(), String> {
        (self.not_held)()?;
        let queue = self.queue.as_ref().map_err(|why| (*why).to_owned())?;
        queue
            .try_send(errand)
            .map_err(|_| "too many commands for other hosts are waiting".to_owned())
    }
}

/// Who goes on errands.
pub(super) struct Courier {
    site: Arc<Site>,
    queue: mpsc::Receiver<Errand>,
    runtime: tokio::runtime::Runtime,
}

/// What is the same for all errands.
struct Site {
    remote: Remote,
    signing: Signing,
    daemon: Arc<dyn Daemon>,
}

/// How to reach other hosts.
pub(crate) struct Elsewhere<'a> {
    /// The broker, if there is one. Its topics are as in the block, with `%h`.
    pub(crate) remote: Option<&'a Remote>,
    /// Asked before each errand.
    pub(crate) not_held: NotHeld,
}

/// Reads the keys. There is no courier if this monitor knows no other hosts.
pub(super) fn prepare(
    settings: &Settings,
    Elsewhere { remote, not_held }: Elsewhere<'_>,
    daemon: &Arc<dyn Daemon>,
) -> Result<(Errands, Option<Courier>), String> {
    let key = settings.key.as_deref().map(trust::read_key).transpose()?;
    let host_keys = settings.host_keys.as_deref().map(trust::read_host_keys);
    let host_keys = host_keys.transpose()?.unwrap_or_default();
    let why_not = match remote {
        None => "this monitor cannot send commands to other hosts: there is no Host in its block",
        Some(remote) if !remote.command_topic.contains("%h") => {
            "this monitor cannot send commands to other hosts: its CommandTopic holds no %h"
        }
        Some(remote) => {
            let mut remote = remote.clone();
            let password = connect::kept_password(&remote, |name| std::env::var_os(name))?;
            remote.password = password.or(remote.password);
            // Each errand is a client of its own, which nobody knows before or after.
            remote.clean_session = true;
            let (errands, queue) = mpsc::channel(QUEUE);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(1)
                .thread_name("monitor-resolver")
                .build()
                .map_err(|error| format!("there is no event loop: {error}"))?;
            let seal = key.map(|key| Seal {
                key,
                kind: Kind::Command,
                targets: Vec::new(),
                lifetime: PATIENCE,
            });
            let site = Site {
                remote,
                signing: Signing {
                    with: seal,
                    host_keys,
                },
                daemon: Arc::clone(daemon),
            };
            let courier = Courier {
                site: Arc::new(site),
                queue,
                runtime,
            };
            let queue = Ok(errands);
            return Ok((Errands { queue, not_held }, Some(courier)));
        }
    };
    for (there, name) in [
        (settings.key.is_some(), "RuleKey"),
        (settings.host_keys.is_some(), "RuleHostKeys"),
    ] {
        if there {
            warn!("{name} is of no use: {why_not}");
        }
    }
    let queue = Err(why_not);
    Ok((Errands { queue, not_held }, None))
}

impl Courier {
    /// Goes on errands until nobody can give any more. What is under way then is not waited for.
    pub(super) fn run(self) {
        let Self {
            site,
            queue,
            runtime,
        } = self;
        LocalSet::new().block_on(&runtime, serve(site, queue));
        runtime.shutdown_timeout(RUNTIME_PATIENCE);
    }
}

async fn serve(site: Arc<Site>, mut queue: mpsc::Receiver<Errand>) {
    let mut waiting = VecDeque::new();
    let mut under_way = JoinSet::new();
    loop {
        while under_way.len() < MAX_UNDER_WAY {
            let Some(errand) = waiting.pop_front() else {
                break;
            };
            let site = Arc::clone(&site);
            under_way.spawn_local(async move { site.go(errand).await });
        }
        tokio::select! {
            errand = queue.recv() => match errand {
                Some(errand) => waiting.push_back(errand),
                None => return,
            },
            Some(done) = under_way.join_next() => {
                if let Err(error) = done {
                    if error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
            }
        }
    }
}

impl Site {
    async fn go(&self, errand: Errand) {
        let (task, code, message) = self.send(&errand).await;
        let outcome = Outcome {
            task,
            request: None,
            reply: None,
            message,
            errors: String::new(),
            code,
            at: self.daemon.now(),
        };
        let end = LocalEnd {
            run: errand.run,
            outcome,
        };
        // There is room for every end; without a worker, nobody wants to know.
        drop(errand.reply.try_send(end));
    }

    /// Which task it was, how it ended, and what is to be said about it.
    async fn send(&self, errand: &Errand) -> (TaskId, Code, String) {
        let Errand { host, run, .. } = errand;
        let result_topic = self.remote.result_topic.as_deref();
        let target = match Target::host(host, &self.remote.command_topic, result_topic) {
            Ok(target) => target,
            Err(why) => return (TaskId::from(*run), Code::NotStarted, why),
        };
        let order = Order {
            remote: self.remote.clone(),
            targets: vec![target],
            limits: Limits::none(PATIENCE),
            rounds: 1,
            pause: Duration::ZERO,
            signing: self.signing.clone(),
        };
        let sent = RefCell::new(TaskId::from(*run));
        let mut answer = None;
        let mut message = |task: &TaskId| {
            sent.replace(task.clone());
            let now = self.daemon.now();
            command_to_json(task, &errand.service, &errand.command, &errand.params, now)
        };
        let mut progress = |progress: Progress<'_>| match progress {
            Progress::Sent(..) => debug!(%host, "sent {} {}", errand.service, errand.command),
            Progress::Ended(_, _, Some(reply)) => {
                answer = reply
                    .answer
                    .map(|answer| (answer.code, answer.message.clone()));
            }
            Progress::Ended(..) => {}
            Progress::Disbelieved(_, why) => warn!(%host, "a result is not believed: {why}"),
        };
        let result = sender::send_undisturbed(&order, &mut message, &mut progress).await;
        let (code, message) = match result {
            Err(error) => (Code::NotStarted, format!("not sent to {host}: {error}")),
            Ok(summary) => match (summary.endings.first(), answer) {
                (_, Some((code, message))) => understood(code, message),
                (Some(Ending::Succeeded), None) => (
                    Code::Exit(0),
                    "the broker has it; without CommandResultTopic there is no result".to_owned(),
                ),
                (Some(Ending::NotSent), None) => {
                    let why = summary.lost.unwrap_or_default();
                    (Code::NotStarted, format!("not sent to {host}: {why}"))
                }
                (_, None) => {
                    let why = summary.lost.unwrap_or_else(|| {
                        format!("{host} has not answered within {} s", PATIENCE.as_secs())
                    });
                    (Code::Interrupted, why)
                }
            },
        };
        (sent.into_inner(), code, message)
    }
}

/// A host of a later version may have codes that this one does not know.
fn understood(code: u32, message: String) -> (Code, String) {
    match Code::from_number(code) {
        Some(code) => (code, message),
        None => (Code::NotImplemented, format!("code {code}: {message}")),
    }
}
