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
    /// Values dispatched at a time to measure time, how often a daemon does that
    /// in a round, how many rounds there are, and how many sets of daemons.
    values: u32,
    bursts: u32,
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
            values: 2_000,
            bursts: 4,
            rounds: 3,
            sets: 24,
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
            values: 2_000,
            bursts: 4,
            rounds: 3,
            sets: 9,
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
fn time(daemon: &Daemon, effort: &Effort, traffic: bool) -> f64 {
    let before = daemon.time_on_cpu(WORKERS);
    let stop = AtomicBool::new(!traffic);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                daemon.load(GUEST, &[]).expect_ok();
                daemon.unload(GUEST).expect_ok();
            }
        });
        for _ in 0..effort.bursts {
            dispatch(daemon);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let time = daemon.time_on_cpu(WORKERS) - before;
    time.as_secs_f64() * 1e9 / f64::from(effort.values * effort.bursts)
}

/// The daemons that are compared. Two are the release: what one differs from the
/// other, the machine or luck makes.
const STOCK: usize = 0;
const PATCHED: usize = 1;
const AGAIN: usize = 2;
const BUSY: usize = 3;
const KINDS: usize = 4;

/// The median times of a set of daemons that take turns. A daemon's luck with
/// where its memory lies lasts as long as it runs, so a set says little by
/// itself. `number` is that of the set: each kind goes first as often as the
/// others.
fn times(number: usize, case: Case, effort: &Effort, fill_first: bool) -> [f64; KINDS] {
    let start = |which: usize| {
        let variant = match which {
            STOCK | AGAIN => Variant::Stock,
            _ => Variant::Patched,
        };
        let daemon = bench(variant, case, effort.values, fill_first).start();
        // The first time everything is new to the daemon.
        dispatch(&daemon);
        daemon
    };
    let mut daemons: [Option<Daemon>; KINDS] = Default::default();
    for turn in 0..KINDS {
        let which = (number + turn) % KINDS;
        daemons[which] = Some(start(which));
    }
    let daemons = daemons.map(|daemon| daemon.expect("all kinds are started"));

    let mut columns: [Vec<f64>; KINDS] = Default::default();
    for round in 0..effort.rounds {
        for turn in 0..KINDS {
            let which = (number + round + turn) % KINDS;
            columns[which].push(time(&daemons[which], effort, which == BUSY));
        }
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

/// The median of some values, and what the true one is below in 95 % of all cases,
/// whatever the distribution: that `n` values have fewer than `k` below the median
/// is as likely as fewer than `k` heads in `n` tosses of a coin. With less than
/// five values there is no such bound.
fn median_and_bound(mut values: Vec<f64>) -> (f64, f64) {
    let n = values.len();
    values.sort_by(f64::total_cmp);
    let mut likelihood = 0.5f64.powi(i32::try_from(n).expect("few values"));
    // The likelihood of at most `k` values below the median, from the top.
    let mut all = likelihood;
    let mut k = 0;
    while k < n && all <= 0.05 {
        k += 1;
        likelihood *= (n + 1 - k) as f64 / k as f64;
        all += likelihood;
    }
    let bound = if k == 0 { f64::INFINITY } else { values[n - k] };
    (median(values), bound)
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
         Nanoseconds on a processor per dispatched value: medians of {} sets of daemons, each\n\
         with {} rounds of {} times {} values; and ratios in a set with the 95 % bound of their\n\
         median. The base is the mean of two stock daemons, \"again\" one of them in relation\n\
         to the other, \"busy\" a patched daemon that loads and unloads all the time. The values\n\
         are written {}.\n\
         write threads  writers    stock  patched  patched/stock    again/stock     busy/stock",
        effort.sets,
        effort.rounds,
        effort.bursts,
        effort.values,
        if fill_first {
            "when the last one is in the queue"
        } else {
            "while they are dispatched: threads wait and are woken"
        }
    );
    for &case in &effort.cases {
        let sets: Vec<[f64; KINDS]> = (0..effort.sets)
            .map(|number| times(number, case, effort, fill_first))
            .collect();
        let all = |value: &dyn Fn(&[f64; KINDS]) -> f64| sets.iter().map(value).collect();
        let base = |set: &[f64; KINDS]| f64::midpoint(set[STOCK], set[AGAIN]);
        let cell = |ratios| {
            let (median, bound) = median_and_bound(ratios);
            format!("{median:6.3} <{bound:6.3}")
        };
        let patched: Vec<f64> = all(&|set| set[PATCHED] / base(set));
        println!(
            "{:13}  {:7}  {:7.0}  {:7.0}  {}  {}  {}{}",
            case.write_threads,
            case.writers,
            median(all(&base)),
            median(all(&|set| set[PATCHED])),
            cell(patched.clone()),
            cell(all(&|set| set[AGAIN] / set[STOCK])),
            cell(all(&|set| set[BUSY] / base(set))),
            judge(median_and_bound(patched).1, MOST_TIME, &mut good)
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
        Some("--time") => print_times(&Effort::full()),
        Some("--latency") => {
            print_lifecycle(&Effort::full());
            true
        }
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
    let times = print_times(effort);
    print_lifecycle(effort);
    instructions && times
}

fn print_times(effort: &Effort) -> bool {
    let filled = print_time(effort, true);
    let together = print_time(effort, false);
    filled && together
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_a_value_that_few_samples_of_noise_exceed() {
        let values = |n: u32| (1..=n).map(f64::from).collect();
        // At most one of five below the median: 6 of 32 cases. None: 1 of 32.
        assert_eq!(median_and_bound(values(5)), (3.0, 5.0));
        // At most 7 of 24: 3.2 % of all cases; 8: 7.6 %.
        assert_eq!(median_and_bound(values(24)), (12.5, 17.0));
        assert_eq!(median_and_bound(values(4)), (2.5, f64::INFINITY));
    }

    #[test]
    fn one_daemon_with_bad_luck_changes_little() {
        let mut values = vec![1.0; 24];
        values[7] = 9.0;
        assert_eq!(median_and_bound(values), (1.0, 1.0));
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
