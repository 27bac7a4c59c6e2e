//! Sends a command to a monitor and waits for the result that answers it.

use std::collections::hash_map::RandomState;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rumqttc::mqttbytes::v4::{Publish, SubscribeReasonCode};
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, NetworkOptions, Outgoing, Packet};
use tokio::time::{timeout, timeout_at, Instant};

use crate::protocol::{command_to_json, Answer, TaskId};
use crate::remote::connect;
use crate::secret::Secret;
use crate::settings::{Argument, Remote};

/// Requests of one sender never wait.
const REQUESTS: usize = 8;
/// How long a goodbye may take. What was wanted is known by then.
const GOODBYE: Duration = Duration::from_secs(2);

/// A command to send.
#[derive(Clone, Debug)]
pub struct Order {
    /// The broker and the topics: `command_topic` to publish on, `result_topic` to listen on.
    pub remote: Remote,
    /// The service.
    pub service: String,
    /// Its command.
    pub command: String,
    /// What is to be chosen of it.
    pub parameters: BTreeMap<String, Argument>,
    /// How long to wait for the result, connection included.
    pub timeout: Duration,
}

/// What the caller is told while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// This was handed to the broker's connection.
    Sent(&'a str),
    /// This came back.
    Received(&'a str),
}

/// Why there is no result.
#[derive(Debug)]
pub enum Error {
    /// It did not come in time.
    Timeout,
    /// The broker cannot be reached, does not let us in, or is lost.
    Connection(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Timeout => f.write_str("there was no result in time"),
            Error::Connection(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<ConnectionError> for Error {
    fn from(error: ConnectionError) -> Self {
        Error::Connection(connect::describe(&error))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Connection(error.to_string())
    }
}

/// The password in a file: its first line.
pub fn read_password(path: &Path) -> Result<Secret, String> {
    connect::password(path)
}

/// Sends a command. Returns its result, or nothing if there is no topic to listen on.
pub fn send(
    order: &Order,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Option<Answer>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(Sending::new(order, progress)?.run());
    // A name lookup that hangs need not be waited for.
    runtime.shutdown_background();
    result
}

/// A number that no other sender uses at the same time. It fits into the numbers of every JSON library.
fn unique() -> u64 {
    const EXACT_IN_A_DOUBLE: u64 = (1 << 53) - 1;
    (RandomState::new().build_hasher().finish() & EXACT_IN_A_DOUBLE).max(1)
}

struct Sending<'a> {
    order: &'a Order,
    progress: &'a mut dyn FnMut(Progress<'_>),
    task: TaskId,
    client: AsyncClient,
    events: EventLoop,
}

impl<'a> Sending<'a> {
    fn new(order: &'a Order, progress: &'a mut dyn FnMut(Progress<'_>)) -> Result<Self, Error> {
        let id = unique();
        let options = connect::options(&order.remote, &format!("collectd-live-{id}"))
            .map_err(Error::Connection)?;
        let (client, mut events) = AsyncClient::new(options, REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        events.set_network_options(network);
        Ok(Self {
            order,
            progress,
            task: TaskId::from(id),
            client,
            events,
        })
    }

    async fn run(mut self) -> Result<Option<Answer>, Error> {
        let deadline = Instant::now() + self.order.timeout;
        let result = timeout_at(deadline, self.exchange())
            .await
            .unwrap_or(Err(Error::Timeout));
        if !matches!(result, Err(Error::Connection(_))) {
            self.leave().await;
        }
        result
    }

    async fn exchange(&mut self) -> Result<Option<Answer>, Error> {
        loop {
            match self.events.poll().await? {
                Event::Incoming(Packet::ConnAck(_)) => match &self.order.remote.result_topic {
                    Some(topic) => self
                        .client
                        .try_subscribe(topic, connect::qos(self.order.remote.qos))
                        .map_err(|e| Error::Connection(e.to_string()))?,
                    None => self.publish()?,
                },
                // Only now no result can be missed.
                Event::Incoming(Packet::SubAck(ack)) => {
                    if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                        let what = "the broker refuses the subscription to the topic of results";
                        return Err(Error::Connection(what.to_owned()));
                    }
                    self.publish()?;
                }
                Event::Incoming(Packet::Publish(publish)) => {
                    if let Some(answer) = self.answer(&publish) {
                        return Ok(Some(answer));
                    }
                }
                event => {
                    let there = matches!(
                        event,
                        Event::Outgoing(Outgoing::Publish(0))
                            | Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))
                    );
                    if there && self.order.remote.result_topic.is_none() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn publish(&mut self) -> Result<(), Error> {
        let (service, command) = (&self.order.service, &self.order.command);
        let parameters = &self.order.parameters;
        let json = command_to_json(&self.task, service, command, parameters, SystemTime::now());
        (self.progress)(Progress::Sent(&json));
        let remote = &self.order.remote;
        self.client
            .try_publish(&remote.command_topic, connect::qos(remote.qos), false, json)
            .map_err(|error| Error::Connection(error.to_string()))
    }

    /// The result in a message, if it is one and answers our task.
    fn answer(&mut self, publish: &Publish) -> Option<Answer> {
        let answer = Answer::parse(&publish.payload)?;
        if answer.task != self.task {
            return None;
        }
        let text = String::from_utf8_lossy(&publish.payload);
        (self.progress)(Progress::Received(&text));
        Some(answer)
    }

    async fn leave(&mut self) {
        let goodbye = async {
            if self.client.try_disconnect().is_ok() {
                while !matches!(
                    self.events.poll().await,
                    Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)
                ) {}
            }
        };
        // The result is known; a broker that does not take a goodbye changes nothing.
        timeout(GOODBYE, goodbye).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_ids_differ_and_fit_into_a_double() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| unique()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| *id > 0 && *id < 1 << 53));
    }
}
