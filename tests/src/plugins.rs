//! Compiles the C plugins in `tests/plugins` against an installed tree.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::install::build_dir;
use crate::Variant;

/// Headers of the test plugins themselves.
const COMMON_HEADERS: &[&str] = &["dispatch_count.h", "wait_for_release.h"];

/// Installed headers whose change makes a compiled plugin stale.
const WATCHED_HEADERS: &[&str] = &["config.h", "daemon/collectd.h", "daemon/plugin.h"];

/// Returns the path of the compiled plugin `tests/plugins/<name>.c`.
///
/// The result is cached below the build directory. Several processes may ask
/// for the same plugin at once: each compiles into a file of its own and moves
/// it into place, so that nobody sees half a plugin.
pub(crate) fn compile(name: &str, variant: Variant) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins");
    let source = sources.join(format!("{name}.c"));
    let include = variant.prefix().join("include/collectd/core");
    let compiler = env::var("CC").unwrap_or_else(|_| String::from("cc"));

    let mut hasher = DefaultHasher::new();
    (&compiler, variant.compiler_flags(), &include).hash(&mut hasher);
    let installed = WATCHED_HEADERS.iter().map(|header| include.join(header));
    let common = COMMON_HEADERS.iter().map(|header| sources.join(header));
    for path in common.chain(installed).chain([source.clone()]) {
        fs::read(&path)
            .unwrap_or_else(|e| panic!("a source of the plugin {name}, {}: {e}", path.display()))
            .hash(&mut hasher);
    }
    let cache = build_dir().join("test-plugins").join(variant.name());
    let object = cache.join(format!("{name}-{:016x}.so", hasher.finish()));
    if object.exists() {
        return object;
    }

    fs::create_dir_all(&cache).unwrap_or_else(|e| panic!("{}: {e}", cache.display()));
    let unfinished = tempfile::Builder::new()
        .prefix(name)
        .suffix(".unfinished")
        .tempfile_in(&cache)
        .unwrap_or_else(|e| panic!("a file in {}: {e}", cache.display()));
    let output = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-g", "-O1", "-Wall", "-Wextra"])
        .args(["-Wno-unused-parameter", "-Werror", "-DHAVE_CONFIG_H"])
        .args(variant.compiler_flags())
        .arg("-I")
        .arg(&include)
        .arg("-I")
        .arg(include.join("daemon"))
        .arg(&source)
        .arg("-o")
        .arg(unfinished.path())
        .output()
        .unwrap_or_else(|e| panic!("the C compiler {compiler}: {e}"));
    assert!(
        output.status.success(),
        "compiling {} failed:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    unfinished
        .persist(&object)
        .unwrap_or_else(|e| panic!("{}: {e}", object.display()));
    object
}
