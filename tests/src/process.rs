//! What the kernel says about a daemon's process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Facts about a process at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// The names of its threads.
    pub threads: Vec<String>,
}

impl Status {
    pub(crate) fn of(pid: u32) -> Self {
        let path = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(path.join("status"))
            .unwrap_or_else(|e| panic!("{}/status: {e}", path.display()));
        let rss_kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("process {pid} has no VmRSS:\n{status}"));
        let threads = fs::read_dir(path.join("task"))
            .unwrap_or_else(|e| panic!("{}/task: {e}", path.display()))
            // A thread may end between the listing and the look at its name.
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("comm")).ok())
            .map(|name| name.trim_end().to_owned())
            .collect();
        Status { rss_kib, threads }
    }
}

/// How many descriptors a process has open.
pub(crate) fn descriptors(pid: u32) -> usize {
    let path = format!("/proc/{pid}/fd");
    fs::read_dir(&path)
        .unwrap_or_else(|e| panic!("{path}: {e}"))
        .count()
}

/// How long those threads have been on a processor whose names begin with one of
/// `prefixes`.
pub(crate) fn time_on_cpu(pid: u32, prefixes: &[&str]) -> Duration {
    let tasks = format!("/proc/{pid}/task");
    let nanoseconds = fs::read_dir(&tasks)
        .unwrap_or_else(|e| panic!("{tasks}: {e}"))
        .filter_map(|entry| {
            // A thread may end between the listing and the look at it.
            let task = entry.ok()?.path();
            let name = fs::read_to_string(task.join("comm")).ok()?;
            if !prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                return None;
            }
            let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
            schedstat.split(' ').next()?.parse::<u64>().ok()
        })
        .sum();
    Duration::from_nanos(nanoseconds)
}

/// The lines of `/proc/<pid>/maps` that are about a file, if code of it is mapped.
///
/// A sanitizer that reports something maps files to read their symbols, and
/// leaves it at that: such a file is not loaded.
pub(crate) fn mappings(pid: u32, file: &Path) -> Vec<String> {
    let path = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let lines: Vec<_> = maps
        .lines()
        .filter(|line| {
            line.find('/')
                .is_some_and(|at| Path::new(line[at..].trim_end_matches(" (deleted)")) == file)
        })
        .map(str::to_owned)
        .collect();
    let is_code = |line: &String| {
        line.split(' ')
            .nth(1)
            .is_some_and(|mode| mode.contains('x'))
    };
    if lines.iter().any(is_code) {
        lines
    } else {
        Vec::new()
    }
}
