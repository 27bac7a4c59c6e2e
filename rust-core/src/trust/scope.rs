//! The trust file: which keys there are, what each may do, and which plugins may be loaded at run time.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use super::keys::PublicKey;
use super::policy::Policy;
use crate::clock::parse_iso8601;
use crate::settings::json::{self, Located, Node};

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A command, as it stands in the configuration.
    Command,
    /// A command with parameters that the sender chooses. Needs `Command`, too.
    Parameters,
    /// A new configuration.
    Configuration,
    /// Loading, configuring and unloading a plugin.
    Plugins,
    /// To hold recovery actions, or to go on with them.
    Hold,
}

/// Their names.
const KINDS: [(&str, Kind); 5] = [
    ("command", Kind::Command),
    ("parameters", Kind::Parameters),
    ("configuration", Kind::Configuration),
    ("plugins", Kind::Plugins),
    ("hold", Kind::Hold),
];

impl Kind {
    /// Its name, in the trust file and in messages.
    pub fn name(self) -> &'static str {
        KINDS
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("", |(name, _)| name)
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        KINDS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, kind)| *kind)
    }
}

/// A key and what it may do. What is not listed may not be done.
#[derive(Clone, Debug)]
pub struct TrustedKey {
    /// The key.
    pub public: PublicKey,
    /// The kinds of messages.
    pub kinds: BTreeSet<Kind>,
    /// Patterns of services, each with patterns of commands.
    pub services: Vec<(String, Vec<String>)>,
    /// Patterns of targets that messages may be addressed to.
    pub targets: Vec<String>,
    /// The end of its time.
    pub until: Option<SystemTime>,
}

impl TrustedKey {
    /// Whether it may send a command to a service.
    pub fn may_run(&self, service: &str, command: &str) -> bool {
        self.services.iter().any(|(pattern, commands)| {
            matches(pattern, service) && commands.iter().any(|pattern| matches(pattern, command))
        })
    }

    /// Whether it may address a target.
    pub fn may_address(&self, target: &str) -> bool {
        self.targets.iter().any(|pattern| matches(pattern, target))
    }
}

/// Whether a text matches a pattern as a whole. `*` stands for any characters, `?` for one.
pub fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where the last star is, and how much of the text it stands for so far.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, covered)) => {
                    star = Some((at, covered + 1));
                    p = at + 1;
                    t = covered + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// What a trust file says.
#[derive(Clone, Debug, Default)]
pub struct TrustFile {
    /// The keys.
    pub keys: Vec<TrustedKey>,
    /// Which plugins may be loaded.
    pub policy: Policy,
}

impl TrustFile {
    /// Reads a trust file. A mistake is named with its place, and the whole file is refused.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, String> {
        let name = path.display();
        let text = std::str::from_utf8(text).map_err(|_| format!("{name}: is not UTF-8"))?;
        let root = json::parse(text).map_err(|e| format!("{name}:{}: {}", e.at, e.what))?;
        Self::from_json(root).map_err(|(at, what)| format!("{name}:{at}: {what}"))
    }

    fn from_json(root: Located) -> Result<Self, Mistake> {
        let mut file = Self::default();
        for (name, value) in object(root, "the file")? {
            match name.as_str() {
                "keys" => {
                    for item in list(value, "keys")? {
                        let at = item.at;
                        let key = trusted_key(item)?;
                        // A key that is deleted must not live on under another name.
                        if file.keys.iter().any(|known| {
                            known.public.kid() == key.public.kid()
                                || known.public.x() == key.public.x()
                        }) {
                            return mistake(at, format!("{}: is there twice", key.public.kid()));
                        }
                        file.keys.push(key);
                    }
                }
                "policy" => file.policy = Policy::from_json(value)?,
                _ => return mistake(value.at, format!("{name}: is not known here")),
            }
        }
        Ok(file)
    }

    /// The key of this name.
    pub fn key(&self, kid: &str) -> Option<&TrustedKey> {
        self.keys.iter().find(|key| key.public.kid() == kid)
    }
}

/// A place in the file, and what is wrong there.
pub(super) type Mistake = (json::Place, String);

pub(super) fn mistake<T>(at: json::Place, what: impl Into<String>) -> Result<T, Mistake> {
    Err((at, what.into()))
}

/// The members of an object, each of them once.
pub(super) fn object(value: Located, what: &str) -> Result<Vec<(String, Located)>, Mistake> {
    let Node::Object(members) = value.node else {
        let kind = value.node.kind();
        return mistake(value.at, format!("{what}: must be an object, not {kind}"));
    };
    let mut seen = BTreeSet::new();
    for (name, value) in &members {
        if !seen.insert(name.as_str()) {
            return mistake(value.at, format!("{name}: is there twice"));
        }
    }
    Ok(members)
}

fn list(value: Located, what: &str) -> Result<Vec<Located>, Mistake> {
    match value.node {
        Node::List(items) => Ok(items),
        other => mistake(
            value.at,
            format!("{what}: must be a list, not {}", other.kind()),
        ),
    }
}

pub(super) fn text(value: Located, what: &str) -> Result<String, Mistake> {
    match value.node {
        Node::Text(text) if !text.is_empty() => Ok(text),
        _ => mistake(
            value.at,
            format!("{what}: must be a string that is not empty"),
        ),
    }
}

pub(super) fn texts(value: Located, what: &str) -> Result<Vec<String>, Mistake> {
    list(value, what)?
        .into_iter()
        .map(|item| text(item, what))
        .collect()
}

fn trusted_key(value: Located) -> Result<TrustedKey, Mistake> {
    let at = value.at;
    let (mut kid, mut x) = (None, None);
    let mut kinds = BTreeSet::new();
    let (mut services, mut targets) = (Vec::new(), Vec::new());
    let mut until = None;
    for (name, value) in object(value, "a key")? {
        let at = value.at;
        match name.as_str() {
            "kid" => kid = Some(text(value, &name)?),
            "x" => x = Some(text(value, &name)?),
            // As in a JSON Web Key, which may be pasted as it is.
            "kty" | "crv" => {
                let only = if name == "kty" { "OKP" } else { "Ed25519" };
                if text(value, &name)? != only {
                    return mistake(at, format!("{name}: must be {only}"));
                }
            }
            "d" => {
                let what = "d: is the private part of the key, which belongs to its owner only";
                return mistake(at, what);
            }
            "comment" => drop(text(value, &name)?),
            "kinds" => {
                for kind in texts(value, &name)? {
                    let Some(kind) = Kind::from_name(&kind) else {
                        let known: Vec<_> = KINDS.iter().map(|(name, _)| *name).collect();
                        return mistake(at, format!("kinds: are {}", known.join(", ")));
                    };
                    kinds.insert(kind);
                }
            }
            "services" => {
                for (service, commands) in object(value, &name)? {
                    let commands = texts(commands, &service)?;
                    services.push((service, commands));
                }
            }
            "targets" => {
                targets = texts(value, &name)?;
                if let Some(wrong) = targets.iter().find(|target| !is_target(target)) {
                    let what = format!("targets: {wrong:?} is not host:NAME, group:NAME or all");
                    return mistake(at, what);
                }
            }
            "until" => {
                let Some(time) = parse_iso8601(&text(value, &name)?) else {
                    return mistake(at, "until: must be a time like 2030-01-31T00:00:00Z");
                };
                until = Some(time);
            }
            _ => return mistake(at, format!("{name}: is not known of a key")),
        }
    }
    let (Some(kid), Some(x)) = (kid, x) else {
        return mistake(at, "a key: needs kid and x");
    };
    let public = PublicKey::new(&kid, &x).or_else(|what| mistake(at, what))?;
    Ok(TrustedKey {
        public,
        kinds,
        services,
        targets,
        until,
    })
}

/// Whether a text can be a target, or a pattern of some.
pub fn is_target(text: &str) -> bool {
    let named = ["host:", "group:"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix));
    text == "all" || named.is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::keys::SigningKey;

    fn parse(text: &str) -> Result<TrustFile, String> {
        TrustFile::parse(Path::new("/t"), text.as_bytes())
    }

    #[test]
    fn patterns_match_the_whole_text() {
        for (pattern, text, expected) in [
            ("web", "web", true),
            ("web", "web2", false),
            ("web", "Web", false),
            ("web*", "web", true),
            ("web*", "web/x", true),
            ("*b", "web", true),
            ("*b*b", "bbb", true),
            ("w?b", "wéb", true),
            ("w?b", "wb", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1b2b3", false),
            ("[ab]", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_key_may_do_what_is_listed_and_nothing_else() {
        let x = SigningKey::generate(None).unwrap().public().x();
        let file = parse(&format!(
            r#"{{"keys":[{{"kid":"a","x":"{x}","kinds":["command"],"targets":["host:web*"],
                "services":{{"web*":["restart","st*"],"db":["status"]}}}}]}}"#
        ))
        .unwrap();
        let key = file.key("a").unwrap();
        assert!(key.may_run("web1", "restart") && key.may_run("db", "status"));
        assert!(!key.may_run("db", "restart") && !key.may_run("x", "status"));
        assert!(key.may_address("host:web1"));
        assert!(!key.may_address("host:db") && !key.may_address("all"));
        assert!(key.kinds.contains(&Kind::Command) && !key.kinds.contains(&Kind::Parameters));
        let bare = parse(&format!(r#"{{"keys":[{{"kid":"a","x":"{x}"}}]}}"#)).unwrap();
        let key = bare.key("a").unwrap();
        assert!(!key.may_run("web1", "restart") && !key.may_address("host:web1"));
        assert!(key.kinds.is_empty() && bare.key("b").is_none());
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let x = SigningKey::generate(None).unwrap().public().x();
        let with = |more: &str| format!("{{\"keys\":[\n{{\"kid\":\"a\",\"x\":\"{x}\"{more}}}]}}");
        for (text, why) in [
            ("".to_owned(), "/t:1:0: EOF"),
            ("[]".to_owned(), "/t:1:1: the file: must be an object"),
            (r#"{"key":[]}"#.to_owned(), "key: is not known here"),
            (r#"{"keys":{}}"#.to_owned(), "keys: must be a list"),
            (
                r#"{"keys":[],"keys":[]}"#.to_owned(),
                "keys: is there twice",
            ),
            (r#"{"keys":[{}]}"#.to_owned(), "needs kid and x"),
            (with(",\"kinds\":[\"commands\"]"), "/t:2:"),
            (
                with(",\"kinds\":[\"commands\"]"),
                "kinds: are command, parameters",
            ),
            (with(",\"kind\":[]"), "kind: is not known of a key"),
            (with(",\"targets\":[\"web1\"]"), "host:NAME"),
            (with(",\"targets\":[\"host:\"]"), "host:NAME"),
            (
                with(",\"until\":\"soon\"").replace("soon", "tomorrow"),
                "until: must be",
            ),
            (with(",\"d\":\"x\""), "private part"),
            (with(",\"services\":[]"), "services: must be an object"),
            (
                with(&format!("}},{{\"kid\":\"b\",\"x\":\"{x}\"")),
                "b: is there twice",
            ),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
