//! What is printed about a daemon when its test fails.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Files longer than this are printed from their end.
const PRINTED_BYTES: usize = 16 * 1024;

/// Files in the daemon's directory whose names start with this are reports of a
/// sanitizer.
pub(crate) const SANITIZER_PREFIX: &str = "sanitizer";

/// Adds a titled section to a report.
pub(crate) fn section(report: &mut String, title: &str, text: &str) {
    let text = text.trim_end();
    let from = text.len().saturating_sub(PRINTED_BYTES);
    let from = (from..text.len())
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0);
    let cut = if from > 0 { "(only the end)\n" } else { "" };
    writeln!(report, "---- {title}\n{cut}{}", &text[from..])
        .expect("writing to a string cannot fail");
}

/// Adds the content of a file.
pub(crate) fn file(report: &mut String, title: &str, path: &Path) {
    match fs::read(path) {
        Ok(bytes) => section(report, title, &String::from_utf8_lossy(&bytes)),
        Err(e) => section(report, title, &format!("(cannot be read: {e})")),
    }
}

/// The reports that a sanitizer left in `dir`.
pub(crate) fn sanitizer_reports(dir: &Path) -> String {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(SANITIZER_PREFIX))
        })
        .collect();
    names.sort();
    names
        .iter()
        .map(|path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned())
        .collect()
}

/// Adds the backtraces of a running process.
pub(crate) fn live_backtrace(report: &mut String, pid: u32) {
    gdb(
        report,
        "backtraces of the running daemon",
        &["-p", &pid.to_string()],
    );
}

/// Adds the backtraces in the core that a crashed daemon left in `dir`.
pub(crate) fn core_backtrace(report: &mut String, program: &Path, dir: &Path) {
    let core = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("core"))
        });
    match core {
        Some(core) => gdb(
            report,
            "backtraces of the core",
            &[&program.to_string_lossy(), &core.to_string_lossy()],
        ),
        None => {
            let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
            section(
                report,
                "backtraces of the core",
                &format!(
                    "(no core in the daemon's directory; core_pattern is {})",
                    pattern.trim()
                ),
            );
        }
    }
}

fn gdb(report: &mut String, title: &str, target: &[&str]) {
    // A debugger that hangs must not hide the rest of the report.
    let output = Command::new("timeout")
        .args([
            "60",
            "gdb",
            "-nx",
            "-batch",
            "-iex",
            "set debuginfod enabled off",
        ])
        .args([
            "-ex",
            "set print frame-arguments none",
            "-ex",
            "thread apply all backtrace",
        ])
        .args(target)
        .output();
    match output {
        Ok(output) if output.status.code() != Some(127) => {
            section(report, title, &String::from_utf8_lossy(&output.stdout));
        }
        _ => section(report, title, "(gdb is not installed)"),
    }
}
