//! What fuzzers and benchmarks call: the parsers of what is signed and of the trust file, and what must hold of whatever
//! they make of an input.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;

use super::edit::{self, Scope};
use super::jws::{self, Envelope, Type};
use super::{
    verify_result, Claims, ClaimsWire, Kind, SigningKey, Trust, TrustFile, MAX_LIFETIME, NONCE,
};
use crate::daemon::Daemon;
use crate::fake::FakeDaemon;
use crate::protocol::{Digest, Message};
use crate::settings;

/// That of RFC 8037.
const KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"alice",
    "d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const HEADER: &str = r#"{"alg":"EdDSA","kid":"alice","typ":"collectd-live-message"}"#;

fn encode(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn key() -> SigningKey {
    SigningKey::from_jwk(KEY).expect("a key")
}

/// An envelope as it is, and one that is signed and holds the input: claims, or a header and behind a NUL claims.
/// No mutation of an input finds a signature.
pub(crate) fn envelope(data: &[u8]) {
    let key = key();
    for kind in [Type::Message, Type::Result] {
        if let Ok(envelope) = Envelope::parse(data, kind) {
            let compact = rewritten(&envelope, kind);
            // In the other form, JSON has many ways to write the same.
            if !data.trim_ascii_start().starts_with(b"{") {
                assert_eq!(data, compact.as_bytes());
            }
        }
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(signer) = verify_result(text, &[key.public().clone()], None) {
        assert_eq!(signer.kid(), "alice");
    }
    let (header, claims) = text.split_once('\0').unwrap_or((HEADER, text));
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = key.sign(signed.as_bytes()).expect("a signature");
    let compact = format!("{signed}.{}", encode(signature));
    let Ok(envelope) = Envelope::parse(compact.as_bytes(), Type::Message) else {
        return;
    };
    assert_eq!(envelope.payload, claims);
    assert_eq!(
        envelope.is_signed_by(key.public()),
        envelope.kid == key.public().kid()
    );
    rewritten(&envelope, Type::Message);
    let before = envelope.digest();
    let mut altered = envelope;
    altered.signature[claims.len() % 64] ^= 1 << (claims.len() % 8);
    assert!(!altered.is_signed_by(key.public()));
    assert_ne!(altered.digest(), before);
    understood(claims);
}

/// Writes an envelope in both forms, which are the same envelope, of one type only. Returns the compact form.
fn rewritten(envelope: &Envelope, kind: Type) -> String {
    let signed = std::str::from_utf8(&envelope.signed).expect("ASCII");
    let (protected, payload) = signed.split_once('.').expect("two parts");
    assert_eq!(payload, encode(&envelope.payload));
    let signature = encode(&envelope.signature);
    let compact = format!("{signed}.{signature}");
    let flattened =
        format!(r#"{{"protected":"{protected}","payload":"{payload}","signature":"{signature}"}}"#);
    assert!(jws::is_envelope(flattened.as_bytes()));
    for text in [&compact, &flattened] {
        let again = Envelope::parse(text.as_bytes(), kind).expect("the same");
        assert_eq!(again.digest(), envelope.digest());
        assert_eq!(again.kid, envelope.kid);
        let other = match kind {
            Type::Message => Type::Result,
            Type::Result => Type::Message,
        };
        assert!(Envelope::parse(text.as_bytes(), other).is_err());
    }
    compact
}

fn understood(text: &str) {
    let Ok(claims) = Claims::parse(text) else {
        return;
    };
    assert!(claims.exp > claims.iat && claims.exp - claims.iat <= MAX_LIFETIME.as_secs());
    assert!(NONCE.contains(&claims.jti.len()) && !claims.aud.is_empty());
    assert_ne!(claims.kind, Kind::Parameters);
    drop(Message::parse(claims.msg.get().as_bytes()));
    let wire = ClaimsWire {
        aud: &claims.aud,
        iat: claims.iat,
        exp: claims.exp,
        jti: &claims.jti,
        kind: claims.kind.name(),
        msg: claims.msg,
    };
    let again = serde_json::to_string(&wire).expect("strings and numbers");
    let again = Claims::parse(&again).expect("the same");
    assert_eq!(
        (&again.aud, again.iat, again.exp, &again.jti, again.kind),
        (
            &claims.aud,
            claims.iat,
            claims.exp,
            &claims.jti,
            claims.kind
        )
    );
    assert_eq!(again.msg.get(), claims.msg.get());
}

/// A trust file, and changes to it.
pub(crate) fn trust_file(data: &[u8]) {
    let path = Path::new("file");
    let file = match TrustFile::parse(path, data) {
        Ok(file) => file,
        Err(why) => {
            assert!(why.starts_with("file:"), "{why}");
            return;
        }
    };
    let text = std::str::from_utf8(data).expect("it was read");
    for key in &file.keys {
        let kid = key.public.kid();
        assert_eq!(
            file.key(kid).map(|key| key.public.x()),
            Some(key.public.x())
        );
        let without = edit::without_key(path, text, kid).expect("the key is there");
        let left = TrustFile::parse(path, without.as_bytes()).expect("a trust file");
        assert!(left.key(kid).is_none());
        assert_eq!(left.keys.len() + 1, file.keys.len());
        assert_eq!(left.policy, file.policy);
    }
    let key = key();
    if let Ok(with) = edit::with_key(path, text, key.public(), &Scope::default()) {
        let more = TrustFile::parse(path, with.as_bytes()).expect("a trust file");
        assert!(more.key("alice").is_some());
        assert_eq!(more.keys.len(), file.keys.len() + 1);
    }
}

/// A host that takes messages, without anything else of a monitor.
pub struct Host(Trust);

impl Host {
    /// The host `web1` with this trust file.
    ///
    /// # Errors
    /// Why it trusts nobody.
    pub fn new(trust_file: &Path) -> Result<Self, String> {
        let settings = settings::Trust {
            file: Some(trust_file.to_owned()),
            require_signature: true,
            ..settings::Trust::default()
        };
        let daemon: Arc<dyn Daemon> = Arc::new(FakeDaemon::new("web1"));
        let (trust, _) = Trust::new(settings, &daemon)?;
        trust.file()?;
        Ok(Self(trust))
    }

    /// Verifies a message, and asks whether it may be acted upon. Nonces are not looked at.
    ///
    /// # Errors
    /// Why it may not.
    pub fn accepts(&self, payload: &[u8], now: SystemTime) -> Result<(), String> {
        let opened = self.0.open(payload, now).map_err(|refusal| refusal.why)?;
        let message = Message::parse(&opened.text).map_err(|unreadable| unreadable.reason)?;
        let permitted = self.0.permits(&opened.authority, &message.content, now);
        permitted.map_err(|(_, why)| why)
    }

    /// Signs a result, as with this key.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn sign_result(
        key: &SigningKey,
        json: &str,
        request: Option<Digest>,
        now: SystemTime,
    ) -> Result<String, String> {
        super::sign_result(key, json, request, now)
    }
}
