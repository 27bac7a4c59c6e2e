//! Which plugins may be loaded while the daemon runs, and with which configuration.

use super::scope::matches;
use super::scope::{mistake, object, text, texts, Mistake};
use crate::settings::json::{Located, Node};
use crate::settings::Block;

/// Plugins that run code of somebody's choosing. They are allowed by name only.
pub const RUN_CODE: [&str; 5] = ["exec", "java", "lua", "perl", "python"];

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Root, or the user that the daemon runs as, on the control socket.
    Administrator,
    /// A member of the group that may control plugins, on the control socket.
    Group,
    /// A message.
    Message,
}

/// What one of them may load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Patterns of plugins.
    plugins: Vec<String>,
    /// Names of plugins that run code, and `monitor`.
    named: Vec<String>,
    /// Whether another directory may be named for plugins.
    plugin_dir: bool,
    /// Whether other files may be included.
    include: bool,
    /// Whether everything is allowed.
    all: bool,
}

impl Rules {
    const NOTHING: Self = Self {
        plugins: Vec::new(),
        named: Vec::new(),
        plugin_dir: false,
        include: false,
        all: false,
    };

    fn everything() -> Self {
        Self {
            all: true,
            ..Self::NOTHING
        }
    }

    fn from_json(value: Located, what: &str) -> Result<Self, Mistake> {
        if let Node::Text(_) = value.node {
            let at = value.at;
            return match text(value, what)?.as_str() {
                "all" => Ok(Self::everything()),
                "nothing" => Ok(Self::NOTHING),
                _ => mistake(
                    at,
                    format!("{what}: must be \"all\", \"nothing\" or an object"),
                ),
            };
        }
        let mut rules = Self::NOTHING;
        for (name, value) in object(value, what)? {
            let flag = |value: Located| match value.node {
                Node::Flag(flag) => Ok(flag),
                _ => mistake(value.at, format!("{name}: must be a boolean")),
            };
            match name.as_str() {
                "plugins" => {
                    for pattern in texts(value, &name)? {
                        match needs_a_name(&pattern) {
                            true => rules.named.push(pattern.to_lowercase()),
                            false => rules.plugins.push(pattern),
                        }
                    }
                }
                "plugin_dir" => rules.plugin_dir = flag(value)?,
                "include" => rules.include = flag(value)?,
                _ => return mistake(value.at, format!("{name}: is not known of {what}")),
            }
        }
        Ok(rules)
    }

    fn may_load(&self, plugin: &str) -> Result<(), String> {
        if self.all {
            return Ok(());
        }
        if needs_a_name(plugin) {
            return match self.named.iter().any(|name| plugin.eq_ignore_ascii_case(name)) {
                true => Ok(()),
                false => Err(format!(
                    "the policy does not name the plugin {plugin}, which runs code or decides who may"
                )),
            };
        }
        match self.plugins.iter().any(|pattern| matches(pattern, plugin)) {
            true => Ok(()),
            false => Err(format!("the policy does not allow the plugin {plugin}")),
        }
    }

    /// Whether the options of a configuration are allowed, at any depth.
    fn may_configure(&self, options: &[Block]) -> Result<(), String> {
        for option in options {
            if option.is("PluginDir") && !self.plugin_dir {
                return Err("the policy does not allow PluginDir".to_owned());
            }
            if option.is("Include") && !self.include {
                return Err("the policy does not allow Include".to_owned());
            }
            if option.is("Plugin") || option.is("LoadPlugin") {
                if let Some(crate::settings::Value::Text(name)) = option.values.first() {
                    self.may_load(name)?;
                }
            }
            self.may_configure(&option.children)?;
        }
        Ok(())
    }
}

/// Whether a plugin is one that patterns do not reach.
fn needs_a_name(plugin: &str) -> bool {
    plugin.eq_ignore_ascii_case("monitor")
        || RUN_CODE
            .iter()
            .any(|name| plugin.eq_ignore_ascii_case(name))
}

/// Which plugins may be loaded by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    local: Rules,
    group: Rules,
    message: Rules,
}

impl Default for Policy {
    /// What is there may be loaded by whoever could as well edit collectd.conf. A group may load what runs no
    /// code. A message may load nothing.
    fn default() -> Self {
        Self {
            local: Rules::everything(),
            group: Rules {
                plugins: vec!["*".to_owned()],
                ..Rules::NOTHING
            },
            message: Rules::NOTHING,
        }
    }
}

impl Policy {
    /// Nothing for anybody.
    pub fn nothing() -> Self {
        Self {
            local: Rules::NOTHING,
            group: Rules::NOTHING,
            message: Rules::NOTHING,
        }
    }

    pub(super) fn from_json(value: Located) -> Result<Self, Mistake> {
        let mut policy = Self::default();
        for (name, value) in object(value, "policy")? {
            match name.as_str() {
                "local" => policy.local = Rules::from_json(value, "local")?,
                "group" => policy.group = Rules::from_json(value, "group")?,
                "message" => policy.message = Rules::from_json(value, "message")?,
                _ => return mistake(value.at, format!("{name}: is not known of policy")),
            }
        }
        Ok(policy)
    }

    /// Whether a plugin may be loaded with these options. The error is a reason in words, without any value of an
    /// option.
    pub fn check(&self, asker: Asker, plugin: &str, options: &[Block]) -> Result<(), String> {
        let rules = match asker {
            Asker::Administrator => &self.local,
            Asker::Group => &self.group,
            Asker::Message => &self.message,
        };
        rules.may_load(plugin)?;
        match rules.all {
            true => Ok(()),
            false => rules.may_configure(options),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{json, Value};

    fn policy(text: &str) -> Result<Policy, String> {
        Policy::from_json(json::parse(text).unwrap()).map_err(|(_, what)| what)
    }

    #[test]
    fn by_default_the_administrator_loads_what_is_there_and_a_message_nothing() {
        let policy = Policy::default();
        for plugin in ["cpu", "exec", "monitor"] {
            assert_eq!(policy.check(Asker::Administrator, plugin, &[]), Ok(()));
            assert!(policy.check(Asker::Message, plugin, &[]).is_err());
        }
        assert_eq!(policy.check(Asker::Group, "cpu", &[]), Ok(()));
        assert!(policy.check(Asker::Group, "exec", &[]).is_err());
        assert!(policy.check(Asker::Group, "monitor", &[]).is_err());
    }

    #[test]
    fn patterns_do_not_reach_what_runs_code() {
        let wide = policy(r#"{"message":{"plugins":["*"]}}"#).unwrap();
        assert_eq!(wide.check(Asker::Message, "cpu", &[]), Ok(()));
        for plugin in RUN_CODE.into_iter().chain(["Exec", "MONITOR"]) {
            assert!(wide.check(Asker::Message, plugin, &[]).is_err(), "{plugin}");
        }
        let named = policy(r#"{"message":{"plugins":["Exec"]}}"#).unwrap();
        assert_eq!(named.check(Asker::Message, "exec", &[]), Ok(()));
        assert!(named.check(Asker::Message, "python", &[]).is_err());
        assert!(named.check(Asker::Message, "cpu", &[]).is_err());
    }

    #[test]
    fn options_that_reach_beyond_the_plugin_are_allowed_where_listed() {
        let option = |key: &str, value: &str| Block::option(key, [Value::from(value)]);
        let wide = policy(r#"{"group":{"plugins":["*"]}}"#).unwrap();
        let check = |policy: &Policy, block: Block| policy.check(Asker::Group, "cpu", &[block]);
        assert!(check(&wide, option("PluginDir", "/tmp")).is_err());
        assert!(check(&wide, option("include", "/tmp/x")).is_err());
        assert!(check(&wide, option("LoadPlugin", "exec")).is_err());
        assert!(check(&wide, option("Plugin", "monitor")).is_err());
        assert!(check(&wide, option("LoadPlugin", "df")).is_ok());
        let nested = option("Plugin", "cpu").with_block(option("PLUGINDIR", "/tmp"));
        let error = check(&wide, nested).unwrap_err();
        assert_eq!(error, "the policy does not allow PluginDir");
        let listed =
            policy(r#"{"group":{"plugins":["*","monitor"],"plugin_dir":true,"include":true}}"#)
                .unwrap();
        assert!(check(&listed, option("PluginDir", "/tmp")).is_ok());
        assert!(check(&listed, option("Include", "/tmp/x")).is_ok());
        assert!(check(&listed, option("Plugin", "monitor")).is_ok());
    }

    #[test]
    fn a_policy_that_is_not_understood_is_refused() {
        for text in [
            "[]",
            r#"{"locals":"all"}"#,
            r#"{"local":"some"}"#,
            r#"{"local":{"plugin":["*"]}}"#,
            r#"{"local":{"include":"yes"}}"#,
            r#"{"local":"all","local":"all"}"#,
        ] {
            assert!(policy(text).is_err(), "{text}");
        }
        let none = policy(r#"{"local":"nothing"}"#).unwrap();
        assert!(none.check(Asker::Administrator, "cpu", &[]).is_err());
        assert!(Policy::nothing()
            .check(Asker::Administrator, "cpu", &[])
            .is_err());
    }
}
