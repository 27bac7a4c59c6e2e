//! JSON objects as they stand in a text: every entry in order, every value as it was written.

use std::fmt;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The entries of an object, repeated keys included. Fails for any other value, and for anything behind it.
pub(crate) fn entries(text: &str) -> serde_json::Result<Vec<(String, &RawValue)>> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let entries = deserializer.deserialize_map(Entries)?;
    deserializer.end()?;
    Ok(entries)
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_as_they_were_written() {
        let entries = entries(r#" {"a": 1.00e5, "a":"x" } "#).unwrap();
        let shown: Vec<_> = entries
            .iter()
            .map(|(key, value)| (key.as_str(), value.get()))
            .collect();
        assert_eq!(shown, [("a", "1.00e5"), ("a", "\"x\"")]);
    }

    #[test]
    fn anything_but_one_object_fails() {
        for text in ["", "42", "null", "[]", "{} {}", "{", "\"{}\""] {
            assert!(entries(text).is_err(), "{text}");
        }
    }
}
