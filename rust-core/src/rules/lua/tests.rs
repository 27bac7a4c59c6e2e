use std::fs;
use std::time::{Duration, Instant, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::daemon::{DataSource, DataValue, Severity};
use crate::fake::FakeDaemon;
use crate::logging::{Device, Logger, Threshold};
use crate::rules::task::Action;
use crate::rules::Origin;
use crate::settings::Argument;

/// A state with what it logs.
struct Fixture {
    daemon: Arc<FakeDaemon>,
    directory: tempfile::TempDir,
    limits: Limits,
    _entered: crate::logging::Entered,
}

impl Fixture {
    fn new() -> Self {
        let daemon = Arc::new(FakeDaemon::new("node1"));
        let logger = Logger::new(
            Arc::clone(&daemon) as Arc<dyn Daemon>,
            Device::Collectd,
            Threshold::Debug,
        );
        Self {
            daemon,
            directory: tempfile::tempdir().unwrap(),
            limits: Limits::default(),
            _entered: logger.enter(),
        }
    }

    fn environment(&self) -> Environment {
        Environment {
            daemon: Arc::clone(&self.daemon) as Arc<dyn Daemon>,
            directory: self.directory.path().to_owned(),
            limits: self.limits,
            strict: true,
        }
    }

    fn load(&self, files: &[(&str, &str)]) -> (LuaState, Vec<Broken>) {
        LuaState::load(&sources(files), &self.environment(), &Plain::Nil).unwrap()
    }

    /// The state of one file that is in order.
    #[track_caller]
    fn file(&self, text: &str) -> LuaState {
        let (state, broken) = self.load(&[("rules", text)]);
        assert_eq!(broken, []);
        state
    }

    /// What an expression is worth, in a text.
    #[track_caller]
    fn value(&self, expression: &str) -> String {
        self.run(&format!("return tostring({expression})"))
    }

    /// What a piece of code returns.
    #[track_caller]
    fn run(&self, code: &str) -> String {
        let mut state = self.file(&format!(
            "local function run() {code} end\n\
             return function() return {{ service = 's', command = run() }} end"
        ));
        match state.call(&[0], &metric(1.0)).pop() {
            Some((0, Ok(task))) => match task.action {
                Action::Command { command, .. } => command,
                other => panic!("{other:?}"),
            },
            other => panic!("{code}: {other:?}"),
        }
    }

    /// Why a piece of code fails.
    #[track_caller]
    fn fault(&self, code: &str) -> Fault {
        let mut state = self.file(&format!("return function(t) {code} end"));
        match state.call(&[0], &metric(1.0)).pop() {
            Some((0, Err(fault))) => fault,
            other => panic!("{code}: {other:?}"),
        }
    }
}

fn sources(files: &[(&str, &str)]) -> Vec<Source> {
    let source = |(name, text): &(&str, &str)| Source {
        name: (*name).into(),
        text: text.as_bytes().into(),
    };
    files.iter().map(source).collect()
}

fn series(values: usize) -> Arc<Series> {
    let source = |index| DataSource {
        name: format!("ds{index}"),
        type_: SourceType::Gauge,
    };
    Arc::new(Series {
        host: "node1".into(),
        plugin: "memory".into(),
        plugin_instance: String::new(),
        type_: "memory".into(),
        type_instance: "free".into(),
        sources: (0..values).map(source).collect(),
        origin: Origin::default(),
    })
}

fn metric_of(values: &[DataValue]) -> Subject {
    Subject::Metric(Arc::new(Sample {
        series: series(values.len()),
        time: UNIX_EPOCH + Duration::from_millis(1_500_000_000_500),
        interval: Duration::from_secs(10),
        values: values.to_vec(),
    }))
}

fn metric(value: f64) -> Subject {
    metric_of(&[DataValue::Gauge(value)])
}

fn notification(message: &str) -> Subject {
    Subject::Notification(Arc::new(Notice {
        notification: Notification {
            severity: Severity::Warning,
            time: UNIX_EPOCH + Duration::from_secs(1_500_000_000),
            message: message.into(),
            host: "node1".into(),
            plugin: "threshold".into(),
            plugin_instance: "p".into(),
            type_: "t".into(),
            type_instance: "i".into(),
        },
        origin: Origin::default(),
    }))
}

#[track_caller]
fn commands(answers: Vec<Answer<Function>>) -> Vec<(usize, String)> {
    let command = |(id, task): Answer<Function>| match task {
        Ok(Task {
            action: Action::Command { command, .. },
            ..
        }) => (id, command),
        other => panic!("{other:?}"),
    };
    answers.into_iter().map(command).collect()
}

/// The parameter `text` of the only task that was asked for: longer than a name may be.
fn said(answers: Vec<Answer<Function>>) -> String {
    let [(
        _,
        Ok(Task {
            action: Action::Command { params, .. },
            ..
        }),
    )] = &answers[..]
    else {
        panic!("{answers:?}");
    };
    match &params["text"] {
        Argument::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    }
}

fn names(state: &LuaState) -> Vec<String> {
    state.handlers().iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_returns_functions_tables_of_functions_or_nothing() {
    let f = Fixture::new();
    let (state, broken) = f.load(&[
        ("a", "return function() end, function() end"),
        ("b", "return nil, { two = function() end, one = function() end }"),
        ("c", "return { function() end, x = function() end }"),
        ("d", "-- nothing"),
        ("e", "return { handler = function() end, match = { plugin = 'cpu', type = { 'a', 'b*' }, foreign = true } }"),
        ("f", "return { low = { match = { plugin = 'df' }, handler = function() end } }"),
        ("g", "return { handler = function() end }"),
    ]);
    assert_eq!(broken, []);
    assert_eq!(
        names(&state),
        [
            "a::metric",
            "a::notification",
            "b::notification::one",
            "b::notification::two",
            "c::metric::1",
            "c::metric::x",
            "e::metric",
            "f::metric::low",
            "g::metric",
        ]
    );
    let wanted = state.handlers()[6].matches.as_ref().unwrap();
    assert_eq!(wanted.fields["plugin"], ["cpu"]);
    assert_eq!(wanted.fields["type"], ["a", "b*"]);
    assert_eq!(wanted.foreign, Some(true));
}

#[test]
fn what_a_file_must_not_return_is_told_with_its_place() {
    let f = Fixture::new();
    for (text, why) in [
        ("return 5", "rules::metric: is a integer"),
        (
            "return nil, { x = 5 }",
            "rules::notification::x: is a integer",
        ),
        ("return { x = {} }", "rules::metric::x: is a table"),
        (
            "return { match = { plugn = 'x' }, handler = function() end }",
            "rules::metric: match: plugn is not a field",
        ),
        (
            "return { match = { plugin = 5 }, handler = function() end }",
            "match.plugin: is no text",
        ),
        (
            "return { match = { foreign = 1 }, handler = function() end }",
            "match.foreign: is neither",
        ),
        (
            "return { x = { matches = {}, handler = function() end } }",
            "beside match and handler there is matches",
        ),
        ("\n\nx = = 1", "rules.lua:3:"),
        ("\nerror('no')", "rules.lua:2: no"),
        ("\nlocal x = nil\nx.y = 1", "rules.lua:3: attempt to index"),
        ("while true do end", "gone on for too long"),
        ("\u{1b}Lua", "attempt to load a binary chunk"),
    ] {
        let (state, broken) = f.load(&[("rules", text), ("other", "return function() end")]);
        assert_eq!(names(&state), ["other::metric"], "{text}");
        assert_eq!(broken.len(), 1, "{text}");
        let told = broken[0].why.replace("a number", "a integer");
        assert!(told.contains(why), "{text}: {told}");
    }
}

#[test]
fn a_metric_has_the_fields_of_the_original() {
    let f = Fixture::new();
    let mut state = f.file(
        "return function(t)
           assert(t.host == 'node1' and t.plugin == 'memory' and t.plugin_instance == '')
           assert(t.type == 'memory' and t.type_instance == 'free')
           assert(t.time == 1500000000.5 and t.interval == 10)
           assert(#t.values == 4 and t.values[0] == nil)
           assert(t.values[1] == 1.5 and t.values[2] == -3 and t.values[3] == 7)
           assert(t.values[4] > 1.8e19)
           assert(t.dsnames[0] == 'ds0' and t.dsnames[3] == 'ds3' and t.dsnames[4] == nil)
           assert(t.dstypes[0] == 'gauge' and t.dstypes[3] == 'gauge')
           return { service = 's', command = 'fine' }
         end",
    );
    let subject = metric_of(&[
        DataValue::Gauge(1.5),
        DataValue::Derive(-3),
        DataValue::Counter(7),
        DataValue::Absolute(u64::MAX),
    ]);
    assert_eq!(commands(state.call(&[0], &subject)), [(0, "fine".into())]);
}

#[test]
fn a_notification_has_the_fields_of_the_original() {
    let f = Fixture::new();
    let mut state = f.file(
        "return nil, function(t)
           assert(t.host == 'node1' and t.plugin == 'threshold' and t.plugin_instance == 'p')
           assert(t.type == 't' and t.type_instance == 'i' and t.time == 1500000000)
           assert(t.severity == NOTIF_WARNING and t.message == 'low')
           assert(NOTIF_FAILURE == 1 and NOTIF_WARNING == 2 and NOTIF_OKAY == 4)
           t.message = 'changed'
           return { service = 's', command = 'fine' }
         end",
    );
    for _ in 0..2 {
        let answers = state.call(&[0], &notification("low"));
        assert_eq!(commands(answers), [(0, "fine".into())]);
    }
}

#[test]
fn files_share_a_state_in_their_order() {
    let f = Fixture::new();
    let (mut state, broken) = f.load(&[
        ("a", "shared = { count = 0 } function bump() shared.count = shared.count + 1 end"),
        ("b", "return function() bump() return { service = 's', command = tostring(shared.count) } end"),
    ]);
    assert_eq!(broken, []);
    state.call(&[0], &metric(1.0));
    let answers = state.call(&[0], &metric(1.0));
    assert_eq!(commands(answers), [(0, "2".into())]);
}

#[test]
fn a_handler_that_changes_its_table_changes_no_other_ones() {
    let f = Fixture::new();
    let mut state = f.file(
        "local function show(t)
           return { service = 's', command = t.plugin .. ' ' .. #t.values .. ' ' .. t.values[1] .. ' ' .. t.values[2] }
         end
         return { function(t) t.values[2] = 9 end, function(t) t.plugin = 'x' return show(t) end,
                  function(t) t.values = {1} end, show, function(t) t.values[1] = 0 end, show }",
    );
    let subject = metric_of(&[DataValue::Gauge(f64::NAN), DataValue::Gauge(2.0)]);
    let answers = commands(state.call(&[0, 1, 2, 3, 4, 5], &subject));
    let told: Vec<_> = answers
        .iter()
        .map(|(id, text)| (*id, text.replace("-nan", "nan")))
        .collect();
    let told: Vec<_> = told.iter().map(|(id, text)| (*id, text.as_str())).collect();
    assert_eq!(
        told,
        [
            (1, "x 2 nan 2"),
            (3, "memory 2 nan 2"),
            (5, "memory 2 nan 2")
        ]
    );
}

#[test]
fn a_handler_that_fails_leaves_the_others_alone() {
    let f = Fixture::new();
    let mut state = f.file(
        "return { a = function(t) return t.nothing.at.all end, b = function() return { service = 's', command = 'c' } end,
                  c = function() error({}) end, d = function() return 5 end, e = function() return {} end,
                  f = function() error('plain', 0) end }",
    );
    let answers = state.call(&[0, 1, 2, 3, 4, 5], &metric(1.0));
    let told: Vec<_> = answers
        .iter()
        .map(|(id, answer)| match answer {
            Ok(_) => (*id, String::new()),
            Err(fault) => (*id, fault.to_string()),
        })
        .collect();
    assert_eq!(told.len(), 6, "{told:?}");
    assert!(
        told[0].1.contains("rules.lua:1: attempt to index"),
        "{told:?}"
    );
    assert_eq!(told[1], (1, String::new()));
    assert_eq!(told[2].1, "a table");
    assert!(told[3].1.contains("the task: must be a table or nil, not"));
    assert!(told[4]
        .1
        .contains("the task: has neither service and command"));
    assert_eq!(told[5].1, "plain");
}

#[test]
fn a_task_may_say_more() {
    let f = Fixture::new();
    let mut state = f.file(
        "return function(t) return { service = 's', command = 'c', params = { a = 'x', b = 3.0, c = true },
           ['for'] = '30s', times = '3/5', clear = function(t) return t.values[1] > 5 end, cooldown = '10m',
           max_per_hour = 4, verify = { within = 60, check = function() return false end },
           escalate = { { service = 's', command = 'd' }, { reload_plugin = 'p' } }, dry_run = true, odd = 1 } end",
    );
    let (_, task) = state.call(&[0], &metric(1.0)).pop().unwrap();
    let task = task.unwrap();
    assert_eq!(task.action.to_string(), "s c a=\"x\" b=3 c=true");
    assert_eq!(task.hold, Duration::from_secs(30));
    assert_eq!(task.times.map(|times| (times.hits, times.of)), Some((3, 5)));
    assert_eq!(task.cooldown, Duration::from_secs(600));
    assert_eq!((task.max_per_hour, task.dry_run), (Some(4), true));
    let steps: Vec<_> = task.escalate.iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["s d", "reload plugin p"]);
    let clear = task.clear.unwrap();
    assert_eq!(state.ask(&clear, &metric(6.0)), Ok(true));
    assert_eq!(state.ask(&clear, &metric(5.0)), Ok(false));
    let verify = task.verify.unwrap();
    assert_eq!(verify.within, Duration::from_secs(60));
    assert_eq!(state.ask(&verify.check.unwrap(), &metric(6.0)), Ok(false));
    state.call(&[0], &metric(1.0));
    assert_eq!(f.daemon.count("is not a key of a task and is ignored"), 1);
}

#[test]
fn what_is_wrong_in_a_task_is_named() {
    let f = Fixture::new();
    for (rest, why) in [
        ("['for'] = 'soon'", "for: must be a time such as"),
        ("['for'] = -1", "for: must be a time from nothing"),
        ("times = '6/5'", "times: must be such as"),
        ("times = 0", "times: must be such as"),
        ("clear = 1", "clear: must be a function, not 1"),
        ("max_per_hour = 0.5", "max_per_hour: must be a whole number"),
        (
            "verify = { within = 1, checks = 1 }",
            "verify.checks: means nothing",
        ),
        (
            "escalate = { { service = 's' } }",
            "escalate[1]: has a service, but no command",
        ),
        ("dry_run = 'yes'", "dry_run: must be true or false"),
        ("params = { a = 1.5 }", "params.a: must be a string"),
        ("host = 5", "host: must be a string, not 5"),
        (
            "host = ('x'):rep(5000)",
            "host: must be a string, not a string of 5000 bytes",
        ),
        (
            "host = '\\255'",
            "host: must be a string, not a string that is not UTF-8",
        ),
        (
            "params = { a = coroutine.create(print) }",
            "params.a: must be a string, a whole number, true or false, not a thread",
        ),
        ("[{}] = 1", "the task: has the key a table that is too deep"),
    ] {
        let code = format!("return {{ service = 's', command = 'c', {rest} }}");
        let told = f.fault(&code).to_string();
        assert!(told.contains(why), "{rest}: {told}");
    }
}

#[test]
fn a_task_of_any_size_and_shape_is_bounded() {
    let f = Fixture::new();
    for (code, why) in [
        (
            "local t = { service = 's', command = 'c' } t.escalate = t return t",
            "escalate[1].escalate: means nothing here",
        ),
        (
            "local t = { service = 's', command = 'c' } t.params = t return t",
            "params.params: must be a string",
        ),
        (
            "local t = { service = 's', command = 'c' } t.escalate = { t, t } return t",
            "escalate[1].escalate: means nothing",
        ),
        (
            "local t = {} t[t] = t return t",
            "the task: has the key a table that is too deep",
        ),
        (
            "local t = {} for i = 1, 100000 do t[i] = i end return t",
            "returned a table of more than 1000 values",
        ),
        (
            "local t = { service = 's', command = 'c' } for i = 1, 30 do t = { t, t } end return t",
            "the task: has the key 1, but keys must be names",
        ),
        (
            "return setmetatable({}, { __index = function() error('asked') end })",
            "has neither service and command",
        ),
    ] {
        let told = f.fault(code).to_string();
        assert!(told.contains(why), "{code}: {told}");
        assert!(told.len() < 10_000);
    }
}

#[test]
fn the_dialect_is_that_of_lua_5_1() {
    let f = Fixture::new();
    for (expression, value) in [
        ("10 / 2", "5"),
        ("3.0", "3"),
        ("0.1 + 0.2", "0.3"),
        ("2^53", "9.007199254741e+15"),
        ("string.format('%d', 3.7)", "3"),
        ("string.format('%d', -3.7)", "-3"),
        (
            "string.format('%5.1f|%s|%i|%%|%x', 2, 4 / 2, 3.0, 255.0)",
            "  2.0|2|3|%|ff",
        ),
        ("string.format('%s %s', nil, true)", "nil true"),
        ("string.format('%q', 'a')", "\"a\""),
        ("table.concat({ 4 / 2, 'a', 1.5 }, ', ')", "2, a, 1.5"),
        ("select('#', unpack({ 1, 2, 3 }))", "3"),
        ("loadstring('return 1 + 1')()", "2"),
        ("type(loadstring('x = = 1'))", "nil"),
        ("table.getn({ 1, 2 })", "2"),
        ("table.maxn({ [7] = 1 })", "7"),
        ("math.pow(2, 3)", "8"),
        ("math.log10(1000)", "3"),
        ("math.mod and math.mod(7, 3) or 1", "1"),
        ("bit.band(0xff, 0x0f)", "15"),
        ("bit.bor(1, 2, 4)", "7"),
        ("bit.bnot(0)", "-1"),
        ("bit.lshift(1, 31)", "-2147483648"),
        ("bit.rshift(-1, 28)", "15"),
        ("bit.arshift(-8, 1)", "-4"),
        ("bit.bxor(5, 1)", "4"),
        ("bit.rol(0x12345678, 8)", "878082066"),
        ("bit.bswap(1)", "16777216"),
        ("bit.tohex(255, 4)", "00ff"),
        ("bit.tobit(4294967295)", "-1"),
        ("getfenv(0) == _G", "true"),
        ("(string.gsub('abc', 'b', '%%'))", "a%c"),
        ("pcall(error, 'x')", "false"),
        ("tostring(-0.0) == '-0' or tostring(-0.0)", "true"),
    ] {
        assert_eq!(f.value(expression), value, "{expression}");
    }
    assert_eq!(
        f.run("local f = setfenv(loadstring('return x'), { x = 'inside' }) return f()"),
        "inside"
    );
    assert_eq!(
        f.run("x = 'outside' local function g() setfenv(1, { x = 'inside' }) return x end return g() .. _G.x"),
        "insideoutside"
    );
}

#[test]
fn the_sandbox_refuses_and_says_what_to_change() {
    let f = Fixture::new();
    for code in [
        "io.open('/etc/passwd')",
        "io.popen('id')",
        "os.execute('id')",
        "os.remove('/tmp/x')",
        "os.getenv('HOME')",
        "os.exit()",
        "dofile('/etc/passwd')",
        "loadfile('/etc/passwd')",
        "package.loadlib('libc.so.6', 'system')",
        "debug.getregistry()",
        "debug.sethook()",
        "string.dump(print)",
        "collectgarbage('stop')",
        "setmetatable({}, { __gc = function() end })",
    ] {
        let told = f.fault(code).to_string();
        assert!(
            told.contains(
                "is refused: a rule that needs it needs `Sandbox false' in <Plugin monitor>"
            ),
            "{code}: {told}"
        );
        assert!(told.contains("rules.lua:1:"), "{code}: {told}");
    }
    // What was compiled before is no text.
    for code in ["'\\27Lua'", "'\\27LJ'"] {
        assert_eq!(f.value(&format!("type(loadstring({code}))")), "nil");
        let reader = format!("load(function() if not done then done = true return {code} end end)");
        assert_eq!(f.value(&format!("type(({reader}))")), "nil");
    }
    assert_eq!(f.value("type(os.time())"), "number");
    assert_eq!(f.value("type(os.date())"), "string");
    let told = f.fault("require('../../etc/passwd')").to_string();
    assert!(told.contains("this is not the name of one"), "{told}");
}

#[test]
fn without_the_sandbox_the_library_is_whole_but_for_c_modules() {
    let mut f = Fixture::new();
    f.limits.sandbox = false;
    assert_eq!(f.value("type(io.open('/proc/self/stat'))"), "userdata");
    assert_eq!(f.value("type(os.getenv('PATH'))"), "string");
    assert_eq!(f.value("type(debug.getinfo(1))"), "table");
    let told = f
        .fault("package.loadlib('libc.so.6', 'system')")
        .to_string();
    assert!(told.contains("there are no C modules"), "{told}");
    let told = f.fault("require('nosuchmodule')").to_string();
    assert!(told.contains("nosuchmodule"), "{told}");
}

#[test]
fn a_call_that_does_not_end_is_stopped_and_the_next_one_works() {
    let f = Fixture::new();
    for code in [
        "while true do end",
        "repeat until false",
        "local function f() return f() end f()",
        "while true do pcall(function() while true do end end) end",
        "while true do xpcall(function() while true do end end, function() end) end",
        "coroutine.wrap(function() while true do end end)()",
        "while true do coroutine.resume(coroutine.create(function() while true do end end)) end",
        "pcall(function() while true do end end) return nil",
        "for i = 1, 1e12 do string.len('x') end",
        "string.gsub(string.rep('x', 100000), '.', function() for i = 1, 1000 do end end)",
        "setmetatable({}, { __index = function() while true do end end }).x = 1 local y = setmetatable({}, { __index = function() while true do end end }).x",
        "table.sort({ 1, 2, 3 }, function() while true do end end)",
    ] {
        let started = Instant::now();
        let mut state = f.file(&format!(
            "return {{ a = function(t) {code} end, b = function() return {{ service = 's', command = 'c' }} end }}"
        ));
        let answers = state.call(&[0, 1], &metric(1.0));
        assert_eq!(answers.len(), 2, "{code}: {answers:?}");
        assert_eq!(answers[0].1, Err(Fault::Instructions), "{code}");
        assert!(answers[1].1.is_ok(), "{code}");
        assert!(started.elapsed() < Duration::from_secs(20), "{code}");
        let again = state.call(&[1], &metric(1.0));
        assert_eq!(commands(again), [(1, "c".into())], "{code}");
    }
}

#[test]
fn a_call_that_takes_too_much_memory_is_stopped_and_the_next_one_works() {
    let mut f = Fixture::new();
    f.limits.memory = 8 << 20;
    f.limits.instructions = 100_000_000;
    for code in [
        "local list = {} for i = 1, 1e9 do list[i] = {} end",
        "local text = 'x' while true do text = text .. text end",
        "return string.rep('x', 1e9)",
        "kept = {} for i = 1, 1e9 do kept[i] = tostring(i) end",
    ] {
        let mut state = f.file(&format!(
            "return {{ a = function(t) {code} end, b = function() kept = nil return {{ service = 's', command = 'c' }} end }}"
        ));
        let mut answers = state.call(&[0], &metric(1.0));
        assert_eq!(answers.pop(), Some((0, Err(Fault::Memory))), "{code}");
        let again = state.call(&[1], &metric(1.0));
        assert_eq!(commands(again), [(1, "c".into())], "{code}");
        assert!(state.used_memory() < 12 << 20, "{code}");
    }
}

#[test]
fn rules_log_and_ask_and_dispatch() {
    let f = Fixture::new();
    for level in ["error", "warning", "notice", "info", "debug"] {
        f.run(&format!(
            "collectd.log_{level}('line of {level}\\nx') return ''"
        ));
        assert_eq!(f.daemon.count(&format!("line of {level} x")), 1);
    }
    f.run("print('printed', 1, 2.0) return ''");
    assert_eq!(f.daemon.count("printed 1 2"), 1);
    assert_eq!(
        f.run("return tostring(collectd.dispatch_values({ plugin = 'p', type = 'gauge', values = { 4.5 }, time = 7 }))"),
        "0"
    );
    let values = f.daemon.values();
    assert_eq!((&*values[0].host, &*values[0].plugin), ("node1", "p"));
    assert_eq!(values[0].values, [DataValue::Gauge(4.5)]);
    assert_eq!(values[0].time, Some(UNIX_EPOCH + Duration::from_secs(7)));
    f.run("collectd.dispatch_values({ plugin = 'p', type = 'if_octets', values = { 1e3, 2.9 } }) return ''");
    assert_eq!(
        f.daemon.values()[1].values,
        [DataValue::Derive(1000), DataValue::Derive(2)]
    );
    assert_eq!(f.value("collectd.last_values('node1/p/gauge')[1]"), "4.5");
    assert_eq!(
        f.value("collectd.rates({ plugin = 'p', type = 'gauge' })[1]"),
        "4.5"
    );
    assert_eq!(f.value("collectd.last_values('node1/no/gauge')"), "nil");
    assert_eq!(f.value("collectd.hostname()"), "node1");
    assert_eq!(f.value("collectd.time() > 1500000000"), "true");
    f.run("collectd.dispatch_notification({ severity = NOTIF_OKAY, message = 'm', type = 't' }) return ''");
    let told = f.daemon.notifications().pop().unwrap();
    assert_eq!(
        (
            told.severity,
            &*told.message,
            &*told.host,
            &*told.plugin,
            &*told.type_
        ),
        (Severity::Okay, "m", "node1", "monitor", "t")
    );
    for (code, why) in [
        (
            "collectd.dispatch_values({ plugin = 'p', type = 'unknown', values = { 1 } })",
            "there is no type unknown",
        ),
        (
            "collectd.dispatch_values({ plugin = 'p', type = 'gauge', values = {} })",
            "has 1 values, not 0",
        ),
        (
            "collectd.dispatch_values({ type = 'gauge', values = { 1 } })",
            "plugin is missing",
        ),
        (
            "collectd.dispatch_notification({ message = 'm' })",
            "severity is none of",
        ),
        ("collectd.json_decode('{')", "this is no JSON"),
        ("collectd.json_encode(print)", "no place in JSON"),
        (
            "local t = {} t.t = t collectd.json_encode(t)",
            "nested too deeply",
        ),
    ] {
        let told = f.fault(code).to_string();
        assert!(told.contains(why), "{code}: {told}");
    }
}

#[test]
fn json_is_read_and_written() {
    let f = Fixture::new();
    for (expression, value) in [
        (
            "collectd.json_encode({ 1, 2.5, 4 / 2, 'a', true })",
            r#"[1,2.5,2,"a",true]"#,
        ),
        (
            "collectd.json_encode({ a = { b = 1 } })",
            r#"{"a":{"b":1}}"#,
        ),
        ("collectd.json_encode({})", "{}"),
        ("collectd.json_encode(0 / 0)", "null"),
        (
            "collectd.json_decode('{\"a\": [1, 2.0, null, \"x\"]}').a[2]",
            "2",
        ),
        ("collectd.json_decode('null')", "nil"),
    ] {
        assert_eq!(f.value(expression), value, "{expression}");
    }
}

#[test]
fn modules_lie_beside_the_rules() {
    let f = Fixture::new();
    let lib = f.directory.path().join("lib");
    fs::create_dir_all(lib.join("deep")).unwrap();
    fs::write(
        lib.join("m.lua"),
        "count = (count or 0) + 1 return { x = 'of m' }",
    )
    .unwrap();
    fs::write(lib.join("deep/init.lua"), "return 'deep'").unwrap();
    fs::write(lib.join("deep/er.lua"), "return 'deeper'").unwrap();
    fs::write(lib.join("broken.lua"), "\nx = = 1").unwrap();
    assert_eq!(
        f.value("require('m').x .. require('m').x .. count"),
        "of mof m1"
    );
    assert_eq!(
        f.value("require('deep') .. require('deep.er')"),
        "deepdeeper"
    );
    assert_eq!(f.value("require('string') == string"), "true");
    let told = f.fault("require('nosuch')").to_string();
    assert!(told.contains("there is no module nosuch"), "{told}");
    let told = f.fault("require('broken')").to_string();
    assert!(told.contains("lib/broken.lua:2:"), "{told}");
}

#[test]
fn what_rules_remember_outlives_their_state() {
    let f = Fixture::new();
    let text = "collectd.state.loads = (collectd.state.loads or 0) + 1
                collectd.state.f = print
                collectd.state.deep = { [1] = { x = 'y' } }
                return function() return { service = 's', command = tostring(collectd.state.loads) } end";
    let mut remembered = Plain::Nil;
    for round in 1..=3 {
        let files = sources(&[("rules", text)]);
        let (mut state, _) = LuaState::load(&files, &f.environment(), &remembered).unwrap();
        let answers = state.call(&[0], &metric(1.0));
        assert_eq!(commands(answers), [(0, round.to_string())]);
        remembered = state.remembered();
        drop(state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What crosses into Lua arrives as it was, whatever is in it.
    #[test]
    fn what_crosses_into_lua_arrives(
        texts in prop::array::uniform5(any::<String>()),
        message in any::<String>(),
        values in prop::collection::vec(any::<f64>(), 1..6),
    ) {
        let f = Fixture::new();
        let mut state = f.file(
            "local function show(t, rest)
               local text = table.concat({ t.host, t.plugin, t.plugin_instance, t.type, t.type_instance, rest }, '|')
               return { service = 's', command = 'c', params = { text = text } }
             end
             return function(t)
               local words = {}
               for i = 1, #t.values do words[i] = string.format('%.17g', t.values[i]) end
               return show(t, #t.values .. ' ' .. table.concat(words, ' '))
             end, function(t) return show(t, t.message) end",
        );
        let [host, plugin, plugin_instance, type_, type_instance] = texts.clone();
        let sources = series(values.len()).sources.clone();
        let sample = Subject::Metric(Arc::new(Sample {
            series: Arc::new(Series {
                host, plugin, plugin_instance, type_, type_instance, sources,
                origin: Origin::default(),
            }),
            time: UNIX_EPOCH,
            interval: Duration::from_secs(1),
            values: values.iter().copied().map(DataValue::Gauge).collect(),
        }));
        let text = said(state.call(&[0], &sample));
        let (names, numbers) = text.rsplit_once('|').unwrap();
        prop_assert_eq!(names, texts.join("|"));
        let mut numbers = numbers.split(' ');
        prop_assert_eq!(numbers.next().unwrap(), values.len().to_string());
        for (number, value) in numbers.zip(&values) {
            let number: f64 = number.trim_start_matches('-').parse().unwrap();
            prop_assert!(number == value.abs() || number.is_nan() && value.is_nan());
        }
        let [host, plugin, plugin_instance, type_, type_instance] = texts.clone();
        let notice = Subject::Notification(Arc::new(Notice {
            notification: Notification {
                severity: Severity::Okay,
                time: UNIX_EPOCH,
                message: message.clone(),
                host, plugin, plugin_instance, type_, type_instance,
            },
            origin: Origin::default(),
        }));
        let text = said(state.call(&[1], &notice));
        prop_assert_eq!(text, format!("{}|{message}", texts.join("|")));
    }

    /// A rule file may hold anything, and what a handler returns may be anything.
    #[test]
    fn no_file_and_no_answer_does_harm(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "return", "function(t)", "end", "{", "}", "(", ")", "=", ",", "local x", "x", "t", "nil", "1e999",
                "'a'", "..", "-", "match", "handler", "service", "command", "['for']", "times", "verify", "escalate",
                "coroutine.wrap", "pcall", "error", "setmetatable", "string.rep", "1", "0", "[", "]", "while true do",
                "collectd.json_encode", "collectd.dispatch_values", "unpack", "loadstring", "\n", "--[[", "\u{0}",
            ]),
            0..40,
        ),
    ) {
        let mut f = Fixture::new();
        f.limits.instructions = 20_000;
        f.limits.memory = 4 << 20;
        let text = words.join(" ");
        for text in [text.clone(), format!("return function(t) return {text} end")] {
            let (mut state, broken) = f.load(&[("a", &text), ("b", "return function() return { service = 's', command = 'c' } end")]);
            prop_assert!(broken.len() <= 1);
            let all: Vec<usize> = (0..state.handlers().len()).collect();
            let answers = state.call(&all, &metric(1.0));
            let last = answers.last().unwrap();
            prop_assert!(last.1.is_ok(), "{:?}", last);
        }
    }
}

#[test]
fn a_file_may_ask_for_a_state_of_its_own() {
    let is_isolated = |text: &str| sources(&[("a", text)])[0].is_isolated();
    assert!(is_isolated("-- monitor: isolated\nreturn nil"));
    assert!(is_isolated(
        "#!/usr/bin/lua\n\n-- About it.\n--   monitor:   isolated  \n"
    ));
    assert!(!is_isolated("return nil\n-- monitor: isolated"));
    assert!(!is_isolated("-- monitor: isolate"));
    assert!(!is_isolated(""));
}

#[test]
fn a_rule_that_answers_notifications_without_end_is_slowed_down() {
    let f = Fixture::new();
    let mut state = f.file(
        "return nil, function(t) collectd.dispatch_notification({ severity = NOTIF_OKAY, message = t.message }) end",
    );
    let answers: usize = (0..1000)
        .map(|_| state.call(&[0], &notification("again")).len())
        .sum();
    assert!(answers > 800, "{answers}");
    assert!(f.daemon.notifications().len() < 200);
}

/// All handlers of a value are called in one go: what one does must not show in the others.
#[test]
fn handlers_that_fail_change_or_answer_do_not_touch_each_other() {
    let mut f = Fixture::new();
    // There load() is the standard one, which keeps errors of its reader to itself.
    f.limits.sandbox = false;
    let text = "
      local loop = function() while true do end end
      local task = function(t)
        assert(t.host == 'node1' and t.plugin == 'memory' and t.values[1] == 1 and t.values[2] == 2)
        return { service = 's', command = 'c' }
      end
      return {
        a = function(t) t.host = 'other' t.values[2] = 7 end,
        b = task,
        c = function(t) t.values = nil error('fails') end,
        d = task,
        e = loop,
        f = task,
        g = function() load(loop) end,
        h = task,
        i = function() load(loop) return { service = 's', command = 'c' } end,
        j = function() error(nil) end,
        k = task,
      }";
    let (mut state, broken) = f.load(&[("rules", text)]);
    assert_eq!(broken, []);
    let order = names(&state);
    let letter = |id: usize| order[id].rsplit("::").next().unwrap().to_owned();
    let ids: Vec<usize> = (0..order.len()).collect();
    let values = metric_of(&[DataValue::Gauge(1.0), DataValue::Gauge(2.0)]);
    for _ in 0..3 {
        let mut told: Vec<String> = state
            .call(&ids, &values)
            .into_iter()
            .map(|(id, task)| match task {
                Ok(_) => format!("{} task", letter(id)),
                Err(Fault::Instructions) => format!("{} stopped", letter(id)),
                Err(fault) => format!("{} {fault}", letter(id)),
            })
            .collect();
        told.sort();
        let words = |letter: char| match letter {
            'b' | 'd' | 'f' | 'h' | 'k' => "task".to_owned(),
            'e' | 'g' | 'i' => "stopped".to_owned(),
            'c' => "fails".to_owned(),
            'j' => "nil".to_owned(),
            other => panic!("{other}"),
        };
        assert_eq!(told.len(), 10, "{told:?}");
        for line in &told {
            let (letter, rest) = line.split_once(' ').unwrap();
            let expected = words(letter.chars().next().unwrap());
            assert!(rest.contains(&expected), "{told:?}");
        }
    }
}
