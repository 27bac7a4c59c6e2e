//! Values and notifications that were recorded: by collectd's csv plugin, or as JSON lines.
//!
//! A line of JSON is an object as write_http has them, or an array of such, or a notification:
//! `{"time", "interval", "host", "plugin", "plugin_instance", "type", "type_instance", "values", "dsnames", "dstypes"}`,
//! `{"time", "severity", "message", "host", …}`. Both may say `"origin"` and `"foreign"`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::{Notice, Origin, Sample, Series, Subject};
use crate::daemon::{DataSource, DataValue, Notification, Severity, SourceType};

/// The interval of a series of which there is one value only.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// How deep directories are looked at: the host's, the plugin's, and some above.
const MAX_DEPTH: usize = 16;
/// The last moment that is believed: the end of the year 9999.
const MAX_SECONDS: f64 = 253_402_300_799.0;

/// Reads a file, or every file of a directory, and puts what is in it into the order of time.
pub fn read(path: &Path) -> Result<Vec<Subject>, String> {
    let mut files = Vec::new();
    list(path, 0, &mut files)?;
    let mut subjects = Vec::new();
    for file in &files {
        let text = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let text = String::from_utf8_lossy(&text);
        let read = match text.trim_start().starts_with(['{', '[']) {
            true => json_lines(&text),
            false => csv(file, &text),
        };
        subjects.extend(read.map_err(|(line, what)| format!("{}:{line}: {what}", file.display()))?);
    }
    // What was recorded at the same time keeps its order.
    subjects.sort_by_key(Subject::time);
    Ok(subjects)
}

fn list(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", path.display());
    if !fs::metadata(path).map_err(wrong)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    if depth == MAX_DEPTH {
        return Err(format!("{}: is too deep a directory", path.display()));
    }
    let entries: Result<Vec<_>, _> = fs::read_dir(path).map_err(wrong)?.collect();
    let mut paths: Vec<_> = entries.map_err(wrong)?.iter().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        list(&path, depth + 1, files)?;
    }
    Ok(())
}

fn time(seconds: f64) -> Option<SystemTime> {
    let in_range = (0.0..=MAX_SECONDS).contains(&seconds);
    in_range.then(|| UNIX_EPOCH + Duration::from_secs_f64(seconds))
}

/// Reads a file of the csv plugin: `host/plugin-instance/type-instance-2026-01-31`.
fn csv(path: &Path, text: &str) -> Result<Vec<Subject>, (usize, String)> {
    let series = series_of_path(path).ok_or_else(|| {
        (
            1,
            "is neither JSON nor of the csv plugin: its path ends in no host/plugin/type"
                .to_owned(),
        )
    })?;
    let mut lines = text.lines().zip(1..);
    let header = lines
        .next()
        .map(|(line, _)| line.split(',').map(str::trim).collect::<Vec<_>>());
    let Some(["epoch", names @ ..]) = header.as_deref() else {
        return Err((
            1,
            "begins with no line `epoch,…' as the csv plugin writes it".to_owned(),
        ));
    };
    // The file does not tell counters from others.
    let source = |name: &&str| DataSource {
        name: (*name).to_owned(),
        type_: SourceType::Gauge,
    };
    let series = Arc::new(Series {
        sources: names.iter().map(source).collect(),
        ..series
    });
    let mut rows = Vec::new();
    for (line, number) in lines.filter(|(line, _)| !line.trim().is_empty()) {
        let wrong = |what: &str| (number, what.to_owned());
        let mut fields = line.split(',').map(|field| field.trim().parse::<f64>());
        let at = fields.next().and_then(Result::ok).and_then(time);
        let at = at.ok_or_else(|| wrong("begins with no time"))?;
        let values: Result<Vec<_>, _> = fields.collect();
        let values = values.map_err(|_| wrong("has a field that is no number"))?;
        if values.len() != names.len() {
            return Err(wrong("has another number of fields than the first line"));
        }
        rows.push((at, values));
    }
    let gaps = rows
        .windows(2)
        .filter_map(|pair| pair[1].0.duration_since(pair[0].0).ok());
    let interval = gaps.filter(|gap| !gap.is_zero()).min();
    let sample = |(time, values): (SystemTime, Vec<f64>)| {
        Subject::Metric(Arc::new(Sample {
            series: Arc::clone(&series),
            time,
            interval: interval.unwrap_or(DEFAULT_INTERVAL),
            values: values.into_iter().map(DataValue::Gauge).collect(),
        }))
    };
    Ok(rows.into_iter().map(sample).collect())
}

fn series_of_path(path: &Path) -> Option<Series> {
    let mut parts = path.iter().rev().map(|part| part.to_string_lossy());
    let (type_, plugin, host) = (parts.next()?, parts.next()?, parts.next()?);
    let split = |text: &str| match text.split_once('-') {
        Some((name, instance)) => (name.to_owned(), instance.to_owned()),
        None => (text.to_owned(), String::new()),
    };
    let (type_, type_instance) = split(without_date(&type_));
    let (plugin, plugin_instance) = split(&plugin);
    let origin = Origin {
        plugin: Some(plugin.as_str().into()),
        foreign: false,
    };
    Some(Series {
        host: host.into_owned(),
        plugin,
        plugin_instance,
        type_,
        type_instance,
        sources: Vec::new(),
        origin,
    })
}

/// The csv plugin begins a file each day.
fn without_date(name: &str) -> &str {
    let Some(at) = name.len().checked_sub("-2026-01-31".len()) else {
        return name;
    };
    let is_date = name.get(at..).is_some_and(|date| {
        date.bytes().enumerate().all(|(at, byte)| match at {
            0 | 5 | 8 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
    });
    match is_date {
        true => &name[..at],
        false => name,
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Many(Vec<Record>),
    One(Box<Record>),
}

#[derive(Deserialize)]
struct Record {
    time: f64,
    interval: Option<f64>,
    #[serde(default)]
    host: String,
    #[serde(default)]
    plugin: String,
    #[serde(default)]
    plugin_instance: String,
    #[serde(default, rename = "type")]
    type_: String,
    #[serde(default)]
    type_instance: String,
    values: Option<Vec<serde_json::Value>>,
    dsnames: Option<Vec<String>>,
    dstypes: Option<Vec<String>>,
    severity: Option<String>,
    #[serde(default)]
    message: String,
    origin: Option<String>,
    #[serde(default)]
    foreign: bool,
}

fn json_lines(text: &str) -> Result<Vec<Subject>, (usize, String)> {
    let mut subjects = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |what: String| (number, what);
        let line: Line =
            serde_json::from_str(line).map_err(|error| wrong(not_a_record(line, &error)))?;
        let records = match line {
            Line::Many(records) => records,
            Line::One(record) => vec![*record],
        };
        for record in records {
            subjects.push(record.subject().map_err(|what| wrong(what.to_owned()))?);
        }
    }
    Ok(subjects)
}

/// What is wrong with a line. Of alternatives, the library says only that none fits.
fn not_a_record(line: &str, error: &serde_json::Error) -> String {
    match serde_json::from_str::<Record>(line) {
        Err(of_one) if !line.trim_start().starts_with('[') => of_one.to_string(),
        _ => error.to_string(),
    }
}

impl Record {
    fn subject(self) -> Result<Subject, &'static str> {
        let time = time(self.time).ok_or("its time is not one since 1970")?;
        let origin = Origin {
            plugin: Some(self.origin.as_deref().unwrap_or(&self.plugin).into()),
            foreign: self.foreign,
        };
        if let Some(severity) = &self.severity {
            let severity = match severity.to_ascii_uppercase().as_str() {
                "FAILURE" => Severity::Failure,
                "WARNING" => Severity::Warning,
                "OKAY" => Severity::Okay,
                _ => return Err("its severity is none of FAILURE, WARNING and OKAY"),
            };
            return Ok(Subject::Notification(Arc::new(Notice {
                notification: Notification {
                    severity,
                    time,
                    message: self.message,
                    host: self.host,
                    plugin: self.plugin,
                    plugin_instance: self.plugin_instance,
                    type_: self.type_,
                    type_instance: self.type_instance,
                },
                origin,
            })));
        }
        let raw = self.values.ok_or("it has neither values nor a severity")?;
        let types = self
            .dstypes
            .unwrap_or_else(|| vec!["gauge".to_owned(); raw.len()]);
        let names = self.dsnames.unwrap_or_else(|| match raw.len() {
            1 => vec!["value".to_owned()],
            many => (0..many).map(|number| number.to_string()).collect(),
        });
        if types.len() != raw.len() || names.len() != raw.len() {
            return Err("its values, dsnames and dstypes are not equally many");
        }
        let mut values = Vec::new();
        let mut sources = Vec::new();
        for ((raw, type_), name) in raw.into_iter().zip(types).zip(names) {
            const WRONG: &str = "a value is not of its dstype";
            let value = match type_.as_str() {
                "gauge" if raw.is_null() => DataValue::Gauge(f64::NAN),
                "gauge" => DataValue::Gauge(raw.as_f64().ok_or(WRONG)?),
                "derive" => DataValue::Derive(raw.as_i64().ok_or(WRONG)?),
                "counter" => DataValue::Counter(raw.as_u64().ok_or(WRONG)?),
                "absolute" => DataValue::Absolute(raw.as_u64().ok_or(WRONG)?),
                _ => return Err("a dstype is none of gauge, derive, counter and absolute"),
            };
            values.push(value);
            sources.push(DataSource {
                name,
                type_: value.source_type(),
            });
        }
        let interval = match self.interval {
            None => DEFAULT_INTERVAL,
            Some(seconds) if (0.001..=1e9).contains(&seconds) => Duration::from_secs_f64(seconds),
            Some(_) => return Err("its interval is none"),
        };
        Ok(Subject::Metric(Arc::new(Sample {
            series: Arc::new(Series {
                host: self.host,
                plugin: self.plugin,
                plugin_instance: self.plugin_instance,
                type_: self.type_,
                type_instance: self.type_instance,
                sources,
                origin,
            }),
            time,
            interval,
            values,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_files_tell_their_series_by_their_path() {
        let directory = tempfile::tempdir().unwrap();
        let plugin = directory.path().join("node1.example.com/interface-eth0");
        fs::create_dir_all(&plugin).unwrap();
        fs::write(
            plugin.join("if_octets-2026-01-31"),
            "epoch,rx,tx\n100.500,1,nan\n110.500,2.5,3\n",
        )
        .unwrap();
        fs::write(plugin.join("if_errors-a-b"), "epoch,value\n105,7\n").unwrap();
        let subjects = read(directory.path()).unwrap();
        let names: Vec<_> = subjects.iter().map(Subject::identifier).collect();
        assert_eq!(
            names,
            [
                "node1.example.com/interface-eth0/if_octets",
                "node1.example.com/interface-eth0/if_errors-a-b",
                "node1.example.com/interface-eth0/if_octets",
            ]
        );
        let Subject::Metric(sample) = &subjects[2] else {
            panic!()
        };
        assert_eq!(
            sample.values,
            [DataValue::Gauge(2.5), DataValue::Gauge(3.0)]
        );
        assert_eq!(sample.interval, Duration::from_secs(10));
        assert_eq!(sample.time, UNIX_EPOCH + Duration::from_millis(110_500));
        assert_eq!(sample.series.sources[1].name, "tx");
    }

    #[test]
    fn lines_of_json_are_values_and_notifications() {
        let text = concat!(
            r#"[{"values":[1, 18446744073709551615],"dstypes":["derive","counter"],"dsnames":["a","b"],"time":5.5,"interval":30,"#,
            r#""host":"h","plugin":"p","plugin_instance":"i","type":"t","type_instance":""}]"#,
            "\n\n",
            r#"{"time":1,"severity":"failure","message":"down","host":"h","plugin":"ping","origin":"network","foreign":true}"#,
        );
        let subjects = json_lines(text).unwrap();
        let Subject::Metric(sample) = &subjects[0] else {
            panic!()
        };
        assert_eq!(
            sample.values,
            [DataValue::Derive(1), DataValue::Counter(u64::MAX)]
        );
        assert_eq!(sample.interval, Duration::from_secs(30));
        let Subject::Notification(notice) = &subjects[1] else {
            panic!()
        };
        assert_eq!(
            (notice.notification.severity, &*notice.notification.message),
            (Severity::Failure, "down")
        );
        assert_eq!(
            (notice.origin.plugin.as_deref(), notice.origin.foreign),
            (Some("network"), true)
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let wrong = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let prefix = format!("{}:", path.display());
            let message = read(&path).unwrap_err();
            message.strip_prefix(&prefix).expect(&message).to_owned()
        };
        for (name, text, expected) in [
            (
                "h/p/t",
                "epoch,value\n1,2\n2\n",
                "3: has another number of fields than the first line",
            ),
            ("h/p/t", "epoch,value\nx,2\n", "2: begins with no time"),
            ("h/p/t", "epoch,value\n1e300,2\n", "2: begins with no time"),
            (
                "h/p/t",
                "epoch,value\n1,x\n",
                "2: has a field that is no number",
            ),
            (
                "h/p/t",
                "1,2\n",
                "1: begins with no line `epoch,…' as the csv plugin writes it",
            ),
            (
                "j",
                "{\"time\":1}",
                "1: it has neither values nor a severity",
            ),
            (
                "j",
                "{\"time\":-1,\"values\":[]}",
                "1: its time is not one since 1970",
            ),
            (
                "j",
                "{\"time\":1,\"values\":[\"x\"]}",
                "1: a value is not of its dstype",
            ),
            (
                "j",
                "{\"time\":1,\"values\":[1],\"dsnames\":[]}",
                "1: its values, dsnames and dstypes are not equally many",
            ),
            (
                "j",
                "{\"time\":1,\"severity\":\"BAD\"}",
                "1: its severity is none of FAILURE, WARNING and OKAY",
            ),
            (
                "j",
                "{\"values\":[1]}",
                "1: missing field `time` at line 1 column 14",
            ),
        ] {
            assert_eq!(wrong(name, text), expected);
        }
        assert!(read(&directory.path().join("gone")).is_err());
    }
}
