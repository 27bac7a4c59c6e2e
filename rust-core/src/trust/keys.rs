//! Keys: Ed25519, written down as JSON Web Keys (RFC 7517, RFC 8037).

use std::fmt;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::sign::{Signer, Verifier};
use serde::Serialize;

use crate::json;

/// The longest name of a key. It stands in every message and in the audit log.
pub(super) const MAX_KID: usize = 128;

/// Whether a text can be the name of a key.
pub(super) fn is_kid(text: &str) -> bool {
    (1..=MAX_KID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A key that others are known by.
#[derive(Clone)]
pub struct PublicKey {
    kid: String,
    x: [u8; 32],
    key: PKey<Public>,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.kid)
    }
}

impl PublicKey {
    pub(super) fn new(kid: &str, x: &str) -> Result<Self, String> {
        if !is_kid(kid) {
            return Err(format!(
                "its kid is not 1 to {MAX_KID} printable characters of ASCII without spaces"
            ));
        }
        const WRONG: &str = "its x is not the base64url of 32 bytes";
        let x = URL_SAFE_NO_PAD.decode(x).map_err(|_| WRONG)?;
        let x: [u8; 32] = x.try_into().map_err(|_| WRONG)?;
        let key = PKey::public_key_from_raw_bytes(&x, Id::ED25519).map_err(|_| WRONG)?;
        Ok(Self {
            kid: kid.to_owned(),
            x,
            key,
        })
    }

    /// Reads a JSON Web Key. The private part of one is not looked at.
    pub fn from_jwk(text: &str) -> Result<Self, String> {
        let jwk = Jwk::parse(text)?;
        Self::new(&jwk.kid, &jwk.x)
    }

    /// The name of the key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key itself, in base64url.
    pub fn x(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.x)
    }

    /// The key as a JSON Web Key.
    pub fn to_jwk(&self) -> String {
        write_jwk(&self.kid, &self.x(), None)
    }

    /// The thumbprint of RFC 7638: the same for the same key, whatever its name.
    pub fn thumbprint(&self) -> String {
        thumbprint(&self.x())
    }

    pub(super) fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let verified = Verifier::new_without_digest(&self.key)
            .and_then(|mut verifier| verifier.verify_oneshot(signature, text));
        verified.unwrap_or(false)
    }
}

/// A key to sign with. Its `Debug` shows nothing but the name.
#[derive(Clone)]
pub struct SigningKey {
    public: PublicKey,
    key: PKey<Private>,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, [redacted])", self.public.kid)
    }
}

impl SigningKey {
    /// Makes a key. Without a name it is named by its thumbprint.
    pub fn generate(kid: Option<&str>) -> Result<Self, String> {
        let key = PKey::generate_ed25519().map_err(|error| error.to_string())?;
        let x = key.raw_public_key().map_err(|error| error.to_string())?;
        let x = URL_SAFE_NO_PAD.encode(x);
        let public = match kid {
            Some(kid) => PublicKey::new(kid, &x)?,
            None => PublicKey::new(&thumbprint(&x), &x)?,
        };
        Ok(Self { public, key })
    }

    /// Reads a JSON Web Key that has its private part.
    pub fn from_jwk(text: &str) -> Result<Self, String> {
        const WRONG: &str = "its d is not the base64url of 32 bytes";
        let jwk = Jwk::parse(text)?;
        let public = PublicKey::new(&jwk.kid, &jwk.x)?;
        let d = jwk.d.ok_or("it has no private part (d)")?;
        let d = URL_SAFE_NO_PAD.decode(d).map_err(|_| WRONG)?;
        let key = PKey::private_key_from_raw_bytes(&d, Id::ED25519).map_err(|_| WRONG)?;
        // With parts of two keys, nobody would believe what is signed.
        match key.raw_public_key() {
            Ok(x) if x == public.x => Ok(Self { public, key }),
            _ => Err("its x does not belong to its d".to_owned()),
        }
    }

    /// The key with its private part as a JSON Web Key.
    pub fn to_jwk(&self) -> Result<String, String> {
        let d = self.key.raw_private_key().map_err(|e| e.to_string())?;
        let d = URL_SAFE_NO_PAD.encode(d);
        Ok(write_jwk(&self.public.kid, &self.public.x(), Some(&d)))
    }

    /// The public part.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(super) fn sign(&self, text: &[u8]) -> Result<Vec<u8>, String> {
        Signer::new_without_digest(&self.key)
            .and_then(|mut signer| signer.sign_oneshot_to_vec(text))
            .map_err(|error| format!("it cannot be signed: {error}"))
    }
}

#[derive(Serialize)]
struct Wire<'a> {
    kty: &'a str,
    crv: &'a str,
    kid: &'a str,
    x: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<&'a str>,
}

fn write_jwk(kid: &str, x: &str, d: Option<&str>) -> String {
    let wire = Wire {
        kty: "OKP",
        crv: "Ed25519",
        kid,
        x,
        d,
    };
    // Strings can always be written.
    serde_json::to_string(&wire).unwrap_or_default()
}

fn thumbprint(x: &str) -> String {
    let text = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(openssl::sha::sha256(text.as_bytes()))
}

#[derive(Default)]
struct Jwk {
    kid: String,
    x: String,
    d: Option<String>,
}

impl Jwk {
    /// The errors hold nothing of the text, which may be a secret.
    fn parse(text: &str) -> Result<Self, String> {
        let mut jwk = Self::default();
        let (mut kty, mut crv) = (String::new(), String::new());
        let mut seen = Vec::new();
        let entries = json::entries(text).map_err(|_| "it is not a JSON object")?;
        for (name, value) in entries {
            let mut d = String::new();
            let field = match name.as_str() {
                "kty" => &mut kty,
                "crv" => &mut crv,
                "kid" => &mut jwk.kid,
                "x" => &mut jwk.x,
                "d" => &mut d,
                // What it is for and by whom, which nobody here looks at.
                _ => continue,
            };
            if seen.contains(&name) {
                return Err(format!("it has {name} twice"));
            }
            *field = serde_json::from_str(value.get())
                .map_err(|_| format!("its {name} is not a string"))?;
            if name == "d" {
                jwk.d = Some(d);
            }
            seen.push(name);
        }
        if kty != "OKP" || crv != "Ed25519" {
            return Err("it is not a JSON Web Key for Ed25519 (kty OKP, crv Ed25519)".to_owned());
        }
        Ok(jwk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of RFC 8037, appendix A.
    const RFC: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"rfc",
        "d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    #[test]
    fn signing_and_thumbprint_are_those_of_the_rfc() {
        let key = SigningKey::from_jwk(RFC).unwrap();
        let thumbprint = key.public().thumbprint();
        assert_eq!(thumbprint, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
        let text = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let signature = key.sign(text).unwrap();
        assert_eq!(
            URL_SAFE_NO_PAD.encode(&signature),
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
        );
        assert!(key.public().verify(text, &signature));
        assert!(!key.public().verify(&text[1..], &signature));
        assert!(!key.public().verify(text, &signature[..63]));
        assert!(!key.public().verify(text, b""));
    }

    #[test]
    fn a_key_survives_being_written_down_and_its_debug_shows_no_secret() {
        let key = SigningKey::generate(Some("alice@laptop")).unwrap();
        let jwk = key.to_jwk().unwrap();
        let again = SigningKey::from_jwk(&jwk).unwrap();
        assert_eq!(again.public().x(), key.public().x());
        assert_eq!(again.public().kid(), "alice@laptop");
        assert_eq!(format!("{key:?}"), "SigningKey(alice@laptop, [redacted])");
        let public = PublicKey::from_jwk(&key.public().to_jwk()).unwrap();
        assert_eq!(public.x(), key.public().x());
        assert!(!key.public().to_jwk().contains("\"d\""));
        let named = SigningKey::generate(None).unwrap();
        assert_eq!(named.public().kid(), named.public().thumbprint());
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_quoted() {
        let other = SigningKey::generate(Some("k")).unwrap().public().x();
        let mixed = RFC.replace("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", &other);
        for (text, why) in [
            ("", "not a JSON object"),
            ("hunter2", "not a JSON object"),
            ("{}", "not a JSON Web Key for Ed25519"),
            (&RFC.replace("Ed25519", "X25519"), "for Ed25519"),
            (&RFC.replace("\"kid\":\"rfc\"", "\"kid\":\"a b\""), "kid"),
            (&RFC.replace("\"kid\":\"rfc\"", "\"kid\":7"), "kid"),
            (
                &RFC.replace("\"kid\":\"rfc\"", "\"kid\":\"a\",\"kid\":\"b\""),
                "twice",
            ),
            (&RFC.replace("HURo", "HURo="), "its x"),
            (&RFC.replace("HURo", "HURp"), "its x"),
            (&RFC.replace("uf2A", ""), "its d"),
            (&mixed, "its x does not belong to its d"),
        ] {
            let error = SigningKey::from_jwk(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            assert!(
                !error.contains("hunter2") && !error.contains("nWGxne"),
                "{error}"
            );
        }
        let public = SigningKey::from_jwk(RFC).unwrap().public().to_jwk();
        let error = SigningKey::from_jwk(&public).unwrap_err();
        assert!(error.contains("no private part"), "{error}");
    }
}
