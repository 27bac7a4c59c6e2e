//! The helper of collectd's plugin `monitor`: runs commands as its own children.

use std::process::ExitCode;

fn main() -> ExitCode {
    collectd_live::runner::helper_main()
}
