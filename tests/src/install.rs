//! Where the build left its results.

use std::env;
use std::path::{Path, PathBuf};

/// One of the installed trees that `ci/build` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// collectd with this project's patches.
    Patched,
    /// The patched daemon, built with AddressSanitizer.
    Asan,
    /// The patched daemon, built with ThreadSanitizer.
    Tsan,
    /// collectd as Debian ships it, to compare with.
    Stock,
}

impl Variant {
    /// The name used in paths and messages.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Patched => "patched",
            Variant::Asan => "asan",
            Variant::Tsan => "tsan",
            Variant::Stock => "stock",
        }
    }

    fn build_command(self) -> &'static str {
        match self {
            Variant::Patched => "ci/build",
            Variant::Asan => "ci/build --sanitize=address",
            Variant::Tsan => "ci/build --sanitize=thread",
            Variant::Stock => "ci/build --stock",
        }
    }

    /// Flags with which a test plugin is compiled to fit this variant.
    pub(crate) fn compiler_flags(self) -> &'static [&'static str] {
        match self {
            Variant::Patched | Variant::Stock => &[],
            Variant::Asan => &["-fsanitize=address", "-fno-omit-frame-pointer"],
            Variant::Tsan => &["-fsanitize=thread"],
        }
    }

    /// The installation prefix.
    ///
    /// # Panics
    /// If there is no daemon in it; the message says how to build one.
    pub fn prefix(self) -> PathBuf {
        let build = build_dir();
        let prefix = match self {
            Variant::Patched => build.join("prefix"),
            other => build.join(other.name()).join("prefix"),
        };
        assert!(
            prefix.join("sbin/collectd").exists(),
            "there is no {} collectd in {}: run `{}` first, or name another build directory in \
             COLLECTD_LIVE_BUILD",
            self.name(),
            prefix.display(),
            self.build_command()
        );
        prefix
    }
}

/// The directory that holds all build results.
pub fn build_dir() -> PathBuf {
    env::var_os("COLLECTD_LIVE_BUILD").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("build"),
        PathBuf::from,
    )
}
