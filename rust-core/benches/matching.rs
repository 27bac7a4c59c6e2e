//! What it costs to find the handlers of a value: `cargo bench -p collectd-live --bench matching`.
//!
//! For 0 to 1,000 handlers, with values that nobody wants, that one handler wants, and that all want; first for
//! series that are known, then for series that have never been seen. At last with several threads at once, as
//! collectd's write threads are.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use collectd_live::rules::matching::{Field, Index, Match, Subject};

const SERIES: usize = 1000;
const ROUNDS: usize = 2000;
/// A value that nobody wants may cost so much.
const LIMIT: Duration = Duration::from_nanos(300);

/// Names as a server of a data centre has them.
struct Names(Vec<[String; 3]>);

impl Names {
    fn new(from: usize, count: usize) -> Self {
        let names = (from..from + count).map(|number| {
            [
                format!("interface-{}", number % 97),
                format!("enp{number}s0f1"),
                format!("rx-queue-{number}"),
            ]
        });
        Self(names.collect())
    }

    fn subjects(&self) -> Vec<Subject<'_>> {
        self.0
            .iter()
            .map(|[plugin, instance, type_instance]| Subject {
                fields: [
                    "web17.example.com",
                    plugin,
                    instance,
                    "if_octets",
                    type_instance,
                    plugin,
                    "",
                ],
                foreign: false,
            })
            .collect()
    }
}

/// Handlers for plugins that there are not, one in ten by a pattern.
fn unwanted(count: usize) -> Vec<Match> {
    (0..count)
        .map(|number| match number % 10 {
            0 => Match::default().with(Field::PluginInstance, &[format!("*x{number}")]),
            _ => Match::default()
                .with(Field::Plugin, &[format!("plugin-{number}")])
                .with(Field::TypeInstance, &["free", "used"]),
        })
        .collect()
}

fn nanoseconds(elapsed: Duration, times: usize) -> f64 {
    elapsed.as_secs_f64() * 1e9 / times as f64
}

/// The time of one look-up, in the best of some runs.
fn known(index: &Index, subjects: &[Subject<'_>], expected: usize) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        for _ in 0..ROUNDS {
            for subject in subjects {
                let found = index.find(black_box(subject));
                assert_eq!(found.map_or(0, |found| found.len()), expected);
            }
        }
        best = best.min(nanoseconds(started.elapsed(), ROUNDS * subjects.len()));
    }
    best
}

fn unknown(index: &Index, subjects: &[Subject<'_>]) -> f64 {
    let started = Instant::now();
    for subject in subjects {
        black_box(index.find(black_box(subject)));
    }
    nanoseconds(started.elapsed(), subjects.len())
}

fn in_threads(index: &Index, subjects: &[Subject<'_>], threads: usize) -> f64 {
    let start = Barrier::new(threads);
    let times: Vec<f64> = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    known(index, subjects, 0)
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().expect("no panic"))
            .collect()
    });
    times.into_iter().fold(0.0, f64::max)
}

fn main() {
    let names = Names::new(0, SERIES);
    let subjects = names.subjects();
    let strangers = Names::new(SERIES, SERIES);
    println!("ns a value     nobody wants   one wants   all want   nobody wants, series is new");
    let mut worst = 0.0_f64;
    for count in [0, 1, 10, 100, 1000] {
        let nobody = Index::new(unwanted(count));
        let cost = known(&nobody, &subjects, 0);
        worst = worst.max(cost);
        let mut one = unwanted(count.saturating_sub(1));
        one.push(Match::default().with(Field::Type, &["if_octets"]));
        let one = known(&Index::new(one), &subjects, 1);
        let all = known(&Index::new(vec![Match::default(); count]), &subjects, count);
        let new = unknown(&nobody, &strangers.subjects());
        println!("{count:>5} handlers {cost:>14.0} {one:>11.0} {all:>10.0} {new:>15.0}");
    }
    for threads in [2, 5] {
        let cost = in_threads(&Index::new(unwanted(1000)), &subjects, threads);
        println!("{threads:>5} threads  {cost:>14.0}");
    }
    assert!(
        worst < nanoseconds(LIMIT, 1),
        "a value that nobody wants costs {worst:.0} ns, which is more than {LIMIT:?}"
    );
}
