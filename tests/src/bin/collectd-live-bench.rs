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

/// The same for time, as the upper end of a 95 % interval.
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
    /// Values dispatched to measure time, and how often that is repeated.
    values: u32,
    rounds: usize,
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
            values: 100_000,
            rounds: 11,
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
            values: 20_000,
            rounds: 5,
            loads: 50,
        }
    }
}

/// A daemon that dispatches `values` values; and the file that tells their end.
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

fn wait_until_done(daemon: &Daemon) {
    eventually("the last value at the writer", DEADLINE, || {
        daemon.path("done").exists().then_some(())
    });
}

/// The instructions that a whole run of the daemon takes.
fn instructions_of_run(variant: Variant, case: Case, values: u32) -> f64 {
    let builder = bench(variant, case, values, true);
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
fn time(variant: Variant, case: Case, values: u32, traffic: bool) -> f64 {
    let daemon = bench(variant, case, values, false).start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        if traffic {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    daemon.load(GUEST, &[]).expect_ok();
                    daemon.unload(GUEST).expect_ok();
                }
            });
        }
        wait_until_done(&daemon);
        stop.store(true, Ordering::Relaxed);
    });
    let time = daemon.time_on_cpu(WORKERS);
    daemon.stop();
    time.as_secs_f64() * 1e9 / f64::from(values)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// The ratio of two medians, and the upper end of its 95 % interval by
/// resampling the rounds.
fn ratio(numerator: &[f64], denominator: &[f64]) -> (f64, f64) {
    // Any fixed sequence will do: the result for the same numbers is the same.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap_or(0) % below
    };
    let rounds = numerator.len();
    let of = |picked: &[usize]| {
        let part = |values: &[f64]| median(picked.iter().map(|&i| values[i]).collect());
        part(numerator) / part(denominator)
    };
    let mut resampled: Vec<f64> = (0..2000)
        .map(|_| of(&(0..rounds).map(|_| random(rounds)).collect::<Vec<_>>()))
        .collect();
    resampled.sort_by(f64::total_cmp);
    let all: Vec<usize> = (0..rounds).collect();
    (of(&all), resampled[resampled.len() * 95 / 100])
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
fn print_time(effort: &Effort) -> bool {
    let mut good = true;
    println!(
        "\n\
         Nanoseconds on a processor per dispatched value, median of {} rounds; ratios\n\
         with the upper end of their 95 % interval. \"again\" is stock once more, \"busy\"\n\
         is patched while a plugin is loaded and unloaded all the time.\n\
         write threads  writers    stock  patched  patched/stock    again/stock     busy/stock",
        effort.rounds
    );
    for &case in &effort.cases {
        // Stock, patched, stock again, patched and busy. Each goes first as often
        // as the others.
        let mut columns: [Vec<f64>; 4] = Default::default();
        for turn in 0..effort.rounds * columns.len() {
            let which = (turn / columns.len() + turn) % columns.len();
            let variant = if which % 2 == 0 {
                Variant::Stock
            } else {
                Variant::Patched
            };
            columns[which].push(time(variant, case, effort.values, which == 3));
        }
        let [stock, patched, again, busy] = &columns;
        let cell = |column: &[f64]| {
            let (ratio, bound) = ratio(column, stock);
            format!("{ratio:6.3} <{bound:6.3}")
        };
        println!(
            "{:13}  {:7}  {:7.0}  {:7.0}  {}  {}  {}{}",
            case.write_threads,
            case.writers,
            median(stock.clone()),
            median(patched.clone()),
            cell(patched),
            cell(again),
            cell(busy),
            judge(ratio(patched, stock).1, MOST_TIME, &mut good)
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
    let time = print_time(effort);
    print_lifecycle(effort);
    instructions && time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_a_ratio_grows_with_the_noise() {
        let one = [1.0; 7];
        let (quiet, quiet_bound) = ratio(&[2.0; 7], &one);
        assert!((quiet - 2.0).abs() < 1e-9 && (quiet_bound - 2.0).abs() < 1e-9);
        let (noisy, noisy_bound) = ratio(&[1.0, 1.4, 1.7, 2.0, 2.3, 2.6, 3.0], &one);
        assert!((noisy - 2.0).abs() < 1e-9);
        assert!(noisy_bound > 2.2, "{noisy_bound}");
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
