//! Makes a storm of operations in a daemon; `ci/storm` builds what is needed.

use std::env;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use collectd_live_tests::{Storm, Variant};

const USAGE: &str =
    "usage: storm [--variant=asan|tsan|plain|valgrind] [--operations=N] [--seed=S] [--abrupt]";

fn main() -> ExitCode {
    match parse(env::args().skip(1)) {
        Ok(storm) => {
            storm.run();
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("storm: {message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Storm, String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970");
    let mut storm = Storm {
        variant: Variant::Asan,
        valgrind: false,
        operations: 10_000,
        seed: u64::from(now.subsec_nanos()),
        abrupt: false,
    };
    for argument in arguments {
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|e| format!("{argument:?} has no number: {e}"))
        };
        match argument.split_once('=') {
            Some(("--variant", name)) => {
                storm.valgrind = name == "valgrind";
                storm.variant = match name {
                    "asan" => Variant::Asan,
                    "tsan" => Variant::Tsan,
                    "plain" | "valgrind" => Variant::Patched,
                    _ => return Err(format!("there is no variant {name:?}")),
                };
            }
            Some(("--operations", text)) => {
                storm.operations = u32::try_from(number(text)?)
                    .map_err(|e| format!("{argument:?} is too much: {e}"))?;
            }
            Some(("--seed", text)) => storm.seed = number(text)?,
            None if argument == "--abrupt" => storm.abrupt = true,
            _ => return Err(format!("{argument:?} is not understood")),
        }
    }
    Ok(storm)
}
