//! Compares the cost of the patched daemon with that of the release, and measures
//! how long loading and unloading take. `ci/bench` builds what it needs.
//!
//! Both daemons run the same binary plugin, `tests/plugins/bench.c`.

use std::env;
use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use collectd_live_tests::{eventually, patience, Builder, Daemon, Variant};

/// What a dispatched value may cost, in instructions of stock's.
const MOST_INSTRUCTIONS: f64 = 1.01;

/// The same for time, as a bound that is right in 95 % of all cases.
const MOST_TIME: f64 = 1.05;

/// How long one measurement may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// The threads that dispatch values, and those that write them.
const WORKERS: &[&str] = &["reader#", "writer#"];

/// The precision of times in LISTVAL.
const LISTVAL_UNIT: Duration = Duration::from_millis(1);

/// What is loaded and unloaded.
const GUEST: &str = "uptime";

/// How much is measured.
struct Effort {
    cases: Vec<Case>,
    /// Values dispatched to count instructions: the difference of the two counts.
    few: u32,
    many: u32,
    /// Values dispatched to measure time, how often a daemon does that, and how
    /// many sets of daemons are compared.
    values: u32,
    rounds: usize,
    sets: usize,
    /// Loads and unloads.
    loads: usize,
}

#[derive(Clone, Copy)]
struct Case {
    write_threads: u32,
    writers: u32,
}

fn cases() -> Vec<Case> {
    [1, 5]
        .into_iter()
        .flat_map(|write_threads| {
            [1, 4, 16].map(|writers| Case {
                write_threads,
                writers,
            })
        })
        .collect()
}

impl Effort {
    fn full() -> Self {
        Effort {
            cases: cases(),
            few: 10_000,
            many: 40_000,
            values: 20_000,
            rounds: 15,
            sets: 8,
            loads: 500,
        }
    }

    fn quick() -> Self {
        Effort {
            cases: vec![Case {
                write_threads: 1,
                writers: 4,
            }],
            few: 1_000,
            many: 5_000,
            values: 5_000,
            rounds: 5,
            sets: 3,
            loads: 50,
        }
    }
}

/// A daemon that dispatches `values` values at a time; with `fill_first`, none is
/// written before the last one is in the queue.
fn bench(variant: Variant, case: Case, values: u32, fill_first: bool) -> Builder {
    let builder = Daemon::builder(variant)
        .interval("10")
        .option(&format!("WriteThreads {}", case.write_threads))
        .available_as_for("bench", Variant::Stock)
        .available(GUEST);
    let done = builder.path("done");
    builder.load_plugin("bench").plugin_block(
        "bench",
        &format!(
            "Values {values}\nWriters {}\nFillFirst {fill_first}\nDone \"{}\"",
            case.writers,
            done.display()
        ),
    )
}

/// Has the daemon dispatch its values, and waits for the last one at the writer.
fn dispatch(daemon: &Daemon) {
    daemon.ctl("FLUSH plugin=bench").expect_ok();
    wait_until_done(daemon);
}

fn wait_until_done(daemon: &Daemon) {
    let done = daemon.path("done");
    eventually("the last value at the writer", DEADLINE, || {
        done.exists().then_some(())
    });
    fs::remove_file(done).expect("removing the file that tells the end");
}

/// The instructions that a whole run of the daemon takes.
fn instructions_of_run(variant: Variant, case: Case, values: u32) -> f64 {
    let builder = bench(variant, case, values, true).plugin_block("bench", "Once true");
    let counts = builder.path("callgrind");
    let daemon = builder
        .launched_by([
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            // Threads take turns, so that none waits for the others for long.
            "--fair-sched=yes",
            &format!("--callgrind-out-file={}", counts.display()),
        ])
        .start();
    wait_until_done(&daemon);
    daemon.stop_and(|_| {
        let text = fs::read_to_string(&counts).expect("callgrind's counts");
        text.lines()
            .find_map(|line| line.strip_prefix("totals: "))
            .and_then(|total| total.trim().parse().ok())
            .expect("a line with the total in callgrind's counts")
    })
}

/// Instructions per value: what more values add.
fn instructions(variant: Variant, case: Case, effort: &Effort) -> f64 {
    let few = instructions_of_run(variant, case, effort.few);
    let many = instructions_of_run(variant, case, effort.many);
    (many - few) / f64::from(effort.many - effort.few)
}

/// Nanoseconds per value on a processor; with `traffic`, while a plugin is loaded
/// and unloaded all the time.
fn time(daemon: &Daemon, values: u32, traffic: bool) -> f64 {
    let before = daemon.time_on_cpu(WORKERS);
    let stop = AtomicBool::new(!traffic);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                daemon.load(GUEST, &[]).expect_ok();
                daemon.unload(GUEST).expect_ok();
            }
        });
        dispatch(daemon);
        stop.store(true, Ordering::Relaxed);
    });
    let time = daemon.time_on_cpu(WORKERS) - before;
    time.as_secs_f64() * 1e9 / f64::from(values)
}

/// The kinds of runs that are compared.
const STOCK: usize = 0;
const PATCHED: usize = 1;
const AGAIN: usize = 2;
const BUSY: usize = 3;

/// The median times of four daemons that take turns.
fn times(case: Case, effort: &Effort, fill_first: bool) -> [f64; 4] {
    let daemons = [STOCK, PATCHED, AGAIN, BUSY].map(|which| {
        let variant = match which {
            STOCK | AGAIN => Variant::Stock,
            _ => Variant::Patched,
        };
        let daemon = bench(variant, case, effort.values, fill_first).start();
        // The first time everything is new to the daemon.
        dispatch(&daemon);
        daemon
    });
    let mut columns: [Vec<f64>; 4] = Default::default();
    for turn in 0..effort.rounds * daemons.len() {
        // Each goes first as often as the others.
        let which = (turn / daemons.len() + turn) % daemons.len();
        columns[which].push(time(&daemons[which], effort.values, which == BUSY));
    }
    for daemon in daemons {
        daemon.stop();
    }
    columns.map(median)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// Student's t for 95 % on one side, by degrees of freedom from one on.
const STUDENT: [f64; 9] = [
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833,
];

/// The mean of at least two values, and what the true one is below in 95 % of all
/// cases.
fn mean_and_bound(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (
        mean,
        mean + STUDENT[values.len() - 2] * (variance / n).sqrt(),
    )
}

/// The values at 50, 95, 99 and 100 % of a distribution.
fn percentiles(mut values: Vec<f64>) -> [f64; 4] {
    values.sort_by(f64::total_cmp);
    [50, 95, 99, 100].map(|percent| values[(values.len() * percent).div_ceil(100) - 1])
}

/// Seconds from the command to the first value, and those an unload takes.
fn lifecycle(loads: usize) -> (Vec<f64>, Vec<f64>) {
    let daemon = Daemon::builder(Variant::Patched)
        .interval("10")
        .available(GUEST)
        .load_plugin("seqread")
        .plugin_block("seqread", "Interval 0.01")
        .start();
    let mut first = Vec::with_capacity(loads);
    let mut unload = Vec::with_capacity(loads);
    for _ in 0..loads {
        // LISTVAL rounds times: values from before and after are to differ.
        thread::sleep(2 * LISTVAL_UNIT);
        let (begin, now) = (Instant::now(), SystemTime::now());
        daemon.load(GUEST, &[]).expect_ok();
        first.push(until_value_since(&daemon, now, begin));
        let begin = Instant::now();
        daemon.unload(GUEST).expect_ok();
        unload.push(begin.elapsed().as_secs_f64());
    }
    daemon.stop();
    (first, unload)
}

/// Asks without a pause, and returns the time from `begin` to the answer that
/// has a value from after `since`.
fn until_value_since(daemon: &Daemon, since: SystemTime, begin: Instant) -> f64 {
    let since = (since - LISTVAL_UNIT)
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_secs_f64();
    while daemon.last_value_of(GUEST).is_none_or(|time| time < since) {
        assert!(begin.elapsed() < patience(DEADLINE), "no value of {GUEST}");
    }
    begin.elapsed().as_secs_f64()
}

/// A note on a line of a table, if `value` is more than it may be; `good` is
/// false from then on.
fn judge(value: f64, most: f64, good: &mut bool) -> &'static str {
    if value <= most {
        ""
    } else {
        *good = false;
        "  TOO MUCH"
    }
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn print_instructions(effort: &Effort) -> bool {
    let mut good = true;
    println!("Instructions per dispatched value, the queue being filled first");
    println!("write threads  writers    stock  patched   ratio");
    for &case in &effort.cases {
        let stock = instructions(Variant::Stock, case, effort);
        let patched = instructions(Variant::Patched, case, effort);
        let ratio = patched / stock;
        println!(
            "{:13}  {:7}  {stock:7.0}  {patched:7.0}  {ratio:6.4}{}",
            case.write_threads,
            case.writers,
            judge(ratio, MOST_INSTRUCTIONS, &mut good)
        );
    }
    good
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn print_time(effort: &Effort, fill_first: bool) -> bool {
    let mut good = true;
    println!(
        "\n\
         Nanoseconds on a processor per dispatched value: the median of {} rounds in each\n\
         of {} sets of daemons; and ratios with their 95 % bound. \"again\" is another\n\
         stock daemon, \"busy\" a patched one that loads and unloads all the time. The\n\
         values are written {}.\n\
         write threads  writers    stock  patched  patched/stock    again/stock     busy/stock",
        effort.rounds,
        effort.sets,
        if fill_first {
            "when the last one is in the queue"
        } else {
            "while they are dispatched: threads wait and are woken"
        }
    );
    for &case in &effort.cases {
        let sets: Vec<[f64; 4]> = (0..effort.sets)
            .map(|_| times(case, effort, fill_first))
            .collect();
        let all = |which: usize| median(sets.iter().map(|set| set[which]).collect());
        let ratio = |which: usize| {
            let ratios: Vec<f64> = sets.iter().map(|set| set[which] / set[STOCK]).collect();
            mean_and_bound(&ratios)
        };
        let cell = |which: usize| {
            let (mean, bound) = ratio(which);
            format!("{mean:6.3} <{bound:6.3}")
        };
        println!(
            "{:13}  {:7}  {:7.0}  {:7.0}  {}  {}  {}{}",
            case.write_threads,
            case.writers,
            all(STOCK),
            all(PATCHED),
            cell(PATCHED),
            cell(AGAIN),
            cell(BUSY),
            judge(ratio(PATCHED).1, MOST_TIME, &mut good)
        );
    }
    good
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn print_lifecycle(effort: &Effort) {
    println!(
        "\nMilliseconds, {:4} times       p50     p95     p99     max",
        effort.loads
    );
    let (first, unload) = lifecycle(effort.loads);
    for (name, values) in [("load to first value", first), ("unload", unload)] {
        let [p50, p95, p99, max] = percentiles(values).map(|seconds| seconds * 1e3);
        println!("{name:24} {p50:7.2} {p95:7.2} {p99:7.2} {max:7.2}");
    }
}

fn main() -> ExitCode {
    let good = match env::args().nth(1).as_deref() {
        Some("--instructions") => print_instructions(&Effort::quick()),
        Some("--quick") => run(&Effort::quick()),
        None => run(&Effort::full()),
        Some(_) => return ExitCode::from(2),
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(effort: &Effort) -> bool {
    let instructions = print_instructions(effort);
    let filled = print_time(effort, true);
    let together = print_time(effort, false);
    print_lifecycle(effort);
    instructions && filled && together
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_grows_with_the_noise() {
        let (quiet, quiet_bound) = mean_and_bound(&[2.0; 8]);
        assert!((quiet - 2.0).abs() < 1e-9 && (quiet_bound - 2.0).abs() < 1e-9);
        let (noisy, noisy_bound) = mean_and_bound(&[1.0, 3.0]);
        assert!((noisy - 2.0).abs() < 1e-9);
        assert!((noisy_bound - (2.0 + 6.314)).abs() < 1e-9, "{noisy_bound}");
    }

    #[test]
    fn what_is_over_a_limit_is_bad_until_the_end() {
        let mut good = true;
        assert_eq!(judge(1.01, 1.01, &mut good), "");
        assert!(good);
        assert_ne!(judge(1.02, 1.01, &mut good), "");
        assert_eq!(judge(0.99, 1.01, &mut good), "");
        assert!(!good);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentiles(values), [100.0, 190.0, 198.0, 200.0]);
        assert_eq!(percentiles(vec![7.0]), [7.0; 4]);
    }
}
