//! What must not be forgotten when the daemon dies: which tasks were accepted, which were started, how they
//! ended, and which results the broker has.
//!
//! A task is written down before it is run and before the broker is told that it has arrived. So it runs at
//! most once: whoever finds it started, but not finished, knows only that it was interrupted.

mod crc;
mod log;
mod sync;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{flock, FlockOperation};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use crate::boundary::{self, Boundary};
use crate::files;
use crate::protocol::{Code, Digest, Key, Outcome, Reply, TaskId};
use crate::trust::Signed;
pub(crate) use sync::Syncer;

use log::{AppendError, Log, Medium, OpenError, Place};

/// The length of each half of the journal.
const HALF: usize = 4 * 1024 * 1024;
/// The same where there is only memory.
const HALF_IN_MEMORY: usize = 1024 * 1024;
/// How many tasks are known that are over. A duplicate of an older one is not recognised.
const MAX_KNOWN: usize = 16 * 1024;
/// How many nonces are remembered until they expire, of all keys and of each. When there are more, messages are
/// refused: a key that sends too many must not shut out the others.
const MAX_NONCES: usize = 8192;
const MAX_NONCES_OF_KEY: usize = 2048;
/// The name of the journal's file.
const FILE: &str = "journal";

/// A task or an answer, as the journal calls it.
pub(crate) type Number = u64;

/// A line of the journal. Versions to come may add fields, and kinds that are passed over here.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "r", rename_all = "kebab-case")]
enum Record {
    /// A task is to be run.
    Accepted {
        n: Number,
        task: String,
        key: Key,
        service: String,
        command: String,
        at: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        req: Option<Digest>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply: Option<Reply>,
    },
    /// It is about to be run.
    Started { n: Number },
    /// It has ended, or will never run; or this answers a message that was no task, and has no key.
    Finished {
        n: Number,
        task: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<Key>,
        code: u32,
        message: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        stderr: String,
        at: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        req: Option<Digest>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply: Option<Reply>,
    },
    /// The broker has the result.
    Delivered { n: Number },
    /// A task that is over, of which no result is kept.
    Over { n: Number, key: Key, at: u64 },
    /// A command may not be started again before this time, in milliseconds.
    Cooling {
        service: String,
        command: String,
        until: u64,
    },
    /// A nonce came in this envelope, and counts until this time, in seconds.
    Nonce {
        id: Digest,
        env: Digest,
        until: u64,
        of: u32,
    },
    /// Recovery is on hold for a target, until this time in seconds; at once, it is released.
    Hold {
        target: String,
        until: u64,
        by: String,
        reason: String,
    },
    /// Nonces that counted until this time may be forgotten, so no other envelope that does counts.
    Forgotten { until: u64 },
    /// A monitor began to work with this journal, for the n-th time.
    Began { starts: u64 },
    /// Written by a version to come.
    #[serde(other)]
    Unknown,
}

impl Record {
    fn bytes(&self) -> Vec<u8> {
        // Text and numbers can always be written.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// What is known of a task.
#[derive(Debug)]
enum State {
    /// Boxed, because most of what is known is of tasks that are over.
    Accepted(Box<LeftBehind>),
    Finished {
        /// Where the result is, if it is kept.
        place: Option<Place>,
        delivered: bool,
    },
}

#[derive(Debug)]
struct Known {
    key: Option<Key>,
    at: u64,
    state: State,
}

/// A task that came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Earlier {
    /// Which.
    pub(crate) number: Number,
    /// When it came.
    pub(crate) at: SystemTime,
    /// What became of it.
    pub(crate) progress: Progress,
}

/// What became of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It runs, or waits for its turn.
    UnderWay,
    /// It has ended, and its result is still on its way to the broker.
    Finished,
    /// The broker has its result.
    Delivered,
}

/// A task that was accepted and has not ended. Found at the start, the monitor before this one has left it behind.
#[derive(Clone, Debug)]
pub(crate) struct LeftBehind {
    pub(crate) number: Number,
    pub(crate) task: TaskId,
    pub(crate) service: String,
    pub(crate) command: String,
    /// Whether it may have run.
    pub(crate) started: bool,
    /// The envelope that it came in.
    pub(crate) request: Option<Digest>,
    /// What its sender wants of the result.
    pub(crate) reply: Option<Reply>,
}

/// Who a task comes from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Origin<'a> {
    /// The envelope that it came in, if there was one.
    pub(crate) signed: Option<&'a Signed>,
    /// What its sender wants of the result.
    pub(crate) reply: Option<&'a Reply>,
}

/// A nonce that came before.
#[derive(Clone, Copy, Debug)]
struct Nonce {
    envelope: Digest,
    until: u64,
    /// Tells the keys apart, well enough to count.
    of: u32,
}

impl Nonce {
    fn of(signed: &Signed) -> Self {
        Self {
            envelope: signed.envelope,
            until: signed.expires,
            of: crc::crc32(signed.kid.as_bytes()),
        }
    }

    fn record(self, id: Digest) -> Record {
        let Self {
            envelope: env,
            until,
            of,
        } = self;
        Record::Nonce { id, env, until, of }
    }
}

/// Why no command is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    /// What was put on hold: this host, a group or all.
    pub(crate) target: String,
    /// Until when, in seconds since 1970.
    pub(crate) until: u64,
    /// The key that asked for it.
    pub(crate) by: String,
    /// The reason that was given.
    pub(crate) reason: String,
}

impl Hold {
    fn record(&self) -> Record {
        let Self {
            target,
            until,
            by,
            reason,
        } = self.clone();
        Record::Hold {
            target,
            until,
            by,
            reason,
        }
    }
}

/// What is known of the nonce of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It comes for the first time.
    Never,
    /// It came before in the same envelope, so the message is delivered again or replayed as it was.
    Same,
    /// It came before in another envelope.
    Other,
    /// It may have come before and have been forgotten: by the clock that was right then, it has expired.
    Forgotten,
    /// There is no room to remember it.
    Full,
    /// What is remembered would not outlive the daemon.
    NotDurable,
}

/// Counts what was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Stretches of the journal that were damaged.
    pub(crate) damaged: usize,
    /// Results that had to go before the broker had them.
    pub(crate) results: u64,
}

/// The journal, and what it says.
pub(crate) struct Store {
    log: Log,
    known: BTreeMap<Number, Known>,
    by_key: HashMap<Key, Number>,
    cooling: HashMap<(String, String), u64>,
    nonces: HashMap<Digest, Nonce>,
    /// Until when nonces counted that are forgotten.
    forgotten: u64,
    /// One of each target at most.
    holds: Vec<Hold>,
    next: Number,
    /// How many monitors have worked with this journal.
    starts: u64,
    losses: Losses,
}

impl Store {
    /// Opens the journal in a directory. Where that cannot be, the journal is only in memory, and the error
    /// says why: commands must be able to run on a host that is in trouble.
    pub(crate) fn open(dir: &Path) -> (Self, Option<String>) {
        match open_file(dir).and_then(|file| Self::from_file(file, dir)) {
            Ok(store) => (store, None),
            Err(error) => {
                let why = format!("{}: {error}", dir.join(FILE).display());
                (Self::in_memory(), Some(why))
            }
        }
    }

    fn from_file(file: File, dir: &Path) -> io::Result<Self> {
        match Self::read(Medium::File(file), HALF) {
            Ok(store) => Ok(store),
            Err(OpenError::Io(error)) => Err(error),
            Err(OpenError::Version(version)) => {
                // Whoever goes back to that version finds it again.
                let aside = dir.join(format!("{FILE}.version-{version}"));
                fs::rename(dir.join(FILE), &aside)?;
                warn!(
                    "the journal is of version {version} and was put aside as {}",
                    aside.display()
                );
                match Self::read(Medium::File(open_file(dir)?), HALF) {
                    Ok(store) => Ok(store),
                    Err(OpenError::Io(error)) => Err(error),
                    Err(OpenError::Version(_)) => Err(io::Error::other("it changes meanwhile")),
                }
            }
        }
    }

    /// A journal that ends with the process.
    pub(crate) fn in_memory() -> Self {
        let memory = Medium::Memory(vec![0; 2 * HALF_IN_MEMORY]);
        match Self::read(memory, HALF_IN_MEMORY) {
            Ok(store) => store,
            Err(_) => unreachable!("memory of the right size can be read and written"),
        }
    }

    fn read(medium: Medium, half: usize) -> Result<Self, OpenError> {
        let mut contents = Contents::default();
        let (log, damaged) = Log::open(medium, half, &mut |place, payload| {
            contents.take(place, payload);
        })?;
        let Contents {
            known,
            by_key,
            cooling,
            nonces,
            forgotten,
            holds,
            next,
            starts,
            strange,
        } = contents;
        if damaged + strange > 0 {
            warn!(
                "the journal was damaged in {} places; what stood there is lost",
                damaged + strange
            );
        }
        let mut store = Self {
            log,
            known,
            by_key,
            cooling,
            nonces,
            forgotten,
            holds,
            next: next.max(1),
            starts: starts.saturating_add(1),
            losses: Losses {
                damaged: damaged + strange,
                results: 0,
            },
        };
        store.write(&[Record::Began {
            starts: store.starts,
        }]);
        Ok(store)
    }

    /// How many monitors have worked with this journal, this one included.
    pub(crate) fn starts(&self) -> u64 {
        self.starts
    }

    /// Whether what is written outlives the process.
    pub(crate) fn is_durable(&self) -> bool {
        self.log.is_durable()
    }

    /// A handle for writing what was written to the disk. None if there is only memory.
    pub(crate) fn sync_handle(&self) -> Option<File> {
        self.log.file().and_then(|file| file.try_clone().ok())
    }

    /// What was lost so far.
    pub(crate) fn losses(&self) -> Losses {
        self.losses
    }

    /// Whether a task came before.
    pub(crate) fn find(&self, key: &Key) -> Option<Earlier> {
        let number = *self.by_key.get(key)?;
        let known = self.known.get(&number)?;
        Some(Earlier {
            number,
            at: time(known.at),
            progress: match known.state {
                State::Accepted(_) => Progress::UnderWay,
                State::Finished {
                    delivered: false, ..
                } => Progress::Finished,
                State::Finished { .. } => Progress::Delivered,
            },
        })
    }

    /// The result of a task, if it is kept.
    pub(crate) fn result(&self, number: Number) -> Option<Outcome> {
        let State::Finished {
            place: Some(place), ..
        } = self.known.get(&number)?.state
        else {
            return None;
        };
        let bytes = self.log.read(place).ok()?;
        outcome(serde_json::from_slice(&bytes).ok()?)
    }

    /// What the monitor before this one did not finish.
    pub(crate) fn left_behind(&self) -> Vec<LeftBehind> {
        let tasks = self.known.values().filter_map(|known| match &known.state {
            State::Accepted(task) => Some(LeftBehind::clone(task)),
            State::Finished { .. } => None,
        });
        tasks.collect()
    }

    /// Results that the broker does not have.
    pub(crate) fn undelivered(&self) -> Vec<(Number, Outcome)> {
        let results = self.known.iter().filter_map(|(number, known)| {
            let waiting = matches!(
                known.state,
                State::Finished {
                    delivered: false,
                    ..
                }
            );
            let outcome = waiting.then(|| self.result(*number))?;
            Some((*number, outcome?))
        });
        results.collect()
    }

    /// Commands that are cooling down, and for how long.
    pub(crate) fn cooling(&self, now: SystemTime) -> Vec<(String, String, Duration)> {
        let now = milliseconds(now);
        self.cooling
            .iter()
            .filter(|(_, until)| **until > now)
            .map(|((service, command), until)| {
                let left = Duration::from_millis(until - now);
                (service.clone(), command.clone(), left)
            })
            .collect()
    }

    /// What is known of the nonce of a message.
    pub(crate) fn seen(&mut self, signed: &Signed, now: SystemTime) -> Seen {
        self.forget_nonces(now);
        let new = Nonce::of(signed);
        match self.nonces.get(&signed.nonce) {
            Some(known) if known.envelope == new.envelope => return Seen::Same,
            Some(_) => return Seen::Other,
            None => {}
        }
        let of_key = self.nonces.values().filter(|known| known.of == new.of);
        if !self.log.is_durable() {
            Seen::NotDurable
        } else if new.until <= self.forgotten {
            Seen::Forgotten
        } else if self.nonces.len() >= MAX_NONCES || of_key.count() >= MAX_NONCES_OF_KEY {
            Seen::Full
        } else {
            Seen::Never
        }
    }

    /// Recovery is on hold.
    pub(crate) fn hold(&mut self, hold: Hold) {
        self.write(&[hold.record()]);
        self.holds.retain(|known| known.target != hold.target);
        self.holds.push(hold);
    }

    /// The hold of a target is over. Says whether there was one.
    pub(crate) fn release(&mut self, target: &str, by: &str) -> bool {
        let Some(at) = self.holds.iter().position(|hold| hold.target == target) else {
            return false;
        };
        let mut hold = self.holds.remove(at);
        hold.until = 0;
        hold.by = by.to_owned();
        self.write(&[hold.record()]);
        true
    }

    /// The hold that lasts longest, if there is one.
    pub(crate) fn held(&self, now: SystemTime) -> Option<&Hold> {
        let now = seconds(now);
        let holds = self.holds.iter().filter(|hold| hold.until > now);
        holds.max_by_key(|hold| hold.until)
    }

    /// A nonce came with a message that is no task.
    pub(crate) fn burn(&mut self, signed: &Signed) {
        let record = self.nonce_record(signed);
        self.write(&[record]);
    }

    fn nonce_record(&mut self, signed: &Signed) -> Record {
        let nonce = Nonce::of(signed);
        self.nonces.insert(signed.nonce, nonce);
        nonce.record(signed.nonce)
    }

    /// Forgets nonces that have expired. Should the clock be set back, no message counts that expires before those
    /// did.
    fn forget_nonces(&mut self, now: SystemTime) {
        let now = seconds(now);
        let forgotten = &mut self.forgotten;
        self.nonces.retain(|_, nonce| {
            let keep = nonce.until >= now;
            if !keep {
                *forgotten = (*forgotten).max(nonce.until);
            }
            keep
        });
    }

    /// A task is to be run.
    pub(crate) fn accept(
        &mut self,
        task: &TaskId,
        key: Key,
        service: &str,
        command: &str,
        now: SystemTime,
        Origin { signed, reply }: Origin<'_>,
    ) -> Number {
        let n = self.number();
        let at = seconds(now);
        let request = signed.map(|signed| signed.envelope);
        boundary::reached(Boundary::BeforeAccepted);
        let mut records = vec![Record::Accepted {
            n,
            task: task.to_string(),
            key,
            service: service.to_owned(),
            command: command.to_owned(),
            at,
            req: request,
            reply: reply.cloned(),
        }];
        // With one write, lest one be there without the other.
        records.extend(signed.map(|signed| self.nonce_record(signed)));
        self.write(&records);
        boundary::reached(Boundary::AfterAccepted);
        let state = State::Accepted(Box::new(LeftBehind {
            number: n,
            task: task.clone(),
            service: service.to_owned(),
            command: command.to_owned(),
            started: false,
            request,
            reply: reply.cloned(),
        }));
        let key = Some(key);
        self.insert(n, Known { key, at, state });
        n
    }

    /// A task is about to be run.
    pub(crate) fn start(&mut self, number: Number, cooldown: Option<Duration>, now: SystemTime) {
        let mut records = vec![Record::Started { n: number }];
        if let Some(Known {
            state: State::Accepted(task),
            ..
        }) = self.known.get_mut(&number)
        {
            task.started = true;
            let (service, command) = (&task.service, &task.command);
            if let Some(cooldown) = cooldown {
                let until = milliseconds(now + cooldown);
                let now = milliseconds(now);
                self.cooling.retain(|_, until| *until > now);
                self.cooling
                    .insert((service.clone(), command.clone()), until);
                records.push(Record::Cooling {
                    service: service.clone(),
                    command: command.clone(),
                    until,
                });
            }
        }
        boundary::reached(Boundary::BeforeStarted);
        self.write(&records);
        boundary::reached(Boundary::AfterStarted);
    }

    /// A task has ended.
    pub(crate) fn finish(&mut self, number: Number, outcome: &Outcome) {
        let key = self.known.get(&number).and_then(|known| known.key);
        boundary::reached(Boundary::BeforeFinished);
        self.finished(number, key, outcome);
        boundary::reached(Boundary::AfterFinished);
    }

    /// A message that is no task is answered.
    pub(crate) fn answer(&mut self, outcome: &Outcome) -> Number {
        let number = self.number();
        self.finished(number, None, outcome);
        number
    }

    fn finished(&mut self, n: Number, key: Option<Key>, outcome: &Outcome) {
        let at = self
            .known
            .get(&n)
            .map_or(seconds(outcome.at), |known| known.at);
        let (message, stderr) = self.cut(outcome);
        let places = self.write(&[Record::Finished {
            n,
            task: outcome.task.to_string(),
            key,
            code: outcome.code.number(),
            message,
            stderr,
            at: seconds(outcome.at),
            req: outcome.request,
            reply: outcome.reply.clone(),
        }]);
        let state = State::Finished {
            place: places.first().copied(),
            delivered: false,
        };
        self.insert(n, Known { key, at, state });
        self.forget();
    }

    /// What of a result is kept. The rest of the journal needs room, too.
    fn cut(&self, outcome: &Outcome) -> (String, String) {
        // A byte takes up to six in JSON.
        let most = self.log.capacity() / 8;
        let fits =
            |text: &str| serde_json::to_string(text).is_ok_and(|json| json.len() <= most / 2);
        let cut = |text: &str| {
            if fits(text) {
                return text.to_owned();
            }
            let mut end = text.len().min(most / 12);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            format!("{}\n[cut: the journal keeps no more of it]", &text[..end])
        };
        (cut(&outcome.message), cut(&outcome.errors))
    }

    /// The broker has a result, or nobody wants it.
    pub(crate) fn delivered(&mut self, number: Number) {
        let Some(known) = self.known.get_mut(&number) else {
            return;
        };
        let State::Finished { delivered, .. } = &mut known.state else {
            return;
        };
        if std::mem::replace(delivered, true) {
            return;
        }
        let keyed = known.key.is_some();
        boundary::reached(Boundary::BeforeDelivered);
        self.write(&[Record::Delivered { n: number }]);
        boundary::reached(Boundary::AfterDelivered);
        if !keyed {
            self.known.remove(&number);
        }
    }

    /// A result was dropped before the broker had it.
    pub(crate) fn dropped(&mut self, number: Number) {
        self.losses.results += 1;
        self.delivered(number);
    }

    fn number(&mut self) -> Number {
        let number = self.next;
        self.next += 1;
        number
    }

    fn insert(&mut self, number: Number, known: Known) {
        if let Some(key) = known.key {
            self.by_key.insert(key, number);
        }
        self.known.insert(number, known);
    }

    /// Forgets the oldest task that is over, if there are too many.
    fn forget(&mut self) {
        if self.known.len() <= MAX_KNOWN {
            return;
        }
        let over = |known: &Known| {
            matches!(
                known.state,
                State::Finished {
                    delivered: true,
                    ..
                }
            )
        };
        let oldest = self.known.iter().find(|(_, known)| over(known));
        if let Some(number) = oldest.map(|(number, _)| *number) {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: Number) {
        let key = self.known.remove(&number).and_then(|known| known.key);
        if let Some(key) = key {
            // A later task may have the same key, long after.
            if self.by_key.get(&key) == Some(&number) {
                self.by_key.remove(&key);
            }
        }
    }

    /// Writes records, at any price: without a disk, to memory.
    fn write(&mut self, records: &[Record]) -> Vec<Place> {
        let payloads: Vec<_> = records.iter().map(Record::bytes).collect();
        let written = match self.log.append(&payloads) {
            Err(AppendError::Full) => match self.compact() {
                Ok(()) => self.log.append(&payloads),
                Err(error) => Err(AppendError::Io(error)),
            },
            written => written,
        };
        let why = match written {
            Ok(places) => return places,
            Err(AppendError::Io(error)) => error.to_string(),
            Err(AppendError::Full) => "there is no room in it".to_owned(),
        };
        error!("the journal cannot be written, and from now on is only in memory: {why}");
        let Self { log, .. } = Self::in_memory();
        self.log = log;
        for known in self.known.values_mut() {
            if let State::Finished { place, .. } = &mut known.state {
                *place = None;
            }
        }
        self.log.append(&payloads).unwrap_or_default()
    }

    /// Writes what still matters to the other half of the journal.
    fn compact(&mut self) -> io::Result<()> {
        let capacity = self.log.capacity();
        let mut kept: BTreeMap<Number, Vec<Vec<u8>>> = BTreeMap::new();
        let mut used = 0;
        let size_of = |payloads: &[Vec<u8>]| -> usize {
            payloads
                .iter()
                .map(|payload| log::size(payload.len()))
                .sum()
        };
        for (number, known) in &self.known {
            if let State::Accepted(accepted) = &known.state {
                let LeftBehind {
                    task,
                    service,
                    command,
                    started,
                    request,
                    reply,
                    ..
                } = &**accepted;
                let n = *number;
                let mut payloads = Vec::new();
                if let Some(key) = known.key {
                    payloads.push(
                        Record::Accepted {
                            n,
                            task: task.to_string(),
                            key,
                            service: service.clone(),
                            command: command.clone(),
                            at: known.at,
                            req: *request,
                            reply: reply.clone(),
                        }
                        .bytes(),
                    );
                }
                if *started {
                    payloads.push(Record::Started { n }.bytes());
                }
                used += size_of(&payloads);
                kept.insert(n, payloads);
            }
        }
        let mut others: Vec<_> = self
            .cooling
            .iter()
            .map(|((service, command), until)| {
                Record::Cooling {
                    service: service.clone(),
                    command: command.clone(),
                    until: *until,
                }
                .bytes()
            })
            .collect();
        let began = Record::Began {
            starts: self.starts,
        }
        .bytes();
        others.extend(self.holds.iter().map(|hold| hold.record().bytes()));
        // In memory they protect from nothing, and there is less room.
        if self.log.is_durable() {
            let nonces = self.nonces.iter();
            others.extend(nonces.map(|(id, nonce)| nonce.record(*id).bytes()));
            let until = self.forgotten;
            others.push(Record::Forgotten { until }.bytes());
        }
        used += size_of(&others) + log::size(began.len());

        // Results that the broker does not have, the newest first.
        let mut lost = Vec::new();
        for (number, known) in self.known.iter().rev() {
            let State::Finished {
                place,
                delivered: false,
            } = known.state
            else {
                continue;
            };
            match place.and_then(|place| self.log.read(place).ok()) {
                Some(payload) if used + log::size(payload.len()) <= capacity / 2 => {
                    used += log::size(payload.len());
                    kept.insert(*number, vec![payload]);
                }
                _ => lost.push(*number),
            }
        }
        // That tasks have been run, as many as possible; then their results.
        let mut over = Vec::new();
        for (number, known) in self.known.iter().rev() {
            let (State::Finished { place, .. }, Some(key)) = (&known.state, known.key) else {
                continue;
            };
            if kept.contains_key(number) {
                continue;
            }
            let payload = Record::Over {
                n: *number,
                key,
                at: known.at,
            }
            .bytes();
            if used + log::size(payload.len()) > capacity / 8 * 5 {
                break;
            }
            used += log::size(payload.len());
            kept.insert(*number, vec![payload]);
            over.push((*number, *place));
        }
        for (number, place) in over {
            let Some(payload) = place.and_then(|place| self.log.read(place).ok()) else {
                continue;
            };
            let payloads = vec![payload, Record::Delivered { n: number }.bytes()];
            let more = size_of(&payloads);
            if used + more > capacity / 4 * 3 {
                break;
            }
            used += more;
            kept.insert(number, payloads);
        }

        boundary::reached(Boundary::BeforeCompacted);
        let all = kept
            .values()
            .flatten()
            .chain(&others)
            .chain([&began])
            .cloned();
        let places = self.log.rewrite(all)?;
        boundary::reached(Boundary::AfterCompacted);
        let mut places = places.into_iter();
        let mut firsts = HashMap::new();
        for (number, payloads) in &kept {
            let first = places.next();
            for _ in 1..payloads.len() {
                places.next();
            }
            firsts.insert(*number, (first, payloads.len()));
        }
        if !lost.is_empty() {
            warn!(
                "{} results that the broker does not have had to leave the journal",
                lost.len()
            );
            self.losses.results += lost.len() as u64;
        }
        let numbers: Vec<_> = self.known.keys().copied().collect();
        for number in numbers {
            let Some((first, count)) = firsts.get(&number) else {
                self.remove(number);
                continue;
            };
            if let Some(Known {
                state: State::Finished { place, delivered },
                ..
            }) = self.known.get_mut(&number)
            {
                // One that is over has either its result and a remark, or a remark.
                *delivered |= lost.contains(&number);
                *place = first.filter(|_| !*delivered || *count == 2);
            }
        }
        Ok(())
    }
}

/// What the records of a journal say, read one after the other.
#[derive(Default)]
struct Contents {
    known: BTreeMap<Number, Known>,
    by_key: HashMap<Key, Number>,
    cooling: HashMap<(String, String), u64>,
    nonces: HashMap<Digest, Nonce>,
    forgotten: u64,
    holds: Vec<Hold>,
    next: Number,
    starts: u64,
    strange: usize,
}

impl Contents {
    fn take(&mut self, place: Place, payload: &[u8]) {
        let Ok(record) = serde_json::from_slice(payload) else {
            self.strange += 1;
            return;
        };
        let (n, known) = match record {
            Record::Accepted {
                n,
                task,
                key,
                service,
                command,
                at,
                req,
                reply,
            } => {
                let Some(task) = TaskId::from_json(&task) else {
                    self.strange += 1;
                    return;
                };
                let state = State::Accepted(Box::new(LeftBehind {
                    number: n,
                    task,
                    service,
                    command,
                    started: false,
                    request: req,
                    reply,
                }));
                let key = Some(key);
                (n, Known { key, at, state })
            }
            Record::Started { n } => {
                if let Some(Known {
                    state: State::Accepted(task),
                    ..
                }) = self.known.get_mut(&n)
                {
                    task.started = true;
                }
                return;
            }
            Record::Finished { n, key, at, .. } => {
                let at = self.known.get(&n).map_or(at, |known| known.at);
                let state = State::Finished {
                    place: Some(place),
                    delivered: false,
                };
                (n, Known { key, at, state })
            }
            Record::Delivered { n } => {
                if let Some(Known {
                    key,
                    state: State::Finished { delivered, .. },
                    ..
                }) = self.known.get_mut(&n)
                {
                    *delivered = true;
                    if key.is_none() {
                        self.known.remove(&n);
                    }
                }
                return;
            }
            Record::Over { n, key, at } => {
                let state = State::Finished {
                    place: None,
                    delivered: true,
                };
                let key = Some(key);
                (n, Known { key, at, state })
            }
            Record::Cooling {
                service,
                command,
                until,
            } => {
                self.cooling.insert((service, command), until);
                return;
            }
            Record::Nonce { id, env, until, of } => {
                let envelope = env;
                self.nonces.insert(
                    id,
                    Nonce {
                        envelope,
                        until,
                        of,
                    },
                );
                return;
            }
            Record::Hold {
                target,
                until,
                by,
                reason,
            } => {
                self.holds.retain(|known| known.target != target);
                if until > 0 {
                    self.holds.push(Hold {
                        target,
                        until,
                        by,
                        reason,
                    });
                }
                return;
            }
            Record::Forgotten { until } => {
                self.forgotten = self.forgotten.max(until);
                return;
            }
            Record::Began { starts } => {
                self.starts = starts;
                return;
            }
            Record::Unknown => return,
        };
        if n > Number::MAX / 2 {
            // Nobody has counted so far, and the numbers must not run out.
            self.strange += 1;
            return;
        }
        if let Some(key) = known.key {
            self.by_key.insert(key, n);
        }
        self.known.insert(n, known);
        self.next = self.next.max(n + 1);
    }
}

fn outcome(record: Record) -> Option<Outcome> {
    let Record::Finished {
        task,
        code,
        message,
        stderr,
        at,
        req,
        reply,
        ..
    } = record
    else {
        return None;
    };
    Some(Outcome {
        task: TaskId::from_json(&task)?,
        message,
        errors: stderr,
        // A code of a version to come says no more than that.
        code: Code::from_number(code).unwrap_or(Code::Interrupted),
        at: time(at),
        request: req,
        reply,
    })
}

/// A time that the journal says. One that no clock can show is as good as none.
fn time(seconds: u64) -> SystemTime {
    let since = Duration::from_secs(seconds);
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Opens a journal with these records, in which some bytes are damaged, and works with it; for the fuzzer.
pub(crate) fn try_journal(records: &[Vec<u8>], damage: &BTreeMap<usize, u8>) {
    const HALF: usize = 32 * 1024;
    let open = |memory: &[u8]| {
        let medium = Medium::Memory(memory.to_vec());
        Store::read(medium, HALF).unwrap_or_else(|error| panic!("{error:?}"))
    };
    let medium = Medium::Memory(vec![0; 2 * HALF]);
    let (mut log, _) =
        Log::open(medium, HALF, &mut |_, _| {}).unwrap_or_else(|error| panic!("{error:?}"));
    for record in records {
        if log.append(std::slice::from_ref(record)).is_err() {
            break;
        }
    }
    let mut memory = log.memory().to_vec();
    for (at, change) in damage {
        if let Some(byte) = memory.get_mut(*at) {
            *byte ^= change;
        }
    }

    let mut store = open(&memory);
    let now = UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let outcome = |task: TaskId| Outcome {
        task,
        message: "x".repeat(2000),
        errors: String::new(),
        code: Code::Interrupted,
        at: now,
        request: None,
        reply: None,
    };
    for (number, result) in store.undelivered() {
        assert_eq!(store.result(number).as_ref(), Some(&result));
    }
    for key in store.by_key.keys() {
        store.find(key);
    }
    store.cooling(now);
    for task in store.left_behind() {
        store.finish(task.number, &outcome(task.task));
    }
    // Until what was read has been written anew, and that again.
    let last = store.log.generation() + 2;
    for task in 0..10_000 {
        if store.log.generation() < last {
            let number = store.answer(&outcome(TaskId::from(task)));
            store.delivered(number);
        }
    }
    assert_eq!(store.log.generation(), last);
    let again = open(store.log.memory());
    assert!(again.left_behind().is_empty());
    assert!(again.starts() > store.starts() || store.starts() == u64::MAX);
    assert_eq!(again.losses().damaged, 0);
}

/// Opens the file, makes sure that nobody else has it, and that there is room for all of it.
fn open_file(dir: &Path) -> io::Result<File> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let path = dir.join(FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    // Whoever can write to it can make what was run, or refused, run again.
    files::check_own(&path, &file).map_err(io::Error::other)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::other("another monitor uses it"))?;
    let wanted = 2 * HALF as u64;
    if metadata.len() < wanted {
        // Written, not only reserved: a write to it must never need a new block.
        let filled = fill(&mut file, metadata.len(), wanted);
        if filled.is_err() {
            // What fills up the rest of a full filesystem helps nobody.
            file.set_len(metadata.len())?;
        }
        filled?;
    }
    Ok(file)
}

fn fill(file: &mut File, from: u64, to: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom};

    const CHUNK: u64 = 64 * 1024;
    let zeros = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    file.seek(SeekFrom::Start(from))?;
    let mut at = from;
    while at < to {
        let length = usize::try_from((to - at).min(CHUNK)).unwrap_or(0);
        file.write_all(&zeros[..length])?;
        at += length as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Message;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_606_351_279)
    }

    fn key(id: u64) -> Key {
        let text = format!(r#"{{"task_id":{id},"service":"s","command":"c"}}"#);
        Message::parse(text.as_bytes()).unwrap().key()
    }

    fn result(id: u64, message: &str) -> Outcome {
        Outcome {
            task: id.into(),
            message: message.into(),
            errors: String::new(),
            code: Code::Exit(3),
            at: now(),
            request: None,
            reply: None,
        }
    }

    fn open(dir: &Path) -> Store {
        let (store, problem) = Store::open(dir);
        assert_eq!(problem, None);
        store
    }

    /// A task that has run, with a message of so many bytes.
    fn run(store: &mut Store, id: u64, length: usize) -> Number {
        let number = store.accept(&id.into(), key(id), "s", "c", now(), Origin::default());
        store.start(number, None, now());
        store.finish(number, &result(id, &"x".repeat(length)));
        number
    }

    #[test]
    fn what_is_kept_survives_any_number_of_halves() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let running = store.accept(
            &1_000_001.into(),
            key(1_000_001),
            "s",
            "c",
            now(),
            Origin::default(),
        );
        store.start(running, Some(Duration::from_secs(100)), now());
        let waiting = store.accept(
            &1_000_002.into(),
            key(1_000_002),
            "s",
            "c",
            now(),
            Origin::default(),
        );
        store.start(running, Some(Duration::from_secs(100)), now());
        let unsent = run(&mut store, 1_000_003, 10);
        let answer = store.answer(&result(1_000_004, "no"));
        // Each is about a thousandth of a half.
        for id in 0..6000 {
            let number = run(&mut store, id, 4000);
            store.delivered(number);
        }
        assert!(store.log.is_durable());
        drop(store);
        let mut store = open(dir.path());
        let left: Vec<_> = store
            .left_behind()
            .iter()
            .map(|t| (t.number, t.started))
            .collect();
        assert_eq!(left, [(running, true), (waiting, false)]);
        let undelivered = store.undelivered();
        let numbers: Vec<_> = undelivered.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [unsent, answer]);
        assert_eq!(undelivered[1].1, result(1_000_004, "no"));
        assert_eq!(store.cooling(now()).len(), 1);
        assert_eq!(store.starts(), 2);
        assert_eq!(store.losses(), Losses::default());
        // Every task is known, and the last ones with their results.
        for id in 0..6000 {
            let earlier = store.find(&key(id)).unwrap_or_else(|| panic!("task {id}"));
            assert_eq!(earlier.progress, Progress::Delivered);
        }
        let last = store.find(&key(5999)).unwrap().number;
        assert_eq!(store.result(last), Some(result(5999, &"x".repeat(4000))));
        let first = store.find(&key(0)).unwrap().number;
        assert_eq!(store.result(first), None);
        assert!(run(&mut store, 7000, 1) > last);
    }

    #[test]
    fn results_that_nobody_fetches_do_not_fill_the_journal_and_their_loss_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        for id in 0..200 {
            run(&mut store, id, 60_000);
        }
        let kept = store.undelivered();
        let lost = store.losses().results;
        assert!(
            lost > 0 && kept.len() as u64 + lost == 200,
            "{} {lost}",
            kept.len()
        );
        assert_eq!(kept.last().map(|(_, o)| o.task.clone()), Some(199.into()));
        for id in 0..200 {
            assert!(store.find(&key(id)).is_some(), "task {id}");
        }
        assert!(store.is_durable());
    }

    #[test]
    fn a_result_that_is_too_long_is_cut_on_a_character() {
        let mut store = Store::in_memory();
        let long = "é\0".repeat(400_000);
        let number = run(&mut store, 1, 1);
        store.finish(
            number,
            &Outcome {
                errors: long.clone(),
                ..result(1, &long)
            },
        );
        let kept = store.result(number).unwrap();
        for text in [kept.message, kept.errors] {
            let text = text
                .strip_suffix("\n[cut: the journal keeps no more of it]")
                .unwrap();
            assert!(!text.is_empty() && long.starts_with(text));
        }
    }

    #[test]
    fn the_oldest_tasks_are_forgotten_first() {
        let mut store = Store::in_memory();
        let first = run(&mut store, 0, 1);
        let second = run(&mut store, 1, 1);
        store.delivered(second);
        for id in 2..=MAX_KNOWN as u64 {
            let number = run(&mut store, id, 1);
            store.delivered(number);
        }
        // The first one's result is still on its way.
        assert_eq!(
            store.find(&key(0)).map(|earlier| earlier.number),
            Some(first)
        );
        assert_eq!(store.find(&key(1)), None);
        assert!(store.find(&key(MAX_KNOWN as u64)).is_some());
    }

    #[test]
    fn damage_costs_what_is_damaged_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        for id in 0..10 {
            run(&mut store, id, 100);
        }
        drop(store);
        let path = dir.path().join(FILE);
        let good = fs::read(&path).unwrap();
        let used = good[..HALF].iter().rposition(|byte| *byte != 0).unwrap();
        for at in (4096..used).step_by(397) {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            fs::write(&path, &bad).unwrap();
            let mut store = open(dir.path());
            let known = (0..10).filter(|id| store.find(&key(*id)).is_some()).count();
            assert!(known >= 9, "{known} known with byte {at} damaged");
            assert!(store.losses().damaged <= 1);
            run(&mut store, 20, 1);
            drop(store);
            assert!(open(dir.path()).find(&key(20)).is_some());
        }
        // Whatever the file is cut to, it can be opened and used.
        for length in [0, 1, 35, 4096, 5000, used, HALF, HALF + 1, HALF + 5000] {
            fs::write(&path, &good[..length]).unwrap();
            let mut store = open(dir.path());
            run(&mut store, 20, 1);
            drop(store);
            assert!(open(dir.path()).find(&key(20)).is_some(), "cut to {length}");
        }
    }

    #[test]
    fn records_and_fields_of_a_version_to_come_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let strange = br#"{"r":"blessed","n":7,"by":"x"}"#.to_vec();
        let longer = format!(
            r#"{{"r":"over","n":9,"key":{},"at":1,"new":[1]}}"#,
            serde_json::to_string(&key(1)).unwrap()
        );
        store.log.append(&[strange, longer.into_bytes()]).unwrap();
        drop(store);
        let store = open(dir.path());
        assert_eq!(store.losses().damaged, 0);
        assert_eq!(store.find(&key(1)).map(|earlier| earlier.number), Some(9));
    }

    #[test]
    fn a_journal_of_a_version_to_come_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = 9;
        let crc = crc::crc32(&bytes[..32]).to_le_bytes();
        bytes[32..36].copy_from_slice(&crc);
        fs::write(&path, &bytes).unwrap();
        drop(open(dir.path()));
        assert_eq!(
            fs::read(dir.path().join("journal.version-9")).unwrap(),
            bytes
        );
    }

    #[test]
    fn a_journal_that_others_could_have_written_is_not_used() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        drop(open(&state));
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let refused = |why: &str| {
            let (store, problem) = Store::open(&state);
            let problem = problem.unwrap();
            assert!(problem.contains(why), "{problem}");
            assert!(!store.is_durable());
        };
        let file = state.join(FILE);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(&state)), (0o600, 0o700));
        set(&file, 0o620);
        refused("can be written by others");
        // Results may hold secrets, but a site may have let somebody read them.
        set(&file, 0o640);
        drop(open(&state));
        set(&file, 0o600);
        set(&state, 0o777);
        refused("state: can be written by others");
        set(&state, 0o700);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
            refused("belongs to the user 65534");
            std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        }
        drop(open(&state));
        fs::rename(&file, state.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &file).unwrap();
        refused("symbolic link");
    }

    #[test]
    fn without_a_usable_directory_there_is_memory_and_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let (second, problem) = Store::open(dir.path());
        assert!(problem.unwrap().ends_with("another monitor uses it"));
        assert!(!second.is_durable());
        drop(store);
        fs::write(dir.path().join("file"), "").unwrap();
        for path in ["file", "file/below"] {
            let (mut store, problem) = Store::open(&dir.path().join(path));
            assert!(problem.is_some_and(|problem| problem.contains("file")));
            let number = run(&mut store, 1, 10);
            assert!(store.result(number).is_some());
        }
        // Nobody else may read results.
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
            0o600
        );
    }
}
