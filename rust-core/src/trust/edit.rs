//! Changes to a trust file, made by a program. What they do not touch stays as it was written.

use std::path::Path;

use serde_json::value::RawValue;

use super::keys::PublicKey;
use super::scope::{Kind, TrustFile};
use crate::json;

/// What a key is to be allowed.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The kinds of messages.
    pub kinds: Vec<Kind>,
    /// Patterns of services, each with one of commands.
    pub commands: Vec<(String, String)>,
    /// Patterns of targets.
    pub targets: Vec<String>,
    /// The end of its time, as ISO 8601 has it.
    pub until: Option<String>,
}

/// The entry of a key.
fn entry(key: &PublicKey, scope: &Scope) -> serde_json::Result<String> {
    let mut services: Vec<(&str, Vec<&str>)> = Vec::new();
    for (service, command) in &scope.commands {
        match services.iter_mut().find(|(known, _)| known == service) {
            Some((_, commands)) => commands.push(command),
            None => services.push((service, vec![command])),
        }
    }
    let mut lists = Vec::with_capacity(services.len());
    for (service, commands) in services {
        let commands = serde_json::to_string(&commands)?;
        lists.push(format!("{}: {commands}", serde_json::to_string(service)?));
    }
    let kinds: Vec<_> = scope.kinds.iter().map(|kind| kind.name()).collect();
    let mut text = format!(
        "{{ \"kid\": {}, \"x\": \"{}\",\n      \"kinds\": {},\n      \"services\": {{ {} }},\n      \"targets\": {}",
        serde_json::to_string(key.kid())?,
        key.x(),
        serde_json::to_string(&kinds)?,
        lists.join(", "),
        serde_json::to_string(&scope.targets)?,
    );
    if let Some(until) = &scope.until {
        text.push_str(&format!(
            ",\n      \"until\": {}",
            serde_json::to_string(until)?
        ));
    }
    text.push_str(" }");
    Ok(text)
}

/// The file with a key more. Whatever would make the file unusable is an error.
pub fn with_key(path: &Path, text: &str, key: &PublicKey, scope: &Scope) -> Result<String, String> {
    let entry = entry(key, scope).map_err(|error| error.to_string())?;
    let text = match text.trim().is_empty() {
        true => "{}",
        false => text,
    };
    change(path, text, |keys| keys.push(entry))
}

/// The file without a key.
pub fn without_key(path: &Path, text: &str, kid: &str) -> Result<String, String> {
    let file = TrustFile::parse(path, text.as_bytes())?;
    let at = file.keys.iter().position(|key| key.public.kid() == kid);
    let at = at.ok_or_else(|| format!("{}: there is no key {kid:?}", path.display()))?;
    change(path, text, |keys| drop(keys.remove(at)))
}

fn change(
    path: &Path,
    text: &str,
    change: impl FnOnce(&mut Vec<String>),
) -> Result<String, String> {
    TrustFile::parse(path, text.as_bytes())?;
    let wrong = |error: serde_json::Error| format!("{}: {error}", path.display());
    let members = json::entries(text).map_err(wrong)?;
    let mut keys: Vec<String> = Vec::new();
    let mut others = Vec::new();
    for (name, value) in members {
        if name == "keys" {
            let items: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(wrong)?;
            keys.extend(items.iter().map(|item| item.get().to_owned()));
        } else {
            let name = serde_json::to_string(&name).map_err(wrong)?;
            others.push(format!("  {name}: {}", value.get()));
        }
    }
    change(&mut keys);
    let mut members = vec![match keys.is_empty() {
        true => "  \"keys\": []".to_owned(),
        false => format!("  \"keys\": [\n    {}\n  ]", keys.join(",\n    ")),
    }];
    members.append(&mut others);
    let changed = format!("{{\n{}\n}}\n", members.join(",\n"));
    TrustFile::parse(path, changed.as_bytes())?;
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::SigningKey;

    #[test]
    fn keys_come_and_go_and_the_rest_stays_as_it_was() {
        let path = Path::new("/t");
        let alice = SigningKey::generate(Some("alice")).unwrap();
        let bob = SigningKey::generate(Some("bob")).unwrap();
        let scope = Scope {
            kinds: vec![Kind::Command, Kind::Hold],
            commands: vec![
                ("web".into(), "restart".into()),
                ("db".into(), "*".into()),
                ("web".into(), "status".into()),
            ],
            targets: vec!["host:*".into()],
            until: Some("2030-01-01T00:00:00Z".into()),
        };
        let one = with_key(path, "", alice.public(), &scope).unwrap();
        let policy = one.trim_end().trim_end_matches('}').trim_end().to_owned()
            + ",\n  \"policy\": { \"message\" : \"nothing\" }\n}\n";
        let two = with_key(path, &policy, bob.public(), &Scope::default()).unwrap();
        assert!(
            two.contains("\"policy\": { \"message\" : \"nothing\" }"),
            "{two}"
        );
        let file = TrustFile::parse(path, two.as_bytes()).unwrap();
        let key = file.key("alice").unwrap();
        assert!(key.may_run("web", "status") && key.may_run("db", "x"));
        assert!(!key.may_run("web", "x") && key.until.is_some());
        let none = file.key("bob").unwrap();
        assert!(none.kinds.is_empty() && !none.may_run("web", "status"));
        let error = with_key(path, &two, alice.public(), &scope).unwrap_err();
        assert!(error.contains("alice: is there twice"), "{error}");
        let without = without_key(path, &two, "bob").unwrap();
        assert_eq!(without, policy);
        let error = without_key(path, &without, "bob").unwrap_err();
        assert!(error.contains("there is no key \"bob\""), "{error}");
        let error = with_key(path, "{ broken", bob.public(), &scope).unwrap_err();
        assert!(error.starts_with("/t:1:"), "{error}");
    }
}
