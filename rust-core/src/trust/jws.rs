//! Envelopes: JSON Web Signatures (RFC 7515) with Ed25519 (RFC 8037), and nothing else of what those may be.
//!
//! There is one algorithm, and one place where keys come from: the trust file. So a header that would have the
//! reader look for a key elsewhere, or verify in another way, is refused, as is every parameter that is not
//! known here. Each text has one encoding: base64url without padding, white space or bits that are left over.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use serde::Serialize;
use serde_json::value::RawValue;

use super::keys::{is_kid, PublicKey, SigningKey};
use crate::json;
use crate::protocol::{Digest, MAX_MESSAGE};

/// The longest envelope: base64url makes four characters of three bytes.
pub(super) const MAX_ENVELOPE: usize = MAX_MESSAGE / 3 * 4 + 4096;

/// What is signed. One kind of text can never be taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    /// A message to hosts.
    Message,
    /// A result of a host.
    Result,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Type::Message => "collectd-live-message",
            Type::Result => "collectd-live-result",
        }
    }
}

/// An envelope that was taken apart. Nothing of it can be believed before its signature is verified.
#[derive(Debug)]
pub(super) struct Envelope {
    /// The name of the key that it claims to be signed with.
    pub(super) kid: String,
    /// The claims, as they were signed.
    pub(super) payload: String,
    pub(super) signed: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

/// Whether a payload claims to be an envelope rather than a message as it is. One that is broken does, too: it
/// must not be looked at in another way.
pub(super) fn is_envelope(payload: &[u8]) -> bool {
    let start = payload.trim_ascii_start();
    if start.first() != Some(&b'{') {
        // What `{"` looks like in base64.
        return start.starts_with(b"ey");
    }
    let entries = std::str::from_utf8(payload).map(json::entries);
    let Ok(Ok(entries)) = entries else {
        return false;
    };
    let names = ["protected", "payload", "signature", "signatures", "header"];
    entries.iter().any(|(key, _)| names.contains(&key.as_str()))
}

impl Envelope {
    /// Takes an envelope apart, in the compact or the flattened form. The errors hold nothing of it.
    pub(super) fn parse(payload: &[u8], kind: Type) -> Result<Self, &'static str> {
        if payload.len() > MAX_ENVELOPE {
            return Err("it is too long");
        }
        let text = std::str::from_utf8(payload).map_err(|_| "it is not UTF-8")?;
        let flattened;
        let (protected, claims, signature) = if text.trim_ascii_start().starts_with('{') {
            flattened = flattened_parts(text)?;
            let [protected, claims, signature] = &flattened;
            (protected.as_str(), claims.as_str(), signature.as_str())
        } else {
            let mut parts = text.split('.');
            match (parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some(protected), Some(claims), Some(signature), None) => {
                    (protected, claims, signature)
                }
                _ => return Err("it does not have three parts"),
            }
        };
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| "a part of it is not base64url without padding")
        };
        let text =
            |part: &str| String::from_utf8(decode(part)?).map_err(|_| "a part of it is not UTF-8");
        let header = text(protected)?;
        let payload = text(claims)?;
        let decoded = decode(signature)?;
        if decoded.len() != 64 {
            return Err("its signature does not have 64 bytes");
        }
        let kid = read_header(&header, kind)?;
        Ok(Self {
            kid,
            payload,
            signed: format!("{protected}.{claims}").into_bytes(),
            signature: decoded,
        })
    }

    /// Whether this key has signed it.
    pub(super) fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.kid == key.kid() && key.verify(&self.signed, &self.signature)
    }

    /// What tells this envelope from all others, in either form.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&[&self.signed, &self.signature])
    }
}

/// The parts of the flattened JSON serialisation. Its unprotected header could say anything, so there is none.
fn flattened_parts(text: &str) -> Result<[String; 3], &'static str> {
    let mut parts: [Option<String>; 3] = Default::default();
    for (name, value) in json::entries(text).map_err(|_| "it is not a JSON object")? {
        let at = match name.as_str() {
            "protected" => 0,
            "payload" => 1,
            "signature" => 2,
            "header" => return Err("it has an unprotected header"),
            "signatures" => {
                return Err("it is of the general form, which may have many signatures")
            }
            _ => return Err("it has a member beside protected, payload and signature"),
        };
        let value: String =
            serde_json::from_str(value.get()).map_err(|_| "a member of it is not a string")?;
        if parts[at].replace(value).is_some() {
            return Err("it has a member twice");
        }
    }
    match parts {
        [Some(protected), Some(payload), Some(signature)] => Ok([protected, payload, signature]),
        _ => Err("it lacks a member"),
    }
}

/// The name of the key in a header that says what all headers say.
fn read_header(header: &str, kind: Type) -> Result<String, &'static str> {
    let [mut alg, mut kid, mut typ]: [Option<String>; 3] = Default::default();
    for (name, value) in json::entries(header).map_err(|_| "its header is not a JSON object")? {
        let field = match name.as_str() {
            "alg" => &mut alg,
            "kid" => &mut kid,
            "typ" => &mut typ,
            "crit" => return Err("its header has crit, and no extension is known"),
            "jwk" | "jku" | "x5u" | "x5c" | "x5t" | "x5t#S256" => {
                return Err("its header brings a key, and keys come from the trust file only")
            }
            _ => return Err("its header has a parameter that is not known"),
        };
        let value =
            serde_json::from_str(value.get()).map_err(|_| "its header is not made of strings")?;
        if field.replace(value).is_some() {
            return Err("its header has a parameter twice");
        }
    }
    if alg.as_deref() != Some("EdDSA") {
        return Err("its alg is not EdDSA");
    }
    if typ.as_deref() != Some(kind.name()) {
        return Err("its typ is not that of such an envelope");
    }
    kid.filter(|kid| is_kid(kid))
        .ok_or("its kid is not the name of a key")
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'a str,
    kid: &'a str,
    typ: &'a str,
}

/// Signs claims, in the compact form.
pub(super) fn seal(key: &SigningKey, kind: Type, claims: &str) -> Result<String, String> {
    let header = Header {
        alg: "EdDSA",
        kid: key.public().kid(),
        typ: kind.name(),
    };
    // Strings can always be written.
    let header = serde_json::to_string(&header).unwrap_or_default();
    let mut text = URL_SAFE_NO_PAD.encode(header);
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut text);
    let signature = key.sign(text.as_bytes())?;
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut text);
    Ok(text)
}

/// A claim that may be there once.
pub(super) fn once<T>(field: &mut Option<T>, value: Option<T>) -> Result<(), &'static str> {
    match (value, field.is_some()) {
        (Some(value), false) => {
            *field = Some(value);
            Ok(())
        }
        (None, _) => Err("a claim of it is of the wrong type"),
        (_, true) => Err("it has a claim twice"),
    }
}

/// A claim that is a string.
pub(super) fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// A claim that is a point in time: whole seconds since 1970, at most in the year 9999.
pub(super) fn date(value: &RawValue) -> Option<u64> {
    let seconds: u64 = serde_json::from_str(value.get()).ok()?;
    (seconds <= 253_402_300_799).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::generate(Some("alice")).unwrap()
    }

    fn parse(text: &str) -> Result<Envelope, &'static str> {
        assert!(is_envelope(text.as_bytes()), "{text}");
        Envelope::parse(text.as_bytes(), Type::Message)
    }

    fn with_header(key: &SigningKey, header: &str) -> String {
        let mut text = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode("{}")
        );
        let signature = key.sign(text.as_bytes()).unwrap();
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(signature));
        text
    }

    #[test]
    fn what_was_sealed_is_read_in_both_forms_and_is_the_same_envelope() {
        let key = key();
        let compact = seal(&key, Type::Message, r#"{"a":"é"}"#).unwrap();
        let envelope = parse(&compact).unwrap();
        assert_eq!(
            (envelope.kid.as_str(), envelope.payload.as_str()),
            ("alice", r#"{"a":"é"}"#)
        );
        assert!(envelope.is_signed_by(key.public()));
        let parts: Vec<_> = compact.split('.').collect();
        let flattened = format!(
            r#" {{"payload":"{}","protected":"{}","signature":"{}"}}"#,
            parts[1], parts[0], parts[2]
        );
        let again = parse(&flattened).unwrap();
        assert!(again.is_signed_by(key.public()));
        assert_eq!(again.digest(), envelope.digest());
        let other = seal(&key, Type::Message, r#"{"a":"e"}"#).unwrap();
        assert_ne!(parse(&other).unwrap().digest(), envelope.digest());
    }

    #[test]
    fn a_header_that_says_anything_else_is_refused() {
        let key = key();
        let good = r#"{"alg":"EdDSA","kid":"alice","typ":"collectd-live-message"}"#;
        assert!(parse(&with_header(&key, good)).is_ok());
        for (header, why) in [
            (good.replace("EdDSA", "none"), "alg"),
            (good.replace("EdDSA", "HS256"), "alg"),
            (good.replace("EdDSA", "eddsa"), "alg"),
            (
                good.replace("\"EdDSA\"", "[\"EdDSA\"]"),
                "not made of strings",
            ),
            (good.replace("\"alg\":\"EdDSA\",", ""), "alg"),
            (
                good.replace("collectd-live-message", "collectd-live-result"),
                "typ",
            ),
            (
                good.replace(",\"typ\":\"collectd-live-message\"", ""),
                "typ",
            ),
            (good.replace("alice", ""), "kid"),
            (good.replace("alice", "a b"), "kid"),
            (good.replace("}", ",\"crit\":[\"exp\"]}"), "crit"),
            (
                good.replace("}", ",\"jwk\":{\"kty\":\"OKP\"}}"),
                "brings a key",
            ),
            (good.replace("}", ",\"jku\":\"http://x/\"}"), "brings a key"),
            (good.replace("}", ",\"x5u\":\"http://x/\"}"), "brings a key"),
            (good.replace("}", ",\"b64\":false}"), "not known"),
            (good.replace("}", ",\"alg\":\"EdDSA\"}"), "twice"),
            // The same name in another spelling is the same name.
            (good.replace("}", ",\"al\\u0067\":\"none\"}"), "twice"),
            (format!("{good} x"), "not a JSON object"),
        ] {
            let error = parse(&with_header(&key, &header)).unwrap_err();
            assert!(error.contains(why), "{header}: {error}");
        }
    }

    #[test]
    fn one_text_has_one_encoding() {
        let compact = seal(&key(), Type::Message, r#"{"a":1}"#).unwrap();
        let parts: Vec<_> = compact.split('.').collect();
        let last = compact.chars().last().unwrap();
        // Of the last character of 64 bytes, four bits are left over.
        let left_over = {
            let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let at = alphabet.find(last).unwrap();
            alphabet.chars().nth(at ^ 1).unwrap()
        };
        for text in [
            format!("{compact}="),
            format!("{compact}=="),
            format!("{compact}\n"),
            format!(" {compact}"),
            format!("{compact}."),
            format!("{compact}.{}", parts[2]),
            format!("{}{left_over}", &compact[..compact.len() - 1]),
            format!("{}.{}", parts[0], parts[1]),
            format!("{}..{}", parts[0], parts[2]),
            compact[..compact.len() - 1].to_owned(),
            compact.replacen('.', ". ", 1),
            format!("{}=.{}.{}", parts[0], parts[1], parts[2]),
        ] {
            let read = parse(&text);
            // An empty payload is encoded well, and is no object of claims.
            assert!(
                read.as_ref().is_err_and(|e| !e.is_empty())
                    || read.as_ref().is_ok_and(|e| e.payload.is_empty()),
                "{text}"
            );
        }
    }

    #[test]
    fn the_flattened_form_holds_nothing_else() {
        let compact = seal(&key(), Type::Message, "{}").unwrap();
        let parts: Vec<_> = compact.split('.').collect();
        let good = format!(
            r#"{{"protected":"{}","payload":"{}","signature":"{}"}}"#,
            parts[0], parts[1], parts[2]
        );
        assert!(parse(&good).is_ok());
        for (more, why) in [
            (r#","header":{"alg":"none"}"#, "unprotected"),
            (r#","signatures":[]"#, "general form"),
            (
                r#","task_id":1,"service":"web","command":"restart""#,
                "beside",
            ),
            (r#","payload":"e30""#, "twice"),
        ] {
            let text = good.replace('}', &format!("{more}}}"));
            let error = parse(&text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let without = good.replace(&format!(r#","signature":"{}""#, parts[2]), "");
        assert_eq!(parse(&without).unwrap_err(), "it lacks a member");
        let wrong = good.replace(&format!("\"{}\"", parts[2]), "7");
        assert_eq!(parse(&wrong).unwrap_err(), "a member of it is not a string");
    }

    #[test]
    fn what_is_no_envelope_is_not_taken_for_one() {
        for text in ["", "{}", "not JSON", r#"{"task_id":1}"#, "[]", "\u{0}"] {
            assert!(!is_envelope(text.as_bytes()), "{text}");
        }
    }
}
