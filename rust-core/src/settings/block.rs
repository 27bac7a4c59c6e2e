//! A block of collectd.conf, as liboconfig read it.

/// An option or a block: a key, its values, and what stands inside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// The key as it was written. collectd's keys are compared without case.
    pub key: String,
    /// The values behind the key.
    pub values: Vec<Value>,
    /// The options between `<key>` and `</key>`.
    pub children: Vec<Block>,
}

/// A value, with the type that it was written in.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Quoted, or a bare word.
    Text(String),
    /// A number.
    Number(f64),
    /// `true`, `yes`, `on` or their opposites.
    Flag(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Number(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Value::Flag(flag)
    }
}

impl Block {
    /// An option: a key with its values.
    pub fn option(key: &str, values: impl IntoIterator<Item = Value>) -> Self {
        Self {
            key: key.to_owned(),
            values: values.into_iter().collect(),
            children: Vec::new(),
        }
    }

    /// The block with one more option inside.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.children.push(Self::option(key, [value.into()]));
        self
    }

    /// The block with one more block inside.
    #[must_use]
    pub fn with_block(mut self, child: Block) -> Self {
        self.children.push(child);
        self
    }

    /// Whether the key is this one, as collectd compares them.
    pub fn is(&self, key: &str) -> bool {
        self.key.eq_ignore_ascii_case(key)
    }
}
