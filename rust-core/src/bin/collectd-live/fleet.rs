//! What is shown of a message to many hosts: a progress bar meanwhile, then a table.

use std::time::Duration;

use collectd_live::sender::{Ending, Reply, Summary, Target};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::output::{one_line, print, table};

/// How much of a result's message fits into the table.
const MESSAGE: usize = 60;

/// What is known of a host.
#[derive(Clone, Debug, Default)]
struct Row {
    code: Option<u32>,
    took: Option<Duration>,
    message: String,
}

/// Watches hosts answer.
pub(crate) struct Fleet<'a> {
    targets: &'a [Target],
    rows: Vec<Row>,
    bar: Option<ProgressBar>,
    json: bool,
    failed: usize,
    ended: Vec<bool>,
}

/// A host's line for programs.
#[derive(Serialize)]
struct Line<'a> {
    host: &'a str,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
}

impl<'a> Fleet<'a> {
    /// The bar is shown if standard error is a terminal.
    pub(crate) fn new(targets: &'a [Target], json: bool) -> Self {
        let all = u64::try_from(targets.len()).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
        // The template is a constant. Without it the bar looks plain.
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} hosts {msg}") {
            bar.set_style(style);
        }
        bar.tick();
        Self {
            targets,
            rows: vec![Row::default(); targets.len()],
            bar: Some(bar),
            json,
            failed: 0,
            ended: vec![false; targets.len()],
        }
    }

    /// A host has answered, or has not in time.
    pub(crate) fn ended(&mut self, target: usize, ending: Ending, reply: Option<Reply<'_>>) {
        if let Some(reply) = reply {
            self.rows[target] = Row {
                code: reply.answer.map(|answer| answer.code),
                took: Some(reply.took),
                message: reply
                    .answer
                    .map(|answer| answer.message.clone())
                    .unwrap_or_default(),
            };
        }
        let again = std::mem::replace(&mut self.ended[target], true);
        match (again, ending == Ending::Succeeded) {
            (false, false) => self.failed += 1,
            (true, true) => self.failed -= 1,
            _ => {}
        }
        if let Some(bar) = &self.bar {
            if !again {
                bar.inc(1);
            }
            if self.failed > 0 {
                bar.set_message(format!("({} did not succeed)", self.failed));
            }
        }
        if self.json {
            self.line(target, ending, reply);
        }
    }

    fn line(&self, target: usize, ending: Ending, reply: Option<Reply<'_>>) {
        let line = Line {
            host: self.targets[target].host.as_deref().unwrap_or_default(),
            outcome: ending.name(),
            seconds: reply.map(|reply| reply.took.as_secs_f64()),
            result: reply.and_then(|reply| RawValue::from_string(one_line(reply.json)).ok()),
        };
        // Strings and numbers can always be written.
        let json = serde_json::to_string(&line).unwrap_or_default();
        match &self.bar {
            Some(bar) => bar.suspend(|| print(&json)),
            None => print(&json),
        }
    }

    /// The run is over.
    pub(crate) fn finish(mut self, summary: &Summary) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.json {
            for (target, ending) in summary.endings.iter().enumerate() {
                if !self.ended[target] {
                    self.line(target, *ending, None);
                }
            }
            return;
        }
        let mut lines = vec![["HOST", "OUTCOME", "CODE", "SECONDS", "MESSAGE"].map(str::to_owned)];
        for ((target, row), ending) in self.targets.iter().zip(&self.rows).zip(&summary.endings) {
            lines.push([
                target.host.clone().unwrap_or_default(),
                ending.name().to_owned(),
                row.code.map(code).unwrap_or_default(),
                row.took
                    .map(|took| format!("{:.3}", took.as_secs_f64()))
                    .unwrap_or_default(),
                excerpt(&row.message),
            ]);
        }
        print(&table(&lines));
        print(&count(&summary.endings));
    }
}

/// The exit status as it is, other codes as they stand in documents.
pub(crate) fn code(code: u32) -> String {
    match code {
        0..=255 => code.to_string(),
        _ => format!("{code:#06x}"),
    }
}

/// The beginning of the first line.
fn excerpt(message: &str) -> String {
    let line = message.trim().lines().next().unwrap_or_default();
    match line.char_indices().nth(MESSAGE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// How many hosts ended how.
fn count(endings: &[Ending]) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for ending in endings {
        *counts.entry(*ending).or_insert(0_usize) += 1;
    }
    let parts: Vec<_> = counts
        .iter()
        .map(|(ending, count)| format!("{count} {}", ending.name()))
        .collect();
    let hosts = match endings.len() {
        1 => "host",
        _ => "hosts",
    };
    format!("{} {hosts}: {}", endings.len(), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_counted_by_how_it_ended() {
        let endings = [Ending::Failed, Ending::Succeeded, Ending::Succeeded];
        assert_eq!(count(&endings), "3 hosts: 2 succeeded, 1 failed");
        assert_eq!(count(&[Ending::NoAnswer]), "1 host: 1 no-answer");
    }

    #[test]
    fn a_message_is_cut_at_a_character() {
        assert_eq!(excerpt("\n one\ntwo"), "one");
        let long = "é".repeat(MESSAGE + 1);
        assert_eq!(excerpt(&long), format!("{}...", "é".repeat(MESSAGE)));
    }
}
