//! Reads what the plugin `seqsink` wrote down.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::eventually;

/// The file in which `seqsink` records every value of `seqread`.
#[derive(Clone, Debug)]
pub struct SequenceLog {
    path: PathBuf,
}

/// The numbers of one series, in the order in which they were written.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// Pairs of the number and the time at which it was read.
    pub records: Vec<(u64, f64)>,
}

impl SequenceLog {
    /// The record in the file at `path`, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        SequenceLog {
            path: path.to_owned(),
        }
    }

    /// Everything recorded so far, by series.
    ///
    /// # Panics
    /// If a complete line of the file is not a record.
    pub fn read(&self) -> BTreeMap<String, Sequence> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        // The last line may be in the middle of being written.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut all: BTreeMap<String, Sequence> = BTreeMap::new();
        for line in complete.lines() {
            let mut words = line.split(' ');
            let mut record = || {
                let series = words.next()?;
                Some((
                    series,
                    words.next()?.parse().ok()?,
                    words.next()?.parse().ok()?,
                ))
            };
            let Some((series, number, time)) = record() else {
                panic!("seqsink wrote a line that is no record: {line:?}");
            };
            all.entry(series.to_owned())
                .or_default()
                .records
                .push((number, time));
        }
        all
    }

    /// The numbers of one series so far.
    pub fn series(&self, name: &str) -> Sequence {
        self.read().remove(name).unwrap_or_default()
    }

    /// Waits until a series has got `more` numbers beyond those it has now.
    #[track_caller]
    pub fn wait_for_more(&self, name: &str, more: usize) -> Sequence {
        let before = self.series(name).records.len();
        eventually(
            &format!("{more} more numbers of the series {name} at the writer"),
            Duration::from_secs(20),
            || Some(self.series(name)).filter(|s| s.records.len() >= before + more),
        )
    }
}

impl Sequence {
    /// Checks that the numbers are 0, 1, 2 … without a gap, each exactly once.
    /// Their order may differ: several threads write.
    ///
    /// # Panics
    /// If one is missing or came twice.
    #[track_caller]
    pub fn assert_complete(&self) {
        let mut numbers: Vec<u64> = self.records.iter().map(|&(number, _)| number).collect();
        numbers.sort_unstable();
        assert!(!numbers.is_empty(), "no number arrived at the writer");
        for (expected, &number) in (0..).zip(&numbers) {
            assert!(
                number >= expected,
                "the number {number} arrived twice (of {})",
                numbers.len()
            );
            assert!(
                number <= expected,
                "the numbers from {expected} to {} never arrived (of {})",
                number - 1,
                numbers.len()
            );
        }
    }

    /// The longest time between two consecutive numbers.
    pub fn longest_pause(&self) -> Duration {
        let mut times: Vec<f64> = self.records.iter().map(|&(_, time)| time).collect();
        times.sort_unstable_by(f64::total_cmp);
        let seconds = times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .fold(0.0, f64::max);
        Duration::from_secs_f64(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(numbers: &[u64]) -> Sequence {
        Sequence {
            records: numbers.iter().map(|&number| (number, 0.0)).collect(),
        }
    }

    #[test]
    fn numbers_in_another_order_are_complete() {
        sequence(&[1, 0, 2]).assert_complete();
    }

    #[test]
    #[should_panic(expected = "the numbers from 1 to 2 never arrived")]
    fn a_gap_is_noticed() {
        sequence(&[0, 3]).assert_complete();
    }

    #[test]
    #[should_panic(expected = "the number 1 arrived twice")]
    fn a_duplicate_is_noticed() {
        sequence(&[0, 1, 1, 2]).assert_complete();
    }

    #[test]
    #[should_panic(expected = "no number arrived")]
    fn silence_is_noticed() {
        sequence(&[]).assert_complete();
    }
}
