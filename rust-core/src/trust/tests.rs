//! What reaches a host, and what does not: messages that are forged, altered, replayed or meant for others.

use super::*;
use crate::clock::{iso8601, parse_iso8601};
use crate::daemon::Daemon;
use crate::engine::{Delivery, Engine, Input, Output, Parts};
use crate::fake::FakeDaemon;
use crate::protocol::Outcome;
use crate::runner::{End, Event, Job, Report, Runner};
use crate::settings::{Block, Settings, Value};
use crate::store::Store;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use base64::Engine as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

const NOW: &str = "2026-11-26T12:00:00Z";

/// A runner that counts, and never runs anything.
struct Counting(Arc<Mutex<Vec<Job>>>);

impl Runner for Counting {
    fn run(&mut self, job: &Job) -> Result<(), String> {
        self.0.lock().unwrap().push(job.clone());
        Ok(())
    }

    fn lost(&mut self) {}

    fn stop(&mut self) {}
}

/// A host with a trust file, and the engine of its monitor.
struct Host {
    dir: tempfile::TempDir,
    alice: SigningKey,
    bob: SigningKey,
    trust: Arc<Trust>,
    engine: Option<Engine>,
    writer: Option<std::thread::JoinHandle<()>>,
    jobs: Arc<Mutex<Vec<Job>>>,
    outputs: Arc<Mutex<Vec<Output>>>,
    now: Arc<Mutex<SystemTime>>,
    finished: usize,
    token: u64,
}

fn entry(key: &SigningKey, more: &str) -> String {
    let public = key.public();
    format!(
        r#"{{"kid":"{}","x":"{}",{more}}}"#,
        public.kid(),
        public.x()
    )
}

/// Alice may do everything here, and Bob one thing.
fn trust_file(alice: &SigningKey, bob: &SigningKey) -> String {
    let alice = entry(
        alice,
        r#""kinds":["command","parameters","configuration","hold"],"services":{"*":["*"]},"targets":["host:*","group:*","all"]"#,
    );
    let bob = entry(
        bob,
        r#""kinds":["command"],"services":{"web":["status"]},"targets":["host:web1"],"until":"2026-12-01T00:00:00Z""#,
    );
    format!(r#"{{"keys":[{alice},{bob}]}}"#)
}

impl Host {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut settings::Trust)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let alice = SigningKey::generate(Some("alice")).unwrap();
        let bob = SigningKey::generate(Some("bob")).unwrap();
        fs::write(dir.path().join("trust.json"), trust_file(&alice, &bob)).unwrap();
        let mut settings = settings::Trust {
            file: Some(dir.path().join("trust.json")),
            require_signature: true,
            groups: vec!["web".into()],
            audit_log: Some(dir.path().join("audit")),
            ..settings::Trust::default()
        };
        change(&mut settings);
        let daemon: Arc<dyn Daemon> = Arc::new(FakeDaemon::new("web1"));
        let (trust, writer) = Trust::new(settings, &daemon).unwrap();
        let mut host = Self {
            dir,
            alice,
            bob,
            trust: Arc::new(trust),
            engine: None,
            writer: writer.map(|writer| std::thread::spawn(|| writer.run())),
            jobs: Arc::default(),
            outputs: Arc::default(),
            now: Arc::new(Mutex::new(parse_iso8601(NOW).unwrap())),
            finished: 0,
            token: 0,
        };
        host.start();
        host
    }

    /// A monitor takes up where the one before it left off.
    fn start(&mut self) {
        self.engine = None;
        let (store, problem) = Store::open(&self.dir.path().join("state"));
        assert_eq!(problem, None);
        let mut block = Block::option("Plugin", [Value::from("monitor")])
            .with("Host", "h")
            .with("CommandTopic", "c");
        for name in ["web", "db"] {
            let mut service = Block::option("Service", [Value::from(name)]);
            for command in ["restart", "status"] {
                let values = [Value::from(command), Value::from("true")];
                service.children.push(Block::option("Command", values));
            }
            block = block.with_block(service);
        }
        let settings = Settings::read(&block).unwrap();
        let clock = Arc::clone(&self.now);
        let sink = Arc::clone(&self.outputs);
        self.engine = Some(Engine::new(Parts {
            metrics: Arc::default(),
            services: settings.services,
            runner: Box::new(Counting(Arc::clone(&self.jobs))),
            store: Arc::new(Mutex::new(store)),
            syncer: None,
            freshness: settings.freshness,
            trust: Arc::clone(&self.trust),
            clock: Box::new(move || *clock.lock().unwrap()),
            outputs: Box::new(move |output| sink.lock().unwrap().push(output)),
        }));
        self.finished = self.jobs.lock().unwrap().len();
    }

    fn now(&self) -> SystemTime {
        *self.now.lock().unwrap()
    }

    fn pass(&self, seconds: i64) {
        let change = Duration::from_secs(seconds.unsigned_abs());
        let mut now = self.now.lock().unwrap();
        *now = match seconds < 0 {
            true => *now - change,
            false => *now + change,
        };
    }

    /// What the broker delivers, as the connection hands it on.
    fn deliver(&mut self, payload: &[u8]) {
        self.token += 1;
        let delivery = Delivery {
            token: self.token,
            again: false,
            ..Delivery::default()
        };
        let opened = match self.trust.open(payload, self.now()) {
            Ok(opened) => opened,
            Err(Refusal {
                code,
                why,
                task: Some(task),
                request,
            }) => {
                let input = Input::Refused {
                    task,
                    request,
                    code,
                    why,
                    delivery,
                };
                self.engine.as_mut().unwrap().input(input);
                return;
            }
            Err(_) => return,
        };
        if let Ok(message) = Message::parse(&opened.text) {
            let input = Input::Message(message, opened.authority, delivery);
            self.engine.as_mut().unwrap().input(input);
        }
    }

    /// Ends what runs, so that what waits can begin.
    fn finish(&mut self) {
        loop {
            let started = self.jobs.lock().unwrap().clone();
            if started.len() == self.finished {
                return;
            }
            for job in &started[self.finished..] {
                let report = Report::Finished {
                    id: job.id,
                    end: End::Exited(0),
                    output: "done".into(),
                    errors: String::new(),
                };
                self.engine.as_mut().unwrap().event(Event::Report(report));
            }
            self.finished = started.len();
        }
    }

    fn runs(&self) -> usize {
        self.jobs.lock().unwrap().len()
    }

    /// The codes of the results since the last call.
    fn codes(&self) -> Vec<Code> {
        let outcomes = self.outcomes();
        outcomes.into_iter().map(|outcome| outcome.code).collect()
    }

    fn outcomes(&self) -> Vec<Outcome> {
        let outputs = std::mem::take(&mut *self.outputs.lock().unwrap());
        let results = outputs.into_iter().filter_map(|output| match output {
            Output::Status | Output::Acknowledge(_) => None,
            Output::Result(_, outcome) => Some(outcome),
        });
        results.collect()
    }

    fn message(&self, task: u64, service: &str, command: &str) -> String {
        let now = iso8601(self.now());
        format!(
            r#"{{"task_id":{task},"timestamp":"{now}","service":"{service}","command":"{command}"}}"#
        )
    }

    fn sealed(&self, key: &SigningKey, targets: &[&str], message: &str) -> String {
        let targets: Vec<_> = targets.iter().map(|target| (*target).to_owned()).collect();
        let lifetime = Duration::from_secs(300);
        sign(key, &targets, Kind::Command, message, self.now(), lifetime).unwrap()
    }

    fn restart(&self, task: u64) -> String {
        let message = self.message(task, "web", "restart");
        self.sealed(&self.alice, &["host:web1"], &message)
    }

    fn write_trust(&self, text: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.dir.path().join("trust.json")).unwrap();
    }

    /// The audit log, once everything is over.
    fn audit(mut self) -> Vec<serde_json::Value> {
        self.engine = None;
        let writer = self.writer.take().unwrap();
        let path: PathBuf = self.dir.path().join("audit");
        let Self { trust, dir, .. } = self;
        drop(trust);
        writer.join().unwrap();
        let text = fs::read_to_string(path).unwrap_or_default();
        drop(dir);
        text.lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    /// Delivers something that must not run, and must be in the audit log for this reason.
    #[track_caller]
    fn refuses(
        &mut self,
        what: &str,
        payload: &[u8],
        code: Code,
        expected: &mut Vec<(String, Code)>,
    ) {
        let before = self.runs();
        self.deliver(payload);
        self.finish();
        assert_eq!(self.runs(), before, "{what}");
        expected.push((what.to_owned(), code));
    }
}

/// Signs claims as they are.
fn seal_claims(key: &SigningKey, claims: &str) -> String {
    jws::seal(key, Type::Message, claims).unwrap()
}

fn claims(now: SystemTime, more: &[(&str, &str)]) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut members: BTreeMap<String, String> = BTreeMap::from([
        ("aud".into(), r#""host:web1""#.into()),
        ("iat".into(), seconds.to_string()),
        ("exp".into(), (seconds + 300).to_string()),
        ("jti".into(), r#""0123456789abcdef""#.into()),
        ("kind".into(), r#""command""#.into()),
        (
            "msg".into(),
            r#"{"task_id":1,"service":"web","command":"restart"}"#.into(),
        ),
    ]);
    for (name, value) in more {
        match value.is_empty() {
            true => drop(members.remove(*name)),
            false => drop(members.insert((*name).to_owned(), (*value).to_owned())),
        }
    }
    let members: Vec<_> = members
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    format!("{{{}}}", members.join(","))
}

#[test]
fn what_is_signed_and_permitted_runs_and_is_answered_and_written_down() {
    let mut host = Host::new();
    let envelope = host.restart(1);
    host.deliver(envelope.as_bytes());
    host.finish();
    assert_eq!(host.runs(), 1);
    let [outcome] = &host.outcomes()[..] else {
        panic!("one result")
    };
    assert_eq!(outcome.code, Code::Exit(0));
    assert_eq!(outcome.request, envelope_digest(&envelope));
    let bob = host.sealed(&host.bob, &["host:web1"], &host.message(2, "web", "status"));
    host.deliver(bob.as_bytes());
    host.finish();
    assert_eq!((host.runs(), host.codes()), (2, vec![Code::Exit(0)]));
    // By the group, by all, and by several of which one is this host.
    for (task, targets) in [
        (3, &["group:web"][..]),
        (4, &["all"]),
        (5, &["host:x", "host:web1"]),
    ] {
        let envelope = host.sealed(&host.alice, targets, &host.message(task, "db", "restart"));
        host.deliver(envelope.as_bytes());
        host.finish();
        assert_eq!(host.codes(), [Code::Exit(0)], "{targets:?}");
    }
    let audit = host.audit();
    assert_eq!(audit.len(), 5);
    assert_eq!(audit[0]["by"]["key"], "alice");
    assert_eq!(audit[0]["decision"], "allowed");
    assert_eq!(audit[0]["service"], "web");
    assert_eq!(audit[0]["command"], "restart");
    assert_eq!(audit[0]["targets"][0], "host:web1");
    assert_eq!(audit[0]["task_id"], "1");
    assert_eq!(audit[1]["by"]["key"], "bob");
}

#[test]
fn nothing_that_is_wrong_with_a_message_lets_it_run() {
    let mut host = Host::new();
    let mut expected = Vec::new();
    let now = host.now();
    let good = host.restart(1);
    let parts: Vec<String> = good.split('.').map(str::to_owned).collect();
    let mallory = SigningKey::generate(Some("alice")).unwrap();
    let stranger = SigningKey::generate(Some("mallory")).unwrap();
    let message = host.message(1, "web", "restart");
    let alice = host.alice.clone();
    let alice_x = alice.public().x();
    let mut refuses = |what: &str, payload: String, code: Code| {
        host.refuses(what, payload.as_bytes(), code, &mut expected);
    };

    refuses("unsigned", message.clone(), Code::Unsigned);
    let text = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    let join = |parts: [&str; 3]| parts.join(".");
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);

    // Forged, re-keyed, altered.
    let targets = ["host:web1".to_owned()];
    let hour = Duration::from_secs(300);
    let forged = sign(&mallory, &targets, Kind::Command, &message, now, hour).unwrap();
    refuses(
        "signed with another key of the same name",
        forged,
        Code::BadSignature,
    );
    let unknown = sign(&stranger, &targets, Kind::Command, &message, now, hour).unwrap();
    refuses(
        "signed with a key that is not trusted",
        unknown,
        Code::UnknownKey,
    );
    let header = text(&parts[0]).replace("alice", "bob");
    refuses(
        "re-keyed",
        join([&encode(&header), &parts[1], &parts[2]]),
        Code::BadSignature,
    );
    let altered = text(&parts[1]).replace("\"web\"", "\"db\"");
    refuses(
        "altered",
        join([&parts[0], &encode(&altered), &parts[2]]),
        Code::BadSignature,
    );
    let retargeted = text(&parts[1]).replace("host:web1", "all");
    refuses(
        "retargeted",
        join([&parts[0], &encode(&retargeted), &parts[2]]),
        Code::BadSignature,
    );
    refuses(
        "without a signature",
        join([&parts[0], &parts[1], ""]),
        Code::BadEnvelope,
    );
    refuses(
        "with a signature of zeros",
        join([&parts[0], &parts[1], &URL_SAFE_NO_PAD.encode([0; 64])]),
        Code::BadSignature,
    );

    // Confusion of algorithms.
    let none = text(&parts[0]).replace("EdDSA", "none");
    refuses(
        "alg none",
        join([&encode(&none), &parts[1], ""]),
        Code::BadEnvelope,
    );
    refuses(
        "alg none with a signature",
        join([&encode(&none), &parts[1], &parts[2]]),
        Code::BadEnvelope,
    );
    let hs512 = encode(&text(&parts[0]).replace("EdDSA", "HS512"));
    let public = URL_SAFE_NO_PAD.decode(&alice_x).unwrap();
    let secret = openssl::pkey::PKey::hmac(&public).unwrap();
    let mut signer =
        openssl::sign::Signer::new(openssl::hash::MessageDigest::sha512(), &secret).unwrap();
    signer
        .update(format!("{hs512}.{}", parts[1]).as_bytes())
        .unwrap();
    let mac = URL_SAFE_NO_PAD.encode(signer.sign_to_vec().unwrap());
    refuses(
        "a MAC with the public key",
        join([&hs512, &parts[1], &mac]),
        Code::BadEnvelope,
    );

    // Encoded in another way.
    let padded = URL_SAFE.encode(URL_SAFE_NO_PAD.decode(&parts[2]).unwrap());
    refuses(
        "padded",
        join([&parts[0], &parts[1], &padded]),
        Code::BadEnvelope,
    );
    let standard = STANDARD.encode([0xfb; 64]);
    refuses(
        "in the other alphabet",
        join([&parts[0], &parts[1], &standard]),
        Code::BadEnvelope,
    );
    refuses(
        "with a space in front",
        format!(" {good}"),
        Code::BadEnvelope,
    );
    refuses(
        "with a newline behind",
        format!("{good}\n"),
        Code::BadEnvelope,
    );
    refuses(
        "with a fourth part",
        format!("{good}.{}", parts[2]),
        Code::BadEnvelope,
    );
    for length in [4, good.len() / 2, good.len() - 1] {
        refuses("truncated", good[..length].to_owned(), Code::BadEnvelope);
    }
    let flattened = format!(
        r#"{{"protected":"{}","payload":"{}","signature":"{}","task_id":1,"service":"web","command":"restart"}}"#,
        parts[0], parts[1], parts[2]
    );
    refuses("with a message beside it", flattened, Code::BadEnvelope);

    // Signed by whoever may, and wrong.
    let mut signed = |what: &str, claims: String, code: Code| {
        let payload = seal_claims(&alice, &claims);
        host.refuses(what, payload.as_bytes(), code, &mut expected);
    };
    let at = |seconds: i64| {
        let now = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
        now.checked_add_signed(seconds).unwrap().to_string()
    };
    signed(
        "for another host",
        claims(now, &[("aud", r#""host:web2""#)]),
        Code::WrongTarget,
    );
    signed(
        "for another group",
        claims(now, &[("aud", r#""group:db""#)]),
        Code::WrongTarget,
    );
    signed(
        "for a host named by its group",
        claims(now, &[("aud", r#""host:web""#)]),
        Code::WrongTarget,
    );
    signed(
        "for nobody",
        claims(now, &[("aud", "[]")]),
        Code::BadEnvelope,
    );
    signed(
        "for everything",
        claims(now, &[("aud", r#""*""#)]),
        Code::BadEnvelope,
    );
    let (iat, exp) = (at(-400), at(-31));
    signed(
        "expired",
        claims(now, &[("iat", &iat), ("exp", &exp)]),
        Code::Expired,
    );
    let (iat, exp) = (at(31), at(100));
    signed(
        "not yet valid",
        claims(now, &[("iat", &iat), ("exp", &exp)]),
        Code::NotYetValid,
    );
    let exp = at(86_401);
    signed(
        "good for too long",
        claims(now, &[("exp", &exp)]),
        Code::BadEnvelope,
    );
    let exp = at(0);
    signed(
        "good for no time",
        claims(now, &[("exp", &exp)]),
        Code::BadEnvelope,
    );
    let exp = format!("{}.0", at(300));
    signed(
        "with a fraction of a second",
        claims(now, &[("exp", &exp)]),
        Code::BadEnvelope,
    );
    signed(
        "with time as text",
        claims(now, &[("exp", "\"9999999999\"")]),
        Code::BadEnvelope,
    );
    signed(
        "with a short nonce",
        claims(now, &[("jti", "\"x\"")]),
        Code::BadEnvelope,
    );
    for name in ["aud", "iat", "exp", "jti", "kind", "msg"] {
        signed(name, claims(now, &[(name, "")]), Code::BadEnvelope);
    }
    let twice = claims(now, &[]).replacen('{', r#"{"aud":"host:web1","#, 1);
    signed("with a claim twice", twice, Code::BadEnvelope);
    signed(
        "with a claim that is not known",
        claims(now, &[("nbf", "0")]),
        Code::BadEnvelope,
    );
    signed(
        "of no kind",
        claims(now, &[("kind", "\"x\"")]),
        Code::BadEnvelope,
    );
    signed(
        "of another kind",
        claims(now, &[("kind", "\"configuration\"")]),
        Code::BadEnvelope,
    );

    let audit = host.audit();
    let seen: Vec<_> = audit
        .iter()
        .map(|line| {
            (
                line["decision"].as_str().unwrap(),
                line["code"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(audit.len(), expected.len());
    for ((what, code), (line, (decision, seen))) in expected.iter().zip(audit.iter().zip(seen)) {
        assert_eq!(
            (decision, seen),
            ("refused", code.number().into()),
            "{what}: {line}"
        );
        assert!(
            line["reason"].as_str().is_some_and(|why| why.len() > 10),
            "{what}: {line}"
        );
    }
}

#[test]
fn the_same_envelope_is_answered_and_the_same_nonce_in_another_is_refused() {
    let mut host = Host::new();
    let envelope = host.restart(1);
    for _ in 0..3 {
        host.deliver(envelope.as_bytes());
        host.finish();
    }
    assert_eq!(host.runs(), 1);
    // The first result is on its way, so it is not sent twice.
    assert_eq!(host.codes(), [Code::Exit(0)]);

    let now = host.now();
    let first = seal_claims(&host.alice, &claims(now, &[]));
    let other = r#"{"task_id":7,"service":"db","command":"restart"}"#;
    let second = seal_claims(&host.alice, &claims(now, &[("msg", other)]));
    host.deliver(first.as_bytes());
    host.finish();
    host.deliver(second.as_bytes());
    host.finish();
    assert_eq!(
        (host.runs(), host.codes()),
        (2, vec![Code::Exit(0), Code::Replayed])
    );
    // Another key has nonces of its own.
    let status = r#"{"task_id":8,"service":"web","command":"status"}"#;
    let bob = seal_claims(&host.bob, &claims(now, &[("msg", status)]));
    host.deliver(bob.as_bytes());
    host.finish();
    assert_eq!((host.runs(), host.codes()), (3, vec![Code::Exit(0)]));
    // All of that holds after a restart.
    host.start();
    host.outcomes();
    for payload in [&envelope, &first, &second, &bob] {
        host.deliver(payload.as_bytes());
        host.finish();
    }
    assert_eq!(host.runs(), 3);
    assert_eq!(host.codes(), [Code::Replayed]);
}

#[test]
fn what_was_refused_does_not_run_when_it_comes_again() {
    let mut host = Host::new();
    // Bob may not do this yet.
    let envelope = host.sealed(&host.bob, &["host:web1"], &host.message(1, "db", "restart"));
    host.deliver(envelope.as_bytes());
    assert_eq!(host.codes(), [Code::NotPermitted]);
    let wide =
        trust_file(&host.alice, &host.bob).replace(r#"{"web":["status"]}"#, r#"{"*":["*"]}"#);
    host.write_trust(&wide);
    host.deliver(envelope.as_bytes());
    assert_eq!(host.codes(), [Code::Replayed]);
    host.start();
    host.outcomes();
    host.deliver(envelope.as_bytes());
    assert_eq!((host.codes(), host.runs()), (vec![Code::Replayed], 0));
    let again = host.sealed(&host.bob, &["host:web1"], &host.message(1, "db", "restart"));
    host.deliver(again.as_bytes());
    host.finish();
    assert_eq!((host.codes(), host.runs()), (vec![Code::Exit(0)], 1));
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_young_again() {
    let mut host = Host::new();
    let first = seal_claims(&host.alice, &claims(host.now(), &[]));
    host.deliver(first.as_bytes());
    host.finish();
    assert_eq!((host.runs(), host.codes()), (1, vec![Code::Exit(0)]));
    host.pass(1000);
    let later = host.restart(2);
    host.deliver(later.as_bytes());
    host.finish();
    assert_eq!((host.runs(), host.codes()), (2, vec![Code::Exit(0)]));
    host.pass(-1000);
    // By now the nonce is forgotten, and so is the task, which had no timestamp.
    let other = r#"{"task_id":9,"service":"db","command":"restart"}"#;
    let again = seal_claims(&host.alice, &claims(host.now(), &[("msg", other)]));
    host.deliver(again.as_bytes());
    assert_eq!((host.runs(), host.codes()), (2, vec![Code::Replayed]));
}

#[test]
fn a_key_that_sends_too_many_messages_does_not_shut_out_another() {
    let mut host = Host::new();
    let mut codes = BTreeMap::new();
    for task in 0..2100 {
        let message = host.message(task, "web", "no such command");
        let envelope = host.sealed(&host.bob, &["host:web1"], &message);
        host.deliver(envelope.as_bytes());
        for code in host.codes() {
            *codes.entry(code.number()).or_insert(0) += 1;
        }
    }
    let expected = BTreeMap::from([
        (Code::NotPermitted.number(), 2048),
        (Code::NoReplayProtection.number(), 2100 - 2048),
    ]);
    assert_eq!(codes, expected);
    let envelope = host.restart(9999);
    host.deliver(envelope.as_bytes());
    host.finish();
    assert_eq!(host.codes(), [Code::Exit(0)]);
    host.pass(400);
    let envelope = host.sealed(&host.bob, &["host:web1"], &host.message(1, "web", "status"));
    host.deliver(envelope.as_bytes());
    host.finish();
    assert_eq!(host.codes(), [Code::Exit(0)]);
}

#[test]
fn where_nonces_cannot_be_kept_nothing_signed_runs_and_the_reason_has_a_name() {
    let mut host = Host::new();
    // A directory in the way of the journal stands for a disk that cannot be written.
    host.engine = None;
    fs::remove_dir_all(host.dir.path().join("state")).unwrap();
    let (store, problem) = Store::open(std::path::Path::new("/proc/nonexistent"));
    assert!(problem.is_some());
    host.start();
    let sink = Arc::clone(&host.outputs);
    let clock = Arc::clone(&host.now);
    let block = Block::option("Plugin", [Value::from("monitor")])
        .with("Host", "h")
        .with("CommandTopic", "c");
    let settings = Settings::read(&block).unwrap();
    host.engine = Some(Engine::new(Parts {
        metrics: Arc::default(),
        services: settings.services,
        runner: Box::new(Counting(Arc::clone(&host.jobs))),
        store: Arc::new(Mutex::new(store)),
        syncer: None,
        freshness: settings.freshness,
        trust: Arc::clone(&host.trust),
        clock: Box::new(move || *clock.lock().unwrap()),
        outputs: Box::new(move |output| sink.lock().unwrap().push(output)),
    }));
    let envelope = host.restart(1);
    host.deliver(envelope.as_bytes());
    let [outcome] = &host.outcomes()[..] else {
        panic!("one result")
    };
    assert_eq!(outcome.code, Code::NoReplayProtection);
    assert!(
        outcome.message.contains("only in memory"),
        "{}",
        outcome.message
    );
    assert_eq!(host.runs(), 0);
}

#[test]
fn an_operator_with_a_narrow_scope_gets_no_further() {
    let mut host = Host::new();
    let bob = host.bob.clone();
    let now = host.now();
    let lifetime = Duration::from_secs(300);
    let mut task = 100;
    let mut attempt = |host: &mut Host, targets: &[&str], kind: Kind, text: &str| {
        task += 1;
        let text = text.replace("TASK", &task.to_string());
        let targets: Vec<_> = targets.iter().map(|target| (*target).to_owned()).collect();
        let envelope = sign(&bob, &targets, kind, &text, host.now(), lifetime).unwrap();
        host.deliver(envelope.as_bytes());
        host.finish();
        host.codes()
    };
    let own = r#"{"task_id":TASK,"service":"web","command":"status"}"#;
    assert_eq!(
        attempt(&mut host, &["host:web1"], Kind::Command, own),
        [Code::Exit(0)]
    );
    let runs = host.runs();
    for text in [
        r#"{"task_id":TASK,"service":"web","command":"restart"}"#,
        r#"{"task_id":TASK,"service":"db","command":"status"}"#,
        r#"{"task_id":TASK,"service":"WEB","command":"status"}"#,
        r#"{"task_id":TASK,"service":"web","command":"status "}"#,
        r#"{"task_id":TASK,"service":"web","command":"status\u0000"}"#,
        r#"{"task_id":TASK,"service":"w*","command":"*"}"#,
        r#"{"task_id":TASK,"service":"web","command":"status","parameters":{"x":1}}"#,
    ] {
        let codes = attempt(&mut host, &["host:web1"], Kind::Command, text);
        assert_eq!(codes, [Code::NotPermitted], "{text}");
    }
    for targets in [&["all"][..], &["group:web"], &["all", "group:web"]] {
        let codes = attempt(&mut host, targets, Kind::Command, own);
        assert_eq!(codes, [Code::NotPermitted], "{targets:?}");
    }
    // Another kind in the envelope than in the message, both ways.
    let config = r#"{"task_id":TASK,"config":"LoadPlugin exec"}"#;
    for (kind, text, code) in [
        (Kind::Configuration, config, Code::NotPermitted),
        (Kind::Command, config, Code::BadEnvelope),
        (Kind::Configuration, own, Code::BadEnvelope),
        (Kind::Plugins, own, Code::BadEnvelope),
    ] {
        assert_eq!(
            attempt(&mut host, &["host:web1"], kind, text),
            [code],
            "{text}"
        );
    }
    // To go on hold, and to go on.
    for text in [
        r#"{"task_id":TASK,"hold":{"seconds":60,"reason":"mine"}}"#,
        r#"{"task_id":TASK,"release":true}"#,
    ] {
        let codes = attempt(&mut host, &["host:web1"], Kind::Hold, text);
        assert_eq!(codes, [Code::NotPermitted], "{text}");
        let codes = attempt(&mut host, &["host:web1"], Kind::Command, text);
        assert_eq!(codes, [Code::BadEnvelope], "{text}");
    }
    // For others beside this host: here it is for this host, as he may; nothing of it is for all.
    let mixed = ["all", "host:web2", "group:web"];
    let codes = attempt(&mut host, &mixed, Kind::Command, own);
    assert_eq!(codes, [Code::NotPermitted]);
    assert_eq!(host.runs(), runs);
    // Alice's message under his own name, and his own under hers.
    let alice = host.restart(1);
    let parts: Vec<_> = alice.split('.').collect();
    let bobs = seal_claims(&host.bob, &claims(now, &[]));
    let header = bobs.split('.').next().unwrap();
    host.deliver([header, parts[1], parts[2]].join(".").as_bytes());
    assert_eq!(host.codes(), [Code::BadSignature]);
    let bobs: Vec<_> = bobs.split('.').collect();
    host.deliver([parts[0], bobs[1], bobs[2]].join(".").as_bytes());
    assert_eq!(host.codes(), [Code::BadSignature]);
    assert_eq!(host.runs(), runs);
    // When his time is over, nothing is left.
    host.pass(5 * 86_400);
    assert_eq!(
        attempt(&mut host, &["host:web1"], Kind::Command, own),
        [Code::UnknownKey]
    );
    assert_eq!(host.runs(), runs);
}

#[test]
fn deleting_a_key_revokes_it_at_once_also_for_what_waits() {
    let mut host = Host::new();
    let first = host.restart(1);
    host.deliver(first.as_bytes());
    // It waits for its turn.
    let second = host.sealed(
        &host.alice,
        &["host:web1"],
        &host.message(2, "web", "status"),
    );
    host.deliver(second.as_bytes());
    assert_eq!(host.runs(), 1);
    let bob_only = format!(
        r#"{{"keys":[{}]}}"#,
        entry(
            &host.bob,
            r#""kinds":["command"],"services":{"*":["*"]},"targets":["host:*"]"#
        )
    );
    host.write_trust(&bob_only);
    host.finish();
    assert_eq!(host.runs(), 1);
    assert_eq!(host.codes(), [Code::Exit(0), Code::UnknownKey]);
    let third = host.restart(3);
    host.deliver(third.as_bytes());
    assert_eq!((host.runs(), host.codes()), (1, vec![Code::UnknownKey]));
}

#[test]
fn a_hold_stops_recovery_until_it_is_released_or_over() {
    let mut host = Host::new();
    let ask = |host: &mut Host, key: &SigningKey, target: &str, task: u64, hold| {
        let message = crate::protocol::hold_to_json(&task.into(), hold, host.now());
        let lifetime = Duration::from_secs(300);
        let targets = [target.to_owned()];
        let envelope = sign(key, &targets, Kind::Hold, &message, host.now(), lifetime).unwrap();
        host.deliver(envelope.as_bytes());
        host.finish();
        let outcomes = host.outcomes();
        let outcomes = outcomes.into_iter().map(|o| (o.code, o.message));
        outcomes.collect::<Vec<_>>()
    };
    let (alice, bob) = (host.alice.clone(), host.bob.clone());
    // One runs, one waits for its turn.
    let first = host.restart(1);
    host.deliver(first.as_bytes());
    let second = host.sealed(&alice, &["host:web1"], &host.message(2, "web", "status"));
    host.deliver(second.as_bytes());
    let held = ask(&mut host, &alice, "group:web", 3, Some((3600, "we move")));
    let codes: BTreeMap<_, _> = held
        .iter()
        .map(|(code, why)| (code.number(), why))
        .collect();
    // What ran has ended, what waited is refused, and the hold is in force.
    assert_eq!(held.len(), 3, "{held:?}");
    assert_eq!(host.runs(), 1);
    let why = codes[&Code::Held.number()];
    assert_eq!(
        why,
        "Recovery is on hold for group:web until 2026-11-26T13:00:00Z, as alice has asked for: we move"
    );
    let third = host.restart(4);
    host.deliver(third.as_bytes());
    assert_eq!((host.runs(), host.codes()), (1, vec![Code::Held]));
    // It outlives the daemon.
    host.start();
    host.outcomes();
    let fourth = host.restart(5);
    host.deliver(fourth.as_bytes());
    assert_eq!((host.runs(), host.codes()), (1, vec![Code::Held]));
    // Whoever may not hold may not release, signed or not.
    assert_eq!(
        ask(&mut host, &bob, "host:web1", 6, None)[0].0,
        Code::NotPermitted
    );
    // The hold of another target stays.
    let other = ask(&mut host, &alice, "host:web1", 7, None);
    assert!(
        other[0]
            .1
            .starts_with("Released for host:web1. Recovery is on hold"),
        "{other:?}"
    );
    let released = ask(&mut host, &alice, "group:web", 8, None);
    assert_eq!(
        released,
        [(Code::Exit(0), "Released for group:web.".to_owned())]
    );
    let fifth = host.restart(9);
    host.deliver(fifth.as_bytes());
    host.finish();
    assert_eq!((host.runs(), host.codes()), (2, vec![Code::Exit(0)]));
    // Without a release it ends by itself.
    let again = ask(&mut host, &alice, "all", 10, Some((60, "")));
    assert_eq!(again[0].0, Code::Exit(0));
    host.pass(61);
    let sixth = host.restart(11);
    host.deliver(sixth.as_bytes());
    host.finish();
    assert_eq!((host.runs(), host.codes()), (3, vec![Code::Exit(0)]));
    let kinds: BTreeSet<_> = host
        .audit()
        .iter()
        .map(|line| (line["kind"].to_string(), line["decision"].to_string()))
        .collect();
    let has = |kind: &str, decision: &str| {
        kinds.contains(&(format!("{kind:?}"), format!("{decision:?}")))
    };
    assert!(has("hold", "allowed") && has("release", "allowed") && has("release", "refused"));
}

#[test]
fn a_hold_that_nobody_has_signed_is_refused_also_where_commands_are_not() {
    let mut host = Host::with(|settings| settings.require_signature = false);
    let hold = crate::protocol::hold_to_json(&1.into(), Some((60, "x")), host.now());
    host.deliver(hold.as_bytes());
    let release = crate::protocol::hold_to_json(&2.into(), None, host.now());
    host.deliver(release.as_bytes());
    assert_eq!(host.codes(), [Code::Unsigned, Code::Unsigned]);
    let command = host.message(3, "web", "restart");
    host.deliver(command.as_bytes());
    host.finish();
    assert_eq!(host.codes(), [Code::Exit(0)]);
}

#[test]
fn several_keys_are_good_at_once_so_that_they_can_be_rotated() {
    let mut host = Host::new();
    let new = SigningKey::generate(Some("alice-2027")).unwrap();
    let scope = r#""kinds":["command"],"services":{"*":["*"]},"targets":["host:*"]"#;
    let (old, next) = (entry(&host.alice, scope), entry(&new, scope));
    host.write_trust(&format!(r#"{{"keys":[{old},{next}]}}"#));
    for (task, key) in [(1, host.alice.clone()), (2, new.clone())] {
        let envelope = host.sealed(&key, &["host:web1"], &host.message(task, "web", "restart"));
        host.deliver(envelope.as_bytes());
        host.finish();
        assert_eq!(host.codes(), [Code::Exit(0)]);
    }
    host.write_trust(&format!(r#"{{"keys":[{next}]}}"#));
    let envelope = host.restart(3);
    host.deliver(envelope.as_bytes());
    assert_eq!(host.codes(), [Code::UnknownKey]);
}

#[test]
fn a_trust_file_that_is_not_usable_refuses_all_until_it_is() {
    use std::os::unix::fs::PermissionsExt;

    let mut host = Host::new();
    let good = trust_file(&host.alice, &host.bob);
    let path = host.dir.path().join("trust.json");
    let mut task = 0;
    let mut code = |host: &mut Host| {
        task += 1;
        let envelope = host.restart(task);
        host.deliver(envelope.as_bytes());
        host.finish();
        host.codes()
    };
    assert_eq!(code(&mut host), [Code::Exit(0)]);
    host.write_trust("{ broken");
    assert_eq!(code(&mut host), [Code::NoTrust]);
    host.write_trust(&good);
    assert_eq!(code(&mut host), [Code::Exit(0)]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(code(&mut host), [Code::NoTrust]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(code(&mut host), [Code::Exit(0)]);
    fs::remove_file(&path).unwrap();
    assert_eq!(code(&mut host), [Code::NoTrust]);
    std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
    assert_eq!(code(&mut host), [Code::NoTrust]);
    // An edit in place, which keeps length and inode.
    fs::remove_file(&path).unwrap();
    host.write_trust(&good);
    assert_eq!(code(&mut host), [Code::Exit(0)]);
    fs::write(&path, good.replace("\"alice\"", "\"alicf\"")).unwrap();
    assert_eq!(code(&mut host), [Code::UnknownKey]);
}

#[test]
fn a_site_without_keys_works_as_before_and_says_so() {
    let daemon = Arc::new(FakeDaemon::new("web1"));
    let as_daemon = Arc::clone(&daemon) as Arc<dyn Daemon>;
    let logger = crate::logging::Logger::new(
        Arc::clone(&as_daemon),
        crate::logging::Device::Collectd,
        crate::logging::Threshold::Warn,
    );
    let _entered = logger.enter();
    let (trust, _) = Trust::new(settings::Trust::default(), &as_daemon).unwrap();
    assert_eq!(
        daemon.count("messages without a signature are acted upon"),
        1
    );
    let text = br#"{"task_id":1,"service":"web","command":"restart"}"#;
    let opened = trust.open(text, SystemTime::now()).unwrap();
    assert_eq!(opened.authority, Authority::Unsigned);
    assert_eq!(opened.text, text.as_slice());
    // An envelope is nothing that could be taken for a message.
    let key = SigningKey::generate(None).unwrap();
    let envelope = seal_claims(&key, &claims(SystemTime::now(), &[]));
    let refused = trust
        .open(envelope.as_bytes(), SystemTime::now())
        .unwrap_err();
    assert_eq!(refused.code, Code::NoTrust);
}

#[test]
fn a_signed_result_is_verified_and_a_changed_one_is_not() {
    let key = SigningKey::generate(Some("web1")).unwrap();
    let other = SigningKey::generate(Some("web1")).unwrap();
    let now = SystemTime::now();
    let request = Digest::of(&[b"envelope"]);
    let json = r#"{"task_id":1,"message":"a \",\"signature\":\" in it","code":0}"#;
    let signed = sign_result(&key, json, Some(request), now).unwrap();
    // Whoever does not know of signatures reads what was there before.
    let value: serde_json::Value = serde_json::from_str(&signed).unwrap();
    assert_eq!((&value["task_id"], &value["code"]), (&1.into(), &0.into()));
    let keys = [other.public().clone(), key.public().clone()];
    let verified = verify_result(&signed, &keys, Some(request)).unwrap();
    assert_eq!(verified.x(), key.public().x());
    assert!(verify_result(&signed, &keys, None).is_ok());
    let others = [other.public().clone()];
    let wrong = Some(Digest::of(&[b"another"]));
    for (payload, keys, request, why) in [
        (json.to_owned(), &keys[..], None, "not signed"),
        (
            signed.replace("\"code\":0", "\"code\":1"),
            &keys,
            None,
            "altered",
        ),
        (signed.replace(' ', "  "), &keys, None, "altered"),
        (
            signed.replace("\"}", "\",\"code\":1}"),
            &keys,
            None,
            "not signed",
        ),
        (
            signed.clone(),
            &others,
            None,
            "not signed by a key that is trusted",
        ),
        (signed.clone(), &keys, wrong, "answers another message"),
    ] {
        let error = verify_result(&payload, keys, request).unwrap_err();
        assert!(error.contains(why), "{payload}: {error}");
    }
    // A result is no message, although the key may be trusted.
    let signature = value["signature"].as_str().unwrap();
    assert!(Envelope::parse(signature.as_bytes(), Type::Message).is_err());
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below as u64).unwrap()
    }
}

/// A broker that does what it likes with what it is given.
fn twist(random: &mut Random, envelopes: &[String]) -> Vec<u8> {
    let mut payload = envelopes[random.next(envelopes.len())].clone().into_bytes();
    let other = envelopes[random.next(envelopes.len())].clone();
    let at = random.next(payload.len());
    match random.next(10) {
        // As it was: repeated, late, out of order.
        0 | 1 => {}
        2 => payload[at] ^= 1 << random.next(8),
        3 => payload.truncate(at),
        4 => payload.insert(at, b"=. \n{A"[random.next(6)]),
        5 => drop(payload.remove(at)),
        6 => {
            // Parts of two messages.
            let part = random.next(3);
            let mine = String::from_utf8(payload).unwrap();
            let mut mine: Vec<_> = mine.split('.').collect();
            mine[part] = other.split('.').nth(part).unwrap();
            payload = mine.join(".").into_bytes();
        }
        7 => {
            let parts: Vec<_> = other.split('.').collect();
            payload = format!(
                r#"{{"payload":"{}","signature":"{}","protected":"{}"}}"#,
                parts[1], parts[2], parts[0]
            )
            .into_bytes();
        }
        8 => {
            // Claims that suit the broker, behind a header that does not know.
            let parts: Vec<_> = other.split('.').collect();
            let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
            let claims = match random.next(3) {
                0 => claims.replace("host:web2", "host:web1"),
                1 => claims.replace("\"status\"", "\"restart\""),
                _ => claims.replace("\"task_id\":", "\"task_id\":9"),
            };
            payload = [parts[0], &URL_SAFE_NO_PAD.encode(claims), parts[2]]
                .join(".")
                .into_bytes();
        }
        _ => {
            payload = br#"{"task_id":7777,"service":"web","command":"restart"}"#.to_vec();
        }
    }
    payload
}

#[test]
fn a_hostile_broker_makes_nothing_run_that_was_not_sent_nor_twice() {
    for seed in 1..=3 {
        let mut host = Host::new();
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed << 32));
        let mut envelopes = Vec::new();
        let mut permitted = BTreeSet::new();
        for task in 0..40 {
            let (key, service, command, target, good) = match task % 5 {
                0 => (&host.alice, "web", "restart", "host:web1", true),
                1 => (&host.bob, "web", "status", "host:web1", true),
                2 => (&host.bob, "db", "restart", "host:web1", false),
                3 => (&host.alice, "web", "restart", "host:web2", false),
                _ => (&host.alice, "db", "status", "group:web", true),
            };
            envelopes.push(host.sealed(
                key,
                &[target],
                &host.message(1000 + task, service, command),
            ));
            if good {
                permitted.insert((1000 + task).to_string());
            }
        }
        for _ in 0..2000 {
            let payload = twist(&mut random, &envelopes);
            host.deliver(&payload);
            match random.next(100) {
                0 => host.start(),
                1..=4 => host.pass(1),
                _ => {}
            }
            if random.next(3) == 0 {
                host.finish();
            }
        }
        host.finish();
        let finished: Vec<_> = host
            .outcomes()
            .into_iter()
            .filter(|outcome| outcome.code == Code::Exit(0))
            .map(|outcome| outcome.task.to_string())
            .collect();
        let once: BTreeSet<_> = finished.iter().cloned().collect();
        assert!(once.is_subset(&permitted), "{once:?}");
        assert!(!once.is_empty());
        assert!(host.runs() <= permitted.len(), "{}", host.runs());
    }
}

/// Who can write the keys of hosts can answer for them.
#[test]
fn keys_of_hosts_that_others_could_have_written_do_not_count() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hosts");
    let key = SigningKey::generate(Some("web1")).unwrap();
    std::fs::write(&path, format!("# hosts\n\n{}\n", key.public().to_jwk())).unwrap();
    let set = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
    set(0o644).unwrap();
    assert_eq!(read_host_keys(&path).unwrap()[0].kid(), "web1");
    set(0o666).unwrap();
    let why = read_host_keys(&path).unwrap_err();
    assert!(why.contains("hosts"), "{why}");
}
