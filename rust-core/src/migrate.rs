//! Moves a site of lua-collectd-monitor over: says what would behave differently, and what to write instead.
//!
//! The configuration comes as the daemon itself has parsed it (`collectd -j`), so there is one grammar.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;
use serde::Deserialize;

use crate::settings::{Block, Settings, Value};

/// A statement of collectd.conf.
#[derive(Clone, Debug, Deserialize)]
pub struct Item {
    /// The key.
    pub key: String,
    /// What stands behind it.
    #[serde(default)]
    pub values: Vec<serde_json::Value>,
    /// The statements inside, for a block.
    #[serde(default)]
    pub children: Vec<Item>,
    /// Where it stands.
    pub file: Option<String>,
    /// Which line of that.
    pub line: Option<u32>,
}

impl Item {
    fn is(&self, key: &str) -> bool {
        self.key.eq_ignore_ascii_case(key)
    }

    /// The first value, if that is text.
    fn name(&self) -> Option<&str> {
        self.values.first()?.as_str()
    }

    fn place(&self) -> String {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => format!("{file}:{line}"),
            _ => self.key.clone(),
        }
    }
}

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Something has to be done, or would break.
    Attention,
    /// Good to know.
    Difference,
}

/// Something that behaves differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How much it matters.
    pub weight: Weight,
    /// The file and line, or the key, that it is about.
    pub place: String,
    /// What it is.
    pub what: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = match self.weight {
            Weight::Attention => "attention",
            Weight::Difference => "note",
        };
        write!(f, "{}: {weight}: {}", self.place, self.what)
    }
}

/// What there is to say about a site.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they were found.
    pub notes: Vec<Note>,
    /// What goes: places, each with what stands there.
    pub remove: Vec<(String, String)>,
    /// What comes instead.
    pub write: String,
}

impl Report {
    /// Whether somebody has to do something beside what is to be removed and written.
    pub fn needs_attention(&self) -> bool {
        let mut notes = self.notes.iter();
        notes.any(|note| note.weight == Weight::Attention)
    }

    fn attention(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.note(Weight::Attention, place, what);
    }

    fn difference(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.note(Weight::Difference, place, what);
    }

    fn note(&mut self, weight: Weight, place: impl Into<String>, what: impl Into<String>) {
        self.notes.push(Note {
            weight,
            place: place.into(),
            what: what.into(),
        });
    }
}

/// The two halves of lua-collectd-monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Remote,
    Local,
}

/// Which half a script or a module is, by its name. Versions before 0.1 had other ones.
fn part(name: &str) -> Option<Part> {
    match name.strip_suffix(".lua").unwrap_or(name) {
        name if name.ends_with("monitor/remote") || name.ends_with("monitor-remote") => {
            Some(Part::Remote)
        }
        name if name.ends_with("monitor/local") || name.ends_with("monitor-local") => {
            Some(Part::Local)
        }
        _ => None,
    }
}

/// What lua-collectd-monitor knows in its block.
const SETTINGS: [&str; 13] = [
    "MonitorConfigPath",
    "Host",
    "User",
    "Password",
    "Secure",
    "CleanSession",
    "QoS",
    "CommandTopic",
    "CommandResultTopic",
    "ReconnectInterval",
    "LogDevice",
    "LogLevel",
    "LocalMonitorConfigDir",
];

/// What of the daemon's environment commands have. The shell itself sets some more.
const ENVIRONMENT: [&str; 14] = [
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PWD",
    "OLDPWD", "IFS", "PPID", "OPTARG",
];

/// What rules in the sandbox do not have.
const NOT_IN_SANDBOX: &str = r"\b(require|dofile|loadfile|os\.(execute|exit|remove|rename|tmpname|getenv)|io\.\w+|package\.\w+|debug\.\w+)\b";

/// Looks at a whole configuration and the files that it names. None if lua-collectd-monitor is not in it.
pub fn check(tree: &[Item]) -> Option<Report> {
    let mut report = Report::default();
    let mut site = Site::default();
    let lua: Vec<_> = tree
        .iter()
        .filter(|item| {
            item.is("Plugin") && item.name().is_some_and(|n| n.eq_ignore_ascii_case("lua"))
        })
        .collect();
    let mut others = false;
    for block in &lua {
        others |= site.read(block);
    }
    if site.scripts.is_empty() && site.modules.is_empty() {
        return None;
    }
    if let Some(other) = tree
        .iter()
        .find(|item| item.is("Plugin") && item.name() == Some("monitor"))
    {
        report.attention(
            other.place(),
            "there is a block for the plugin monitor already",
        );
    }
    site.what_goes(tree, &lua, others, &mut report);
    let block = site.block(&mut report);
    report.write = write(&block, &mut report.notes);
    settings(&block, &mut report);
    Some(report)
}

#[derive(Default)]
struct Site<'a> {
    scripts: BTreeMap<Part, &'a Item>,
    modules: BTreeMap<Part, &'a Item>,
}

impl<'a> Site<'a> {
    /// Takes what is ours of a block. Says whether there is anything else in it.
    fn read(&mut self, block: &'a Item) -> bool {
        let mut others = false;
        for item in &block.children {
            let part = item.name().and_then(part);
            match part {
                Some(part) if item.is("Script") => drop(self.scripts.insert(part, item)),
                Some(part) if item.is("Module") => drop(self.modules.insert(part, item)),
                _ => others |= item.is("Script") || item.is("Module"),
            }
        }
        others
    }

    fn what_goes(&self, tree: &[Item], lua: &[&Item], others: bool, report: &mut Report) {
        if others {
            for item in self.scripts.values().chain(self.modules.values()) {
                let name = item.name().unwrap_or_default();
                let what = format!("{} \"{name}\"", item.key);
                report.remove.push((item.place(), what));
            }
            let place = lua.first().map(|item| item.place()).unwrap_or_default();
            report.difference(place, "the plugin lua stays for its other scripts");
            return;
        }
        for item in tree {
            let is_lua = item
                .name()
                .is_some_and(|name| name.eq_ignore_ascii_case("lua"));
            if is_lua && (item.is("LoadPlugin") || item.is("Plugin")) {
                report
                    .remove
                    .push((item.place(), format!("{} lua", item.key)));
            }
        }
    }

    /// The block of the plugin monitor.
    fn block(&self, report: &mut Report) -> Block {
        let mut block = Block::option("Plugin", [Value::from("monitor")]);
        let mut taken: BTreeMap<&str, (&Item, Value)> = BTreeMap::new();
        for (part, module) in &self.modules {
            if !self.scripts.contains_key(part) {
                report.attention(
                    module.place(),
                    "its script is not loaded, so this block has had no effect; it is left out",
                );
                continue;
            }
            for item in &module.children {
                let Some(name) = SETTINGS.iter().find(|name| item.is(name)) else {
                    let what = format!("{} has had no effect, and is left out", item.key);
                    report.difference(item.place(), what);
                    continue;
                };
                let Some(value) = value(item) else {
                    report.attention(item.place(), format!("{name} must have one value"));
                    continue;
                };
                if let Some((_, earlier)) = taken.get(name) {
                    if *earlier != value {
                        let what = match *name {
                            "MonitorConfigPath" => {
                                "the plugin monitor has one file for both parts: merge this one into the other"
                                    .to_owned()
                            }
                            _ => format!("{name} is another one in the block of the other part, which counts now"),
                        };
                        report.attention(item.place(), what);
                    }
                    continue;
                }
                taken.insert(name, (item, value));
            }
        }
        for (part, script) in &self.scripts {
            if !self.modules.contains_key(part) {
                report.attention(script.place(), "there is no <Module> block for this script");
            }
        }
        for name in SETTINGS {
            if let Some((_, value)) = taken.remove(name) {
                block = block.with(name, value);
            }
        }
        block
    }
}

fn value(item: &Item) -> Option<Value> {
    match item.values.as_slice() {
        [serde_json::Value::String(text)] => Some(Value::Text(text.clone())),
        [serde_json::Value::Bool(flag)] => Some(Value::Flag(*flag)),
        [serde_json::Value::Number(number)] => number.as_f64().map(Value::Number),
        _ => None,
    }
}

/// The block as it stands in collectd.conf. A password is not repeated.
fn write(block: &Block, notes: &mut Vec<Note>) -> String {
    let mut text = "LoadPlugin monitor\n<Plugin monitor>\n".to_owned();
    for option in &block.children {
        let value = match option.values.first() {
            Some(Value::Text(_)) if option.is("Password") => {
                notes.push(Note {
                    weight: Weight::Attention,
                    place: "Password".to_owned(),
                    what: "the block below does not show it: copy it, or put it into a file and name that in \
                           PasswordFile"
                        .to_owned(),
                });
                text.push_str("  #Password \"...\"\n");
                continue;
            }
            Some(Value::Text(value)) => {
                format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
            }
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Flag(flag)) => flag.to_string(),
            None => continue,
        };
        text.push_str(&format!("  {} {value}\n", option.key));
    }
    text.push_str("</Plugin>\n");
    text
}

/// What the settings mean now.
fn settings(block: &Block, report: &mut Report) {
    if let Err(problems) = Settings::read(block) {
        for problem in problems.iter() {
            report.attention(
                problem.place.clone(),
                format!("the plugin refuses it: {}", problem.what),
            );
        }
    }
    let text = |name: &str| {
        let option = block.children.iter().find(|option| option.is(name))?;
        match option.values.first()? {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    };
    let path = text("MonitorConfigPath");
    let file = path.as_deref().and_then(|path| fs::read(path).ok());
    let json: serde_json::Value = file
        .and_then(|file| serde_json::from_slice(&file).ok())
        .unwrap_or_default();
    let json_path = path.unwrap_or_default();
    let is_set = |name: &str| json.get(name).is_some() || block.children.iter().any(|o| o.is(name));
    let is_true = |name: &str| {
        let in_block = block.children.iter().find(|option| option.is(name));
        match json.get(name) {
            Some(value) => value.as_bool() == Some(true),
            None => in_block.is_some_and(|o| o.values.first() == Some(&Value::Flag(true))),
        }
    };
    if is_set("Host") {
        remote(&is_set, &is_true, report);
    }
    if !is_set("LogDevice") {
        report.difference(
            "LogDevice",
            "messages go to the daemon's own log now; syslog is still to be had",
        );
    }
    if let Some(services) = json
        .get("Services")
        .and_then(|services| services.as_object())
    {
        for (service, members) in services {
            commands(&json_path, service, members, report);
        }
    }
    let directory = json
        .get("LocalMonitorConfigDir")
        .and_then(|value| value.as_str());
    if let Some(directory) = directory
        .map(str::to_owned)
        .or_else(|| text("LocalMonitorConfigDir"))
    {
        rules(Path::new(&directory), report);
    }
}

fn remote(is_set: &dyn Fn(&str) -> bool, is_true: &dyn Fn(&str) -> bool, report: &mut Report) {
    if is_true("Secure") && !is_set("CAFile") {
        report.attention(
            "Secure",
            "the broker's certificate is verified now: it must be for the name in Host and by an authority that \
             the system trusts, or by one in CAFile",
        );
    }
    if !is_set("ReconnectInterval") {
        report.difference(
            "ReconnectInterval",
            "without it, a lost connection is made again now",
        );
    }
    if !is_true("CleanSession") {
        report.difference(
            "CleanSession",
            "the session has a name that stays the same, collectd-monitor-HOST: the broker keeps commands for a \
             host that is away. Sessions that random names have left behind can be deleted there",
        );
    }
    report.difference(
        "CommandTopic",
        "a command that comes again with the same task_id and timestamp is not run again but answered with its \
         result; without a timestamp, identical messages within five minutes count as the same",
    );
    report.difference(
        "MaxAge",
        "commands that were sent more than 300 s ago, by the clocks of sender and host, are refused (0x3008, \
         0x3009); MaxAge 0 has them run",
    );
    report.difference(
        "CommandTopic",
        "a new collectd.conf over MQTT (send-config) is answered with 0x1000: not implemented",
    );
}

/// What is said of each command.
fn commands(path: &str, service: &str, members: &serde_json::Value, report: &mut Report) {
    if service == "collectd" {
        report.attention(
            format!("{path}: Services.collectd"),
            "a new collectd.conf over MQTT (send-config) is answered with 0x1000: not implemented",
        );
    }
    let lists = ["commands", "Commands"].map(|key| members.get(key).and_then(|v| v.as_object()));
    for (name, line) in lists.into_iter().flatten().flatten() {
        let Some(line) = line.as_str() else {
            continue;
        };
        let place = format!("{path}: Services.{service}: {name}");
        let unknown = variables(line);
        if !unknown.is_empty() {
            let what = format!(
                "its environment does not have {} any more; give it with \"env\"",
                unknown.join(", ")
            );
            report.attention(place.as_str(), what);
        }
        if line.contains("collectd")
            && ["restart", "stop", "kill"]
                .iter()
                .any(|word| line.contains(word))
        {
            report.attention(
                place.as_str(),
                "a command that ends the daemon that runs it is reported as interrupted (0x3002)",
            );
        }
        let line = line.trim_end();
        if line.ends_with('&') && !line.ends_with("&&") {
            report.difference(
                place,
                "the result is sent when the shell ends, not when what it has started in the background does",
            );
        }
    }
}

/// Variables of the environment that a line for the shell uses, and does not have.
fn variables(line: &str) -> Vec<String> {
    let Ok(pattern) = Regex::new(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)") else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for capture in pattern.captures_iter(&without_single_quotes(line)) {
        let name = &capture[1];
        let own = [
            format!("{name}="),
            format!("for {name} "),
            format!("read {name}"),
        ];
        let known = ENVIRONMENT.contains(&name)
            || own.iter().any(|own| line.contains(own.as_str()))
            || names.iter().any(|known| known == name);
        if !known {
            names.push(name.to_owned());
        }
    }
    names
}

/// What the shell does not expand is left out.
fn without_single_quotes(line: &str) -> String {
    let mut kept = String::new();
    let (mut single, mut double, mut escaped) = (false, false, false);
    for c in line.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if !single => escaped = true,
            '\'' if !double => single = !single,
            '"' if !single => double = !double,
            c if !single => kept.push(c),
            _ => {}
        }
    }
    kept
}

/// What is said of the rules.
fn rules(directory: &Path, report: &mut Report) {
    let files = match rule_files(directory) {
        Ok(files) => files,
        Err(error) => {
            report.attention(
                directory.display().to_string(),
                format!("cannot be read: {error}"),
            );
            return;
        }
    };
    if files.is_empty() {
        report.attention(directory.display().to_string(), "there are no rules in it");
    }
    let Ok(pattern) = Regex::new(NOT_IN_SANDBOX) else {
        return;
    };
    for file in files {
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) => {
                report.attention(
                    file.display().to_string(),
                    format!("cannot be read: {error}"),
                );
                continue;
            }
        };
        for (number, line) in text.lines().enumerate() {
            let code = line.split("--").next().unwrap_or_default();
            for found in pattern.find_iter(code) {
                report.attention(
                    format!("{}:{}", file.display(), number + 1),
                    format!(
                        "{} is not there in the sandbox, which is on by default; see Sandbox in collectd.conf(5)",
                        found.as_str()
                    ),
                );
            }
        }
    }
}

fn rule_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "lua") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Site {
        dir: tempfile::TempDir,
    }

    impl Site {
        fn new(config: &str, rule: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("config.json"), config).unwrap();
            fs::create_dir(dir.path().join("local")).unwrap();
            fs::write(dir.path().join("local/example.lua"), rule).unwrap();
            Self { dir }
        }

        fn path(&self, name: &str) -> String {
            self.dir.path().join(name).display().to_string()
        }

        /// The example of lua-collectd-monitor, as the daemon prints it, with more in one of the modules.
        fn tree(&self, more: &serde_json::Value) -> Vec<Item> {
            let config = self.path("config.json");
            let mut remote =
                json!([{ "key": "MonitorConfigPath", "values": [config], "file": "f", "line": 8 }]);
            let more = more.as_array().unwrap().clone();
            remote.as_array_mut().unwrap().extend(more);
            serde_json::from_value(json!([
                { "key": "LoadPlugin", "values": ["cpu"], "file": "f", "line": 1 },
                { "key": "LoadPlugin", "values": ["lua"], "file": "f", "line": 2,
                  "children": [{ "key": "Globals", "values": [true] }] },
                { "key": "Plugin", "values": ["lua"], "file": "f", "line": 5, "children": [
                    { "key": "BasePath", "values": ["/usr/local/share/lua/5.1"] },
                    { "key": "Script", "values": ["collectd/monitor/remote.lua"], "file": "f", "line": 6 },
                    { "key": "Module", "values": ["collectd/monitor/remote.lua"], "file": "f", "line": 7,
                      "children": remote },
                    { "key": "Script", "values": ["collectd/monitor/local.lua"], "file": "f", "line": 10 },
                    { "key": "Module", "values": ["collectd/monitor/local"], "file": "f", "line": 11,
                      "children": [
                        { "key": "MonitorConfigPath", "values": [self.path("config.json")] },
                        { "key": "LocalMonitorConfigDir", "values": [self.path("local")] }] }] }
            ]))
            .unwrap()
        }

        fn check(&self) -> Report {
            check(&self.tree(&json!([]))).unwrap()
        }
    }

    const CONFIG: &str = r#"{ "Host": "localhost:1883", "User": "u", "Password": "hunter2", "Secure": false,
        "CleanSession": false, "ReconnectInterval": 5, "QoS": 2, "CommandTopic": "c", "CommandResultTopic": "r",
        "Services": { "hello": { "commands": { "exec": "/bin/echo \"Hello World!\"" } } } }"#;
    const RULE: &str = "-- require nothing\nreturn function(metric) return nil end, nil\n";

    fn attention(report: &Report) -> Vec<String> {
        let notes = report.notes.iter();
        notes
            .filter(|note| note.weight == Weight::Attention)
            .map(Note::to_string)
            .collect()
    }

    #[test]
    fn the_example_of_the_original_needs_nothing_but_the_new_block() {
        let site = Site::new(CONFIG, RULE);
        let report = site.check();
        assert_eq!(attention(&report), Vec::<String>::new());
        assert!(!report.needs_attention());
        let expected = format!(
            "LoadPlugin monitor\n<Plugin monitor>\n  MonitorConfigPath \"{}\"\n  LocalMonitorConfigDir \"{}\"\n</Plugin>\n",
            site.path("config.json"),
            site.path("local")
        );
        assert_eq!(report.write, expected);
        let removed: Vec<_> = report
            .remove
            .iter()
            .map(|(place, _)| place.as_str())
            .collect();
        assert_eq!(removed, ["f:2", "f:5"]);
        assert!(report.notes.iter().any(|note| note.place == "MaxAge"));
    }

    #[test]
    fn what_would_break_is_named_with_its_place() {
        let config = CONFIG
            .replace("\"Secure\": false", "\"Secure\": true")
            .replace(
                "\"commands\": { ",
                "\"commands\": { \"a\": \"echo $FOO '$BAR' $HOME; X=1; echo $X\", \"b\": \"systemctl restart collectd\", ",
            )
            .replace("\"QoS\": 2", "\"QoS\": 7");
        let rule = "local x = 1\nos.execute('reboot') -- io.popen\nreturn nil, nil\n";
        let site = Site::new(&config, rule);
        let notes = attention(&site.check());
        let has = |start: &str, part: &str| {
            let found = notes
                .iter()
                .any(|note| note.starts_with(start) && note.contains(part));
            assert!(found, "{start}, {part}: {notes:#?}");
        };
        let json = site.path("config.json");
        has("Secure: ", "is verified");
        has(
            &format!("{json}: Services.hello: a: "),
            "does not have FOO any more",
        );
        has(&format!("{json}: Services.hello: b: "), "0x3002");
        has(&format!("{json}:"), "must be 0, 1 or 2");
        has(
            &format!("{}:2: ", site.path("local/example.lua")),
            "os.execute",
        );
        assert_eq!(notes.len(), 5, "{notes:#?}");
    }

    #[test]
    fn a_password_is_not_shown() {
        let site = Site::new("{}", RULE);
        let report = check(&site.tree(&json!([
            { "key": "Host", "values": ["h"] }, { "key": "CommandTopic", "values": ["c"] },
            { "key": "User", "values": ["u"] }, { "key": "Password", "values": ["hunter2"] },
            { "key": "Nonsense", "values": [1], "file": "f", "line": 9 }
        ])));
        let report = report.unwrap();
        assert!(!format!("{report:?}").contains("hunter2"));
        assert!(report.needs_attention());
        assert!(
            report
                .write
                .contains("  Host \"h\"\n  User \"u\"\n  #Password"),
            "{}",
            report.write
        );
        assert!(report
            .notes
            .iter()
            .any(|n| n.place == "f:9" && n.what.contains("Nonsense")));
    }

    #[test]
    fn modules_without_scripts_and_other_scripts_are_seen() {
        let site = Site::new(CONFIG, RULE);
        let mut tree = site.tree(&json!([]));
        tree[2].children.remove(3);
        tree[2].children.push(
            serde_json::from_value(json!({ "key": "Script", "values": ["mine.lua"] })).unwrap(),
        );
        let report = check(&tree).unwrap();
        assert_eq!(attention(&report).len(), 1, "{:?}", report.notes);
        assert!(attention(&report)[0].starts_with("f:11: attention: its script is not loaded"));
        let removed: Vec<_> = report
            .remove
            .iter()
            .map(|(place, _)| place.as_str())
            .collect();
        assert_eq!(removed, ["f:6", "f:7", "f:11"]);
        assert!(check(&tree[..2]).is_none());
    }

    #[test]
    fn two_files_must_be_merged() {
        let site = Site::new(CONFIG, RULE);
        let mut tree = site.tree(&json!([]));
        tree[2].children[4].children[0].values = vec!["/other.json".into()];
        let report = check(&tree).unwrap();
        assert!(
            attention(&report)[0].contains("merge"),
            "{:?}",
            report.notes
        );
    }
}
