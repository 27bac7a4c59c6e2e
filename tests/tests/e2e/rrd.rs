//! What RRDtool reads from its files.

use std::path::Path;
use std::process::Command;

/// The last update of a file of RRDtool, as it prints that.
pub(crate) fn last_update(file: &Path) -> String {
    let output = Command::new("rrdtool")
        .arg("lastupdate")
        .arg(file)
        .output()
        .expect("rrdtool (apt-get install rrdtool)");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
