//! Who may command this host.
//!
//! The broker is not believed. A message may come in an envelope that somebody has signed ([`jws`]); who that may be
//! and what they may do stands in the trust file ([`scope`]), which no message can change. [`Trust::open`] turns a
//! payload into a message and the [`Authority`] that it came with; [`Trust::permits`] asks whether that authority
//! suffices. Every decision goes to the audit log.

pub mod audit;
pub mod edit;
mod jws;
pub mod keys;
pub mod policy;
pub mod scope;
pub(crate) mod tried;

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::{error, info, warn};

use crate::daemon::Daemon;
use crate::files::{self, Privacy};
use crate::json;
use crate::protocol::{Code, Content, Digest, Message, TaskId, PING};
use crate::settings;
use audit::{Audit, By, Decision, Writer};
use jws::{Envelope, Type};
pub use keys::{PublicKey, SigningKey};
pub use policy::{Asker, Change, Options, Policy, Requester};
pub use scope::{Kind, TrustFile, TrustedKey};

/// The longest that a message may be good for. Its nonce is remembered for that long.
pub const MAX_LIFETIME: Duration = Duration::from_secs(86_400);
/// The lengths of a nonce.
const NONCE: std::ops::RangeInclusive<usize> = 16..=128;
/// A file that was changed this shortly before it was read may be changed again without looking different.
const SETTLED: Duration = Duration::from_secs(1);

/// What a message, or something else that wants to run a command, came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// It comes from this host's own rules.
    Local,
    /// It was published by somebody, where that is enough.
    Unsigned,
    /// Somebody has signed it. That was verified; what the key may do is looked up when it matters.
    Key(Arc<Signed>),
}

impl Authority {
    /// What tells the envelope from others, if there is one.
    pub fn envelope(&self) -> Option<Digest> {
        match self {
            Authority::Key(signed) => Some(signed.envelope),
            Authority::Local | Authority::Unsigned => None,
        }
    }

    /// The name of the key, if there is one.
    pub fn kid(&self) -> Option<&str> {
        match self {
            Authority::Key(signed) => Some(&signed.kid),
            Authority::Local | Authority::Unsigned => None,
        }
    }
}

/// What an envelope says that was signed by a trusted key, is meant for this host, and is in its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The name of the key.
    pub kid: String,
    /// Those of its targets that this host is.
    pub targets: Vec<String>,
    /// What it says it is about.
    pub kind: Kind,
    /// What may come once: a digest of the key's name and the nonce.
    pub nonce: Digest,
    /// What tells the envelope from others.
    pub envelope: Digest,
    /// When it expires, in seconds since 1970. From then on its nonce can be forgotten.
    pub expires: u64,
}

/// A message that may be looked at.
#[derive(Debug)]
pub struct Opened<'a> {
    /// The message, as PROTOCOL has it.
    pub text: Cow<'a, [u8]>,
    /// What it came with.
    pub authority: Authority,
}

/// Why a message is not looked at.
#[derive(Debug)]
pub struct Refusal {
    /// As a number.
    pub code: Code,
    /// In words, as a sentence.
    pub why: String,
    /// Who is to be told. Nobody, where it cannot be read, or the message is for somebody else.
    pub task: Option<TaskId>,
    /// The envelope that is answered, if it was one. Whoever has sealed it knows that this is no answer to a forgery.
    pub request: Option<Digest>,
}

/// Not in the place of a reason: what is refused for the lack of it is worth a sentence.
fn refusal<T>(code: Code, why: impl Into<String>) -> Result<T, (Code, String)> {
    Err((code, why.into()))
}

/// The file, as it was read last.
#[derive(Debug)]
struct Source {
    /// What it looked like from outside; none if it must be read again.
    stamp: Option<Stamp>,
    file: Result<Arc<TrustFile>, String>,
}

/// What changes when a file is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether any later change would show.
    fn is_settled(&self) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let since = Duration::new(
            u64::try_from(seconds).unwrap_or(0),
            u32::try_from(nanoseconds).unwrap_or(0),
        );
        SystemTime::now()
            .duration_since(UNIX_EPOCH + since)
            .is_ok_and(|age| age > SETTLED)
    }
}

/// What decides who may command this host.
#[derive(Debug)]
pub struct Trust {
    settings: settings::Trust,
    host: String,
    host_key: Option<SigningKey>,
    /// Its lock is held while the file is looked at.
    source: Mutex<Source>,
    /// Where decisions are written down.
    pub audit: Audit,
}

impl Trust {
    /// Reads the host's key and, for the first time, the trust file. A trust file that is not usable is an error
    /// that is said, and refuses all messages until it is; a key that is not is a mistake in the settings.
    pub(crate) fn new(
        settings: settings::Trust,
        daemon: &Arc<dyn Daemon>,
    ) -> Result<(Self, Option<Writer>), String> {
        let host_key = settings.host_key.as_deref().map(read_key).transpose()?;
        let host = daemon.hostname();
        let syslog = settings.audit_syslog.then(|| Arc::clone(daemon));
        let (audit, writer) = Audit::new(&host, settings.audit_log.clone(), syslog);
        let trust = Self {
            source: Mutex::new(Source {
                stamp: None,
                file: Ok(Arc::default()),
            }),
            settings,
            host,
            host_key,
            audit,
        };
        trust.file().ok();
        if !trust.settings.require_signature {
            let why = "messages without a signature are acted upon (RequireSignature false): whoever can publish to the command topic commands this host";
            warn!("{why}");
            let mut decision = Decision::new(By::Monitor, "start");
            decision.reason = why.to_owned();
            trust.audit.record(&decision, daemon.now());
        }
        Ok((trust, writer))
    }

    /// For tests: everything is as without any setting about trust.
    #[cfg(test)]
    pub(crate) fn unsigned(host: &str) -> Self {
        Self {
            settings: settings::Trust::default(),
            host: host.to_owned(),
            host_key: None,
            source: Mutex::new(Source {
                stamp: None,
                file: Ok(Arc::default()),
            }),
            audit: Audit::none(host),
        }
    }

    /// The trust file as it is now. The error says why no key is trusted.
    pub(crate) fn file(&self) -> Result<Arc<TrustFile>, String> {
        let Some(path) = &self.settings.file else {
            return Err("there is no TrustFile in the settings".to_owned());
        };
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(path);
        if stamp.is_some() && stamp == source.stamp {
            return source.file.clone();
        }
        let read = files::read(path, Privacy::Public)
            .map_err(|error| error.to_string())
            .and_then(|text| TrustFile::parse(path, &text))
            .map(Arc::new);
        match (&source.file, &read) {
            (Err(before), Err(why)) if before == why => {}
            (_, Err(why)) => {
                error!("no key is trusted, because the trust file is not usable: {why}")
            }
            (Err(_), Ok(_)) => info!("the trust file {} is usable", path.display()),
            (Ok(_), Ok(_)) => {}
        }
        // What came in between was not read.
        let settled = stamp.filter(|stamp| stamp.is_settled() && Stamp::of(path) == Some(*stamp));
        source.stamp = settled;
        source.file = read;
        source.file.clone()
    }

    /// Whether a message without a signature is refused.
    pub fn requires_signature(&self) -> bool {
        self.settings.require_signature
    }

    /// Turns a payload into a message that may be looked at. Whatever is refused is in the audit log.
    pub(crate) fn open<'a>(
        &self,
        payload: &'a [u8],
        now: SystemTime,
    ) -> Result<Opened<'a>, Refusal> {
        if !jws::is_envelope(payload) {
            if !self.settings.require_signature {
                return Ok(Opened {
                    text: Cow::Borrowed(payload),
                    authority: Authority::Unsigned,
                });
            }
            let message = Message::parse(payload);
            let task = match &message {
                Ok(message) => Some(message.task.clone()),
                Err(unreadable) => unreadable.task.clone(),
            };
            let why = "The message is not signed, and only signed ones are acted upon.";
            let mut decision = Decision::new(By::Unsigned, "message");
            decision.task = task.as_ref().map(ToString::to_string);
            if let Ok(message) = &message {
                describe(&mut decision, &message.content);
            }
            self.audit
                .record(&decision.refused(Some(Code::Unsigned), why), now);
            return Err(Refusal {
                code: Code::Unsigned,
                why: why.to_owned(),
                task,
                request: None,
            });
        }
        let envelope = match Envelope::parse(payload, Type::Message) {
            Ok(envelope) => envelope,
            Err(what) => {
                let why = format!("The envelope is not understood: {what}.");
                let decision = Decision::new(By::Unsigned, "envelope");
                self.audit
                    .record(&decision.refused(Some(Code::BadEnvelope), &why), now);
                return Err(Refusal {
                    code: Code::BadEnvelope,
                    why,
                    task: None,
                    request: None,
                });
            }
        };
        let mut decision = Decision::new(By::ClaimedKey(envelope.kid.clone()), "envelope");
        let claims = Claims::parse(&envelope.payload);
        let message = claims
            .as_ref()
            .ok()
            .map(|claims| Message::parse(claims.msg.get().as_bytes()));
        let task = match &message {
            Some(Ok(message)) => Some(message.task.clone()),
            Some(Err(unreadable)) => unreadable.task.clone(),
            None => None,
        };
        decision.task = task.as_ref().map(ToString::to_string);
        if let Some(Ok(message)) = &message {
            describe(&mut decision, &message.content);
        }
        match self.believe(&envelope, claims, &mut decision, now) {
            Ok((text, signed)) => Ok(Opened {
                text: Cow::Owned(text),
                authority: Authority::Key(Arc::new(signed)),
            }),
            Err((code, why)) => {
                self.audit.record(&decision.refused(Some(code), &why), now);
                // A message for somebody else is not ours to answer.
                let task = task.filter(|_| code != Code::WrongTarget);
                Err(Refusal {
                    code,
                    why,
                    task,
                    request: Some(envelope.digest()),
                })
            }
        }
    }

    fn believe(
        &self,
        envelope: &Envelope,
        claims: Result<Claims<'_>, &'static str>,
        decision: &mut Decision,
        now: SystemTime,
    ) -> Result<(Vec<u8>, Signed), (Code, String)> {
        let file = self.file().or_else(|why| {
            // The reason names a path, which is none of the sender's business; it is in the log.
            drop(why);
            refusal(
                Code::NoTrust,
                "This host cannot tell whom to trust; its log says why.",
            )
        })?;
        let Some(key) = file.key(&envelope.kid) else {
            return refusal(
                Code::UnknownKey,
                "The key is not one that this host trusts.",
            );
        };
        if !envelope.is_signed_by(&key.public) {
            return refusal(Code::BadSignature, "The signature is not that of the key.");
        }
        decision.by = By::Key(envelope.kid.clone());
        check_until(key, now)?;
        let claims = claims.or_else(|what| {
            refusal(
                Code::BadEnvelope,
                format!("The envelope is not understood: {what}."),
            )
        })?;
        decision.targets.clone_from(&claims.aud);
        decision.kind = claims.kind.name();
        let targets: Vec<String> = claims
            .aud
            .iter()
            .filter(|target| self.is_target(target))
            .cloned()
            .collect();
        if targets.is_empty() {
            return refusal(Code::WrongTarget, "The message is not for this host.");
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let skew = self.settings.clock_skew.as_secs();
        if claims.iat > now.saturating_add(skew) {
            let ahead = claims.iat - now;
            return refusal(
                Code::NotYetValid,
                format!("The message was signed {ahead} s in the future: the clocks of sender and host differ by more than the {skew} s that are allowed."),
            );
        }
        if now > claims.exp.saturating_add(skew) {
            let ago = now - claims.exp;
            return refusal(
                Code::Expired,
                format!(
                    "The message has expired {ago} s ago, if the clocks of sender and host agree."
                ),
            );
        }
        let signed = Signed {
            nonce: Digest::of(&[envelope.kid.as_bytes(), claims.jti.as_bytes()]),
            kid: envelope.kid.clone(),
            targets,
            kind: claims.kind,
            envelope: envelope.digest(),
            expires: claims.exp.saturating_add(skew),
        };
        Ok((claims.msg.get().as_bytes().to_vec(), signed))
    }

    /// Whether this host is a target.
    pub fn is_target(&self, target: &str) -> bool {
        match target.split_once(':') {
            None => target == "all",
            Some(("host", name)) => name == self.host,
            Some(("group", name)) => self.settings.groups.iter().any(|group| group == name),
            Some(_) => false,
        }
    }

    /// Whether an authority suffices for what a message asks for. The trust file is looked at anew.
    pub(crate) fn permits(
        &self,
        authority: &Authority,
        content: &Content,
        now: SystemTime,
    ) -> Result<(), (Code, String)> {
        let signed = match authority {
            // Whoever can publish must not be able to stop a recovery, even where he can ask for one.
            Authority::Unsigned if matches!(content, Content::Hold { .. } | Content::Release) => {
                return refusal(Code::Unsigned, "A hold must be signed.");
            }
            Authority::Local | Authority::Unsigned => return Ok(()),
            Authority::Key(signed) => signed,
        };
        let kind = match content {
            Content::Command { .. } => Kind::Command,
            Content::Configuration => Kind::Configuration,
            Content::Hold { .. } | Content::Release => Kind::Hold,
        };
        if kind != signed.kind {
            return refusal(
                Code::BadEnvelope,
                "The message is not of the kind that its envelope says.",
            );
        }
        let key = self.key_for(signed, now)?;
        match content {
            Content::Command {
                service,
                command,
                arguments,
            } => check_command(&key, service, command, !arguments.is_empty()),
            Content::Configuration | Content::Hold { .. } | Content::Release => Ok(()),
        }
    }

    /// Whether a command that was permitted before, and has waited since, is still permitted.
    pub(crate) fn still_permits(
        &self,
        authority: &Authority,
        service: &str,
        command: &str,
        parameters: bool,
        now: SystemTime,
    ) -> Result<(), (Code, String)> {
        match authority {
            Authority::Local | Authority::Unsigned => Ok(()),
            Authority::Key(signed) => {
                let key = self.key_for(signed, now)?;
                check_command(&key, service, command, parameters)
            }
        }
    }

    /// The key of a message, if it may send messages of this kind to this target.
    fn key_for(&self, signed: &Signed, now: SystemTime) -> Result<TrustedKey, (Code, String)> {
        let no_trust = |_| {
            refusal(
                Code::NoTrust,
                "This host cannot tell whom to trust; its log says why.",
            )
        };
        let file = self.file().or_else(no_trust)?;
        let Some(key) = file.key(&signed.kid) else {
            return refusal(
                Code::UnknownKey,
                "The key is not one that this host trusts.",
            );
        };
        check_until(key, now)?;
        let no = |what: String| refusal(Code::NotPermitted, format!("The key may not {what}."));
        if !key.kinds.contains(&signed.kind) {
            return no(format!("send messages of the kind {}", signed.kind.name()));
        }
        if !signed.targets.iter().any(|target| key.may_address(target)) {
            return no(format!("address {}", signed.targets.join(", ")));
        }
        Ok(key.clone())
    }

    /// A result as it is published: with a signature behind it, if this host has a key.
    pub(crate) fn seal_result(
        &self,
        json: String,
        request: Option<Digest>,
        now: SystemTime,
    ) -> String {
        let Some(key) = &self.host_key else {
            return json;
        };
        match sign_result(key, &json, request, now) {
            Ok(signed) => signed,
            Err(why) => {
                error!("a result is sent without a signature: {why}");
                json
            }
        }
    }

    /// Whether what somebody asks the daemon to do with a plugin may be done. The trust file is looked at anew. The
    /// error is a reason in words, part of a sentence, without any value of an option.
    pub(crate) fn judge(&self, change: &Change) -> Result<(), String> {
        if self.settings.file.is_none() {
            return Policy::default().permits(change);
        }
        match self.file() {
            Ok(file) => file.policy.permits(change),
            Err(_) => change.by.mends(),
        }
    }

    /// Writes down what the daemon has decided about a plugin, with the SHA-256 of the configuration, if it was read.
    pub(crate) fn judged(
        &self,
        change: &Change,
        outcome: Result<(), &str>,
        configuration: Option<String>,
        now: SystemTime,
    ) {
        let mut decision = Decision::new(By::from(&change.by), Kind::Plugins.name());
        decision.command = Some(change.verb.name().to_owned());
        decision.plugin = Some(change.plugin.clone());
        decision.configurations = configuration.into_iter().collect();
        if let Err(why) = outcome {
            decision = decision.refused(None, why);
        }
        self.record(&decision, now);
    }

    /// Writes a decision down.
    pub(crate) fn record(&self, decision: &Decision, now: SystemTime) {
        self.audit.record(decision, now);
    }
}

fn check_command(
    key: &TrustedKey,
    service: &str,
    command: &str,
    parameters: bool,
) -> Result<(), (Code, String)> {
    // Whoever may send anything may ask whether somebody is there.
    if (service, command) != PING && !key.may_run(service, command) {
        return refusal(Code::NotPermitted, "The key may not send this command.");
    }
    if parameters && !key.kinds.contains(&Kind::Parameters) {
        return refusal(Code::NotPermitted, "The key may not choose parameters.");
    }
    Ok(())
}

fn check_until(key: &TrustedKey, now: SystemTime) -> Result<(), (Code, String)> {
    match key.until {
        Some(until) if now >= until => refusal(Code::UnknownKey, "The time of the key is over."),
        _ => Ok(()),
    }
}

/// What a decision says of the content of a message.
pub(crate) fn describe(decision: &mut Decision, content: &Content) {
    match content {
        Content::Command {
            service, command, ..
        } => {
            decision.kind = Kind::Command.name();
            decision.service = Some(service.clone());
            decision.command = Some(command.clone());
        }
        Content::Configuration => decision.kind = Kind::Configuration.name(),
        Content::Hold { .. } => decision.kind = Kind::Hold.name(),
        Content::Release => decision.kind = "release",
    }
}

/// Reads a private key, which nobody else may be able to read.
pub fn read_key(path: &Path) -> Result<SigningKey, String> {
    let text = files::read(path, Privacy::Private).map_err(|error| error.to_string())?;
    let fail = |what: String| format!("{}: {what}", path.display());
    let text = std::str::from_utf8(&text).map_err(|_| fail("is not UTF-8".to_owned()))?;
    SigningKey::from_jwk(text).map_err(fail)
}

/// Reads the public keys of hosts: a JSON Web Key on each line, of which the kid is the name of the host. Empty lines
/// and those that begin with `#` are passed over.
pub fn read_host_keys(path: &Path) -> Result<Vec<PublicKey>, String> {
    let fail = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let text = files::read(path, Privacy::Public).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&text).map_err(|_| fail(&"is not UTF-8"))?;
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = PublicKey::from_jwk(line)
            .map_err(|what| format!("{}:{}: {what}", path.display(), index + 1))?;
        keys.push(key);
    }
    match keys.is_empty() {
        true => Err(fail(&"there is no key in it")),
        false => Ok(keys),
    }
}

#[derive(Debug)]
struct Claims<'a> {
    aud: Vec<String>,
    iat: u64,
    exp: u64,
    jti: String,
    kind: Kind,
    msg: &'a RawValue,
}

impl<'a> Claims<'a> {
    fn parse(text: &'a str) -> Result<Self, &'static str> {
        let (mut aud, mut iat, mut exp, mut jti, mut kind, mut msg) =
            (None, None, None, None, None, None);
        for (name, value) in json::entries(text).map_err(|_| "its claims are not a JSON object")? {
            match name.as_str() {
                "aud" => jws::once(&mut aud, targets(value))?,
                "iat" => jws::once(&mut iat, jws::date(value))?,
                "exp" => jws::once(&mut exp, jws::date(value))?,
                "jti" => jws::once(&mut jti, jws::string(value))?,
                "kind" => jws::once(&mut kind, jws::string(value))?,
                "msg" => jws::once(&mut msg, Some(value))?,
                // It may restrict what is meant.
                _ => return Err("it has a claim that is not known"),
            }
        }
        let (Some(aud), Some(iat), Some(exp), Some(jti), Some(kind), Some(msg)) =
            (aud, iat, exp, jti, kind, msg)
        else {
            return Err("it lacks one of the claims aud, iat, exp, jti, kind and msg");
        };
        if exp <= iat || exp - iat > MAX_LIFETIME.as_secs() {
            return Err("it is not good for a time between one second and one day");
        }
        if !NONCE.contains(&jti.len()) {
            return Err("its jti does not have 16 to 128 bytes");
        }
        let kind = Kind::from_name(&kind).filter(|kind| *kind != Kind::Parameters);
        Ok(Self {
            aud,
            iat,
            exp,
            jti,
            kind: kind.ok_or("its kind is not known")?,
            msg,
        })
    }
}

/// The most targets of one message.
const MAX_TARGETS: usize = 64;

/// One target or several.
fn targets(value: &RawValue) -> Option<Vec<String>> {
    let targets = match jws::string(value) {
        Some(target) => vec![target],
        None => serde_json::from_str::<Vec<String>>(value.get()).ok()?,
    };
    let good = (1..=MAX_TARGETS).contains(&targets.len())
        && targets
            .iter()
            .all(|target| target.len() <= 512 && scope::is_target(target));
    good.then_some(targets)
}

#[derive(Serialize)]
struct ClaimsWire<'a> {
    aud: &'a [String],
    iat: u64,
    exp: u64,
    jti: &'a str,
    kind: &'a str,
    msg: &'a RawValue,
}

/// Signs a message for some targets. It is good from now on, for so long.
pub fn sign(
    key: &SigningKey,
    targets: &[String],
    kind: Kind,
    message: &str,
    now: SystemTime,
    lifetime: Duration,
) -> Result<String, String> {
    let msg: &RawValue = serde_json::from_str(message).map_err(|error| error.to_string())?;
    if let Some(wrong) = targets.iter().find(|target| !scope::is_target(target)) {
        return Err(format!("{wrong:?} is not host:NAME, group:NAME or all"));
    }
    if targets.is_empty() || targets.len() > MAX_TARGETS {
        return Err(format!("there must be 1 to {MAX_TARGETS} targets"));
    }
    if lifetime.as_secs() == 0 || lifetime > MAX_LIFETIME {
        return Err("a message is good for a time between one second and one day".to_owned());
    }
    let iat = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let jti = nonce()?;
    let claims = ClaimsWire {
        aud: targets,
        iat,
        exp: iat + lifetime.as_secs(),
        jti: &jti,
        kind: kind.name(),
        msg,
    };
    let claims = serde_json::to_string(&claims).map_err(|error| error.to_string())?;
    jws::seal(key, Type::Message, &claims)
}

/// What tells an envelope from others, for whoever has sealed it.
pub fn envelope_digest(envelope: &str) -> Option<Digest> {
    Envelope::parse(envelope.as_bytes(), Type::Message)
        .ok()
        .map(|envelope| envelope.digest())
}

/// What nobody else has, and nobody guesses.
fn nonce() -> Result<String, String> {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use base64::Engine as _;

    let mut bytes = [0; 18];
    openssl::rand::rand_bytes(&mut bytes).map_err(|error| error.to_string())?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultClaims {
    /// When it was signed.
    iat: u64,
    /// The envelope that is answered, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    req: Option<Digest>,
    /// SHA-256 of the result without its signature, in hexadecimal digits.
    sha256: String,
}

/// What stands in front of the signature in a result. It cannot stand within a string.
const SIGNATURE: &str = ",\"signature\":\"";

/// SHA-256 in hexadecimal digits.
pub fn sha256(text: &[u8]) -> String {
    let digest = openssl::sha::sha256(text);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts a signature behind the other members of a result, where whoever does not know it passes it over.
fn sign_result(
    key: &SigningKey,
    json: &str,
    req: Option<Digest>,
    now: SystemTime,
) -> Result<String, String> {
    let claims = ResultClaims {
        iat: now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        req,
        sha256: sha256(json.as_bytes()),
    };
    let claims = serde_json::to_string(&claims).map_err(|error| error.to_string())?;
    let signature = jws::seal(key, Type::Result, &claims)?;
    let open = json.strip_suffix('}').ok_or("it is not an object")?;
    Ok(format!("{open}{SIGNATURE}{signature}\"}}"))
}

/// Whether a result was signed by one of these keys, and answers this envelope. Says by which key.
pub fn verify_result<'a>(
    payload: &str,
    keys: &'a [PublicKey],
    request: Option<Digest>,
) -> Result<&'a PublicKey, &'static str> {
    let unsigned = "the result is not signed";
    let at = payload.rfind(SIGNATURE).ok_or(unsigned)?;
    let signature = payload[at + SIGNATURE.len()..]
        .strip_suffix("\"}")
        .ok_or(unsigned)?;
    let envelope = Envelope::parse(signature.as_bytes(), Type::Result)?;
    let key = keys
        .iter()
        .find(|key| envelope.is_signed_by(key))
        .ok_or("the result is not signed by a key that is trusted")?;
    let claims: ResultClaims = serde_json::from_str(&envelope.payload)
        .map_err(|_| "the claims of the result are not understood")?;
    if claims.sha256 != sha256(format!("{}}}", &payload[..at]).as_bytes()) {
        return Err("the result was altered");
    }
    match request {
        Some(request) if claims.req != Some(request) => Err("the result answers another message"),
        _ => Ok(key),
    }
}

#[cfg(test)]
mod tests;
