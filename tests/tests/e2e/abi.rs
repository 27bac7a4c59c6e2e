//! Plugins that were built for the release fit the patched daemon, and programs
//! its client library.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use collectd_live_tests::{skip, Variant};

/// What exports symbols, below a prefix.
const OBJECTS: &[&str] = &["sbin/collectd", "lib/libcollectdclient.so"];

/// Headers that do not compile by themselves, or without libraries that a
/// machine need not have, in the release either.
const INCOMPLETE_HEADERS: &[&str] = &[
    "liboconfig/parser.h",
    "utils/dpdk/dpdk.h",
    "utils/message_parser/message_parser.h",
    "utils/ovs/ovs.h",
];

/// The parser of the control protocol, to which there are new commands, so that
/// its `cmd_t` is larger. The daemon does not export it: `unixsock` and `exec`
/// are linked with the code that goes with their headers.
const PARSER_HEADERS: &str = "utils/cmds/";

/// An entry of the value cache is defined in utils_cache.c; who has an iterator
/// sees a pointer to it and not what is in it.
const PRIVATE_TYPES: &str = "[suppress_type]\nname = cache_entry_s\n";

/// What the sources of [`types_of`] begin with.
const PREAMBLE: &str = "#include \"collectd.h\"\n\
                        #include \"plugin.h\"\n\
                        #include \"utils/avltree/avltree.h\"\n";

fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The dynamic symbols that an object defines: kind and, for data, size.
fn symbols(object: &Path) -> BTreeMap<String, (String, Option<String>)> {
    let output = run(
        "nm",
        [
            "-D".as_ref(),
            "-P".as_ref(),
            "--defined-only".as_ref(),
            object.as_os_str(),
        ],
    );
    assert!(
        output.status.success(),
        "nm {}: {}",
        object.display(),
        text(&output.stderr)
    );
    text(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, kind) = (words.next()?, words.next()?);
            // A program that is linked against data has room for that much.
            let size = words
                .nth(1)
                .filter(|_| !matches!(kind, "T" | "W"))
                .map(str::to_owned);
            Some((name.to_owned(), (kind.to_owned(), size)))
        })
        .collect()
}

/// Proves that nothing the release exports is missing, has become something
/// else or, where it is data, has another size.
#[test]
fn every_symbol_of_the_release_is_there() {
    for object in OBJECTS {
        let stock = symbols(&Variant::Stock.prefix().join(object));
        let patched = symbols(&Variant::Patched.prefix().join(object));
        assert!(
            stock.len() > 30,
            "nm finds only {} symbols in {object}",
            stock.len()
        );
        let differences: Vec<String> = stock
            .iter()
            .filter(|(name, what)| patched.get(*name) != Some(what))
            .map(|(name, what)| format!("{name}: {what:?}, now {:?}", patched.get(name)))
            .collect();
        assert!(
            differences.is_empty(),
            "{object}, of {} symbols:\n{}",
            stock.len(),
            differences.join("\n")
        );
    }
}

/// Whether `abidiff` is there; if not, says that `test` is skipped.
fn has_abidiff(test: &str) -> bool {
    let found = Command::new("abidiff").arg("--version").output().is_ok();
    if !found {
        skip(test, "abidiff");
    }
    found
}

/// Proves that all that can be reached from an exported function or variable
/// has kept its type: arguments, structs behind pointers, and so on.
#[test]
fn exported_functions_keep_their_types() {
    if !has_abidiff("exported_functions_keep_their_types") {
        return;
    }
    let mut private = tempfile::NamedTempFile::new().expect("a file");
    private
        .write_all(PRIVATE_TYPES.as_bytes())
        .expect("writing a file");
    for object in OBJECTS {
        let output = run(
            "abidiff",
            [
                "--no-added-syms".into(),
                "--suppressions".into(),
                private.path().to_owned(),
                Variant::Stock.prefix().join(object),
                Variant::Patched.prefix().join(object),
            ],
        );
        assert!(
            output.status.success(),
            "{object}: {}\n{}",
            text(&output.stdout),
            text(&output.stderr)
        );
    }
}

fn headers_of(prefix: &Path) -> PathBuf {
    prefix.join("include/collectd/core")
}

/// The C compiler, set up for a plugin's source.
fn compiler(include: &Path) -> Command {
    let mut command = Command::new(env::var("CC").unwrap_or_else(|_| String::from("cc")));
    command
        .args(["-w", "-DHAVE_CONFIG_H", "-I"])
        .arg(include)
        .arg("-I")
        .arg(include.join("daemon"));
    command
}

/// The headers below `dir`, which is below `include`.
fn find_headers(include: &Path, dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("an entry of the header directory").path();
        if path.is_dir() {
            find_headers(include, &path, found);
        } else if path.extension() == Some(OsStr::new("h")) {
            let name = path.strip_prefix(include).expect("a path below it");
            found.push(name.display().to_string());
        }
    }
}

/// The headers that a plugin of the release can include.
fn public_headers(work: &Path) -> Vec<String> {
    let include = headers_of(&Variant::Stock.prefix());
    let mut all = Vec::new();
    for dir in ["daemon", "liboconfig", "utils"] {
        find_headers(&include, &include.join(dir), &mut all);
    }
    all.retain(|header| !header.starts_with(PARSER_HEADERS));
    all.sort_unstable();
    let source = work.join("header.c");
    let (complete, incomplete): (Vec<_>, Vec<_>) = all.into_iter().partition(|header| {
        fs::write(&source, format!("{PREAMBLE}#include \"{header}\"\n"))
            .expect("writing a C source");
        compiler(&include)
            .arg("-fsyntax-only")
            .arg(&source)
            .output()
            .expect("the C compiler")
            .status
            .success()
    });
    for header in incomplete {
        assert!(
            INCOMPLETE_HEADERS.contains(&header.as_str()),
            "{header} does not compile"
        );
    }
    complete
}

/// Compiles an object that has the types of all headers in its debugging
/// information.
fn types_of(include: &Path, headers: &[String], object: &Path) {
    let source = object.with_extension("c");
    let includes: String = headers
        .iter()
        .map(|header| format!("#include \"{header}\"\n"))
        .collect();
    // An object without any symbol is none for abidiff.
    fs::write(&source, format!("{PREAMBLE}{includes}int symbol;\n")).expect("writing a C source");
    let output = compiler(include)
        .args(["-shared", "-fPIC", "-g", "-O0"])
        .arg("-fno-eliminate-unused-debug-types")
        .arg(&source)
        .arg("-o")
        .arg(object)
        .output()
        .expect("the C compiler");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// What abidiff says about the types in two objects, and whether any of those
/// in the first is missing or different in the second.
fn compare_types(old: &Path, new: &Path) -> (bool, String) {
    let output = run(
        "abidiff",
        [
            "--non-reachable-types".as_ref(),
            old.as_os_str(),
            new.as_os_str(),
        ],
    );
    let report = text(&output.stdout);
    // New types are a difference, too, so the status alone does not tell.
    let summary = report
        .lines()
        .find(|line| line.starts_with("Unreachable types summary:"));
    let same = match summary {
        Some(line) => line.contains(": 0 removed") && line.contains(", 0 changed"),
        None if output.status.success() => true,
        None => panic!("abidiff: {report}\n{}", text(&output.stderr)),
    };
    (same, report)
}

/// Proves that every struct, union and enumeration in a header for plugins has
/// kept its layout, those that no function takes included.
#[test]
fn public_types_keep_their_layout() {
    if !has_abidiff("public_types_keep_their_layout") {
        return;
    }
    let work = tempfile::tempdir().expect("a directory to work in");
    let headers = public_headers(work.path());
    let object = |variant: Variant| {
        let object = work.path().join(variant.name()).with_extension("so");
        types_of(&headers_of(&variant.prefix()), &headers, &object);
        object
    };
    let (stock, patched) = (object(Variant::Stock), object(Variant::Patched));
    let (same, report) = compare_types(&stock, &patched);
    assert!(same, "{report}");
}

/// Proves that the test above sees a member that is added to a struct of
/// plugin.h.
#[test]
fn a_changed_struct_is_noticed() {
    if !has_abidiff("a_changed_struct_is_noticed") {
        return;
    }
    let work = tempfile::tempdir().expect("a directory to work in");
    let include = headers_of(&Variant::Patched.prefix());
    let headers = [String::from("daemon/plugin.h")];
    let before = work.path().join("before.so");
    types_of(&include, &headers, &before);

    let changed = work.path().join("include");
    let status = Command::new("cp")
        .arg("-R")
        .args([&include, &changed])
        .status();
    assert!(status.expect("cp").success(), "copying the headers");
    let header = changed.join("daemon/plugin.h");
    let text = fs::read_to_string(&header).expect("plugin.h");
    let member = "struct value_list_s {";
    assert!(text.contains(member), "plugin.h has no value_list_s");
    fs::write(&header, text.replace(member, &format!("{member} int x;")))
        .expect("changing plugin.h");
    let after = work.path().join("after.so");
    types_of(&changed, &headers, &after);

    let (same, report) = compare_types(&before, &after);
    assert!(!same, "{report}");
}
