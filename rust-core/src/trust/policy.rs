//! Which plugins may be loaded while the daemon runs, and with which configuration.

use super::scope::matches;
use super::scope::{mistake, object, text, texts, Mistake};
use crate::daemon::Verb;
use crate::settings::json::{Located, Node};
use crate::settings::{Block, Value};

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

/// Who asks the daemon to change a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requester {
    /// This user, on the control socket, who may change nothing.
    Other(u32),
    /// This user, on the control socket, a member of the group that may control plugins.
    Group(u32),
    /// Root, or the user that the daemon runs as, on the control socket.
    Owner(u32),
    /// A plugin of this name. What it does was given to it by the administrator.
    Plugin(String),
}

impl Requester {
    /// Whose part of the policy counts; none for whoever may do nothing.
    fn asker(&self) -> Option<Asker> {
        match self {
            Requester::Other(_) => None,
            Requester::Group(_) => Some(Asker::Group),
            Requester::Owner(_) | Requester::Plugin(_) => Some(Asker::Administrator),
        }
    }

    /// Whether this one may go on where nobody can decide. Somebody has to be able to mend it.
    pub fn mends(&self) -> Result<(), String> {
        match self {
            Requester::Owner(_) => Ok(()),
            _ => Err("the monitor, which decides, cannot tell; its log says why".to_owned()),
        }
    }
}

/// What is known of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Options {
    /// It was not read yet, or there is none.
    Unread,
    /// It cannot be looked at: a text in it is not UTF-8, or blocks are nested too deeply.
    Strange,
    /// The blocks `LoadPlugin` and `Plugin`, or what is in one.
    Read(Vec<Block>),
}

/// What somebody asks the daemon to do with a plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What is to be done.
    pub verb: Verb,
    /// The plugin's name, as it was given: any text.
    pub plugin: String,
    /// Who asks.
    pub by: Requester,
    /// Whether a configuration was given. Otherwise it is the one of the daemon's own file, or there is none.
    pub given: bool,
    /// Whether the request has options that change what the daemon does with the plugin.
    pub tuned: bool,
    /// The configuration.
    pub options: Options,
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
    /// Whether the request may say more than the plugin's name: a configuration, an interval and so on.
    configuration: bool,
    /// Whether everything is allowed.
    all: bool,
}

impl Rules {
    const NOTHING: Self = Self {
        plugins: Vec::new(),
        named: Vec::new(),
        plugin_dir: false,
        include: false,
        configuration: false,
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
                            true => rules.named.push(pattern.to_ascii_lowercase()),
                            false => rules.plugins.push(pattern.to_ascii_lowercase()),
                        }
                    }
                }
                "plugin_dir" => rules.plugin_dir = flag(value)?,
                "include" => rules.include = flag(value)?,
                "configuration" => rules.configuration = flag(value)?,
                _ => return mistake(value.at, format!("{name}: is not known of {what}")),
            }
        }
        Ok(rules)
    }

    fn may_load(&self, plugin: &str) -> Result<(), String> {
        if self.all {
            return Ok(());
        }
        // The daemon does not care for case either.
        let name = plugin.to_ascii_lowercase();
        if needs_a_name(&name) {
            return match self.named.contains(&name) {
                true => Ok(()),
                false => Err(format!(
                    "the policy does not name the plugin {name}, which runs code or decides who may"
                )),
            };
        }
        match self.plugins.iter().any(|pattern| matches(pattern, &name)) {
            true => Ok(()),
            false => Err("the policy does not allow this plugin".to_owned()),
        }
    }

    /// Whether the statements of a configuration are allowed.
    fn may_configure(&self, statements: &[Block]) -> Result<(), String> {
        for statement in statements {
            self.reaches_beyond(statement)?;
            // Further inside, `Plugin` is an option of a plugin, which names one to look at.
            if statement.is("Plugin") || statement.is("LoadPlugin") {
                match statement.values.first() {
                    Some(Value::Text(name)) => self.may_load(name)?,
                    _ => return Err("a block does not say which plugin it is for".to_owned()),
                }
            }
        }
        Ok(())
    }

    /// Whether the options that reach beyond the plugin are allowed, at any depth.
    fn reaches_beyond(&self, option: &Block) -> Result<(), String> {
        if option.is("PluginDir") && !self.plugin_dir {
            return Err("the policy does not allow PluginDir".to_owned());
        }
        if option.is("Include") && !self.include {
            return Err("the policy does not allow Include".to_owned());
        }
        let mut inside = option.children.iter();
        inside.try_for_each(|option| self.reaches_beyond(option))
    }

    fn permits(&self, change: &Change) -> Result<(), String> {
        self.may_load(&change.plugin)?;
        if self.all {
            return Ok(());
        }
        if !self.configuration {
            if change.given {
                return Err("the policy does not allow to give a configuration".to_owned());
            }
            if change.tuned {
                return Err("the policy allows no option but `timeout'".to_owned());
            }
        }
        match &change.options {
            Options::Unread => Ok(()),
            Options::Strange => Err("the configuration cannot be looked at".to_owned()),
            Options::Read(statements) if statements.is_empty() && !change.given => {
                Err("the daemon's configuration file does not have this plugin".to_owned())
            }
            Options::Read(statements) => self.may_configure(statements),
        }
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

    fn rules(&self, asker: Asker) -> &Rules {
        match asker {
            Asker::Administrator => &self.local,
            Asker::Group => &self.group,
            Asker::Message => &self.message,
        }
    }

    /// Whether a plugin may be loaded with this configuration. The error is a reason in words, without any value of
    /// an option.
    pub fn check(&self, asker: Asker, plugin: &str, options: &[Block]) -> Result<(), String> {
        self.rules(asker).may_load(plugin)?;
        match self.rules(asker).all {
            true => Ok(()),
            false => self.rules(asker).may_configure(options),
        }
    }

    /// Whether what somebody asks the daemon for may be done. The error is a reason in words, part of a sentence,
    /// without any value of an option.
    pub fn permits(&self, change: &Change) -> Result<(), String> {
        match change.by.asker() {
            Some(asker) => self.rules(asker).permits(change),
            None => Err("this user may list plugins, but not change them".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::json;

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

    fn change(by: Requester, plugin: &str) -> Change {
        Change {
            verb: Verb::Load,
            plugin: plugin.to_owned(),
            by,
            given: false,
            tuned: false,
            options: Options::Unread,
        }
    }

    const GROUP: Requester = Requester::Group(1000);

    fn block(plugin: &str) -> Options {
        Options::Read(vec![Block::option("Plugin", [Value::from(plugin)])])
    }

    #[test]
    fn without_a_policy_a_group_uses_what_is_in_the_daemons_file_and_runs_no_code() {
        let policy = Policy::default();
        let ok = change(GROUP, "cpu");
        assert_eq!(policy.permits(&ok), Ok(()));
        let read = |options| Change {
            options,
            ..ok.clone()
        };
        assert_eq!(policy.permits(&read(block("cpu"))), Ok(()));
        for (wrong, why) in [
            (change(GROUP, "exec"), "does not name the plugin exec"),
            (change(GROUP, "PYTHON"), "does not name the plugin python"),
            (change(GROUP, "monitor"), "does not name the plugin monitor"),
            (
                Change {
                    given: true,
                    ..ok.clone()
                },
                "allow to give a configuration",
            ),
            (
                Change {
                    tuned: true,
                    ..ok.clone()
                },
                "no option but",
            ),
            (read(Options::Read(vec![])), "does not have this plugin"),
            (read(Options::Strange), "cannot be looked at"),
            (read(block("exec")), "does not name the plugin exec"),
            (change(Requester::Other(1000), "cpu"), "may list plugins"),
        ] {
            let error = policy.permits(&wrong).unwrap_err();
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
        for by in [Requester::Owner(0), Requester::Plugin("monitor".into())] {
            let all = Change {
                given: true,
                tuned: true,
                options: Options::Strange,
                ..change(by, "exec")
            };
            assert_eq!(policy.permits(&all), Ok(()));
        }
    }

    #[test]
    fn a_policy_says_who_may_give_a_configuration() {
        let policy =
            policy(r#"{"group":{"plugins":["CPU","aggregation"],"configuration":true}}"#).unwrap();
        let given = |plugin: &str, statements| Change {
            given: true,
            tuned: true,
            options: Options::Read(statements),
            ..change(GROUP, plugin)
        };
        assert_eq!(policy.permits(&given("cpu", vec![])), Ok(()));
        assert_eq!(policy.permits(&given("Cpu", vec![])), Ok(()));
        let error = policy.permits(&given("df", vec![])).unwrap_err();
        assert_eq!(error, "the policy does not allow this plugin");
        // What a plugin is to look at is not what is loaded.
        let inner = Block::option("Aggregation", []).with("Plugin", "df");
        let outer = Block::option("Plugin", [Value::from("aggregation")]).with_block(inner);
        assert_eq!(policy.permits(&given("aggregation", vec![outer])), Ok(()));
        let foreign = Block::option("LoadPlugin", [Value::from("df")]);
        assert!(policy.permits(&given("cpu", vec![foreign])).is_err());
        let nameless = Block::option("Plugin", [Value::from(1.0)]);
        assert!(policy.permits(&given("cpu", vec![nameless])).is_err());
        let include = Block::option("Include", [Value::from("/x")]);
        assert!(policy.permits(&given("cpu", vec![include])).is_err());
    }

    #[test]
    fn where_nobody_can_decide_only_who_can_mend_it_goes_on() {
        assert_eq!(Requester::Owner(0).mends(), Ok(()));
        for by in [
            GROUP,
            Requester::Other(1),
            Requester::Plugin("monitor".into()),
        ] {
            assert!(by.mends().is_err(), "{by:?}");
        }
    }
}
