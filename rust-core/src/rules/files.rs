//! The rule files of a directory: which there are, what they say, and when that changes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lua::Source;
use crate::files::{self, FileError, Privacy};

/// The largest rule file.
const MAX_FILE: u64 = 4 << 20;
/// How many files there may be, modules included.
const MAX_FILES: usize = 10_000;
/// How deep modules may lie.
const MAX_DEPTH: usize = 8;

/// What shows that a file has changed, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Option<Self>> {
        // A link stands for the file that it leads to.
        let found = fs::metadata(path)?;
        Ok(found.is_file().then(|| Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }))
    }
}

/// Reads a rule file or a module.
pub(super) fn read(path: &Path, strict: bool) -> Result<Vec<u8>, String> {
    let text = match strict {
        true => files::read(path, Privacy::Public),
        false => fs::read(path).map_err(|error| FileError::Io(path.to_owned(), error)),
    };
    text.map_err(|error| match error {
        FileError::Io(path, error) => format!("{} cannot be read: {error}", path.display()),
        refused @ FileError::Unsafe { .. } => format!("{refused}"),
    })
}

/// A directory that is looked at from time to time.
pub(super) struct Directory {
    path: PathBuf,
    /// Whether nothing counts that others than root and our own user could have written.
    strict: bool,
    stamps: BTreeMap<PathBuf, Stamp>,
    /// What was read, and what must not be read again as it was.
    texts: BTreeMap<PathBuf, (Stamp, Arc<[u8]>)>,
    problem: Option<String>,
}

/// What there is now.
pub(super) struct Found {
    /// The rule files, in the order of their names.
    pub(super) sources: Vec<Source>,
    /// What could not be read.
    pub(super) problems: Vec<String>,
    /// Whether a module is another one now, which any rule may have used.
    pub(super) modules_changed: bool,
}

impl Directory {
    pub(super) fn new(path: &Path, strict: bool) -> Self {
        Self {
            path: path.to_owned(),
            strict,
            stamps: BTreeMap::new(),
            texts: BTreeMap::new(),
            problem: None,
        }
    }

    /// Looks. Says what there is if that is something else than the last time.
    pub(super) fn look(&mut self) -> Option<Found> {
        let mut problems = Vec::new();
        let mut stamps = BTreeMap::new();
        let listed = list(&self.path, 0, &mut stamps)
            .map_err(|error| format!("{} cannot be read: {error}", self.path.display()));
        if let Err(problem) = listed {
            // What is in force stays so, while nobody can tell what there is.
            if self.problem.as_ref() == Some(&problem) {
                return None;
            }
            self.problem = Some(problem.clone());
            tracing::error!("{problem}");
            return None;
        }
        let refused = match self.strict {
            true => files::check_directory(&self.path).err(),
            false => None,
        };
        if let Some(refused) = refused {
            // What is in force may be of whoever could write to it.
            let problem = format!("no rule is used: {refused}");
            if self.problem.as_ref() == Some(&problem) {
                return None;
            }
            self.problem = Some(problem.clone());
            self.stamps.clear();
            self.texts.clear();
            return Some(Found {
                sources: Vec::new(),
                problems: vec![problem],
                modules_changed: true,
            });
        }
        self.problem = None;
        let modules = self.path.join("lib");
        if let Err(error) = list(&modules, MAX_DEPTH, &mut stamps) {
            if error.kind() != io::ErrorKind::NotFound {
                problems.push(format!("{} cannot be read: {error}", modules.display()));
            }
        }
        if stamps == self.stamps {
            return None;
        }
        let of_modules = |stamps: &BTreeMap<PathBuf, Stamp>| -> Vec<(PathBuf, Stamp)> {
            let modules = stamps.iter().filter(|(path, _)| path.starts_with(&modules));
            modules
                .map(|(path, stamp)| (path.clone(), *stamp))
                .collect()
        };
        let modules_changed = of_modules(&stamps) != of_modules(&self.stamps);
        let mut sources = Vec::new();
        let mut texts = BTreeMap::new();
        for (path, stamp) in &stamps {
            if path.parent() != Some(&self.path) {
                continue;
            }
            let text = match self.texts.get(path) {
                Some((before, text)) if before == stamp => Arc::clone(text),
                _ => match read(path, self.strict) {
                    Ok(text) => text.into(),
                    Err(problem) => {
                        problems.push(problem);
                        continue;
                    }
                },
            };
            texts.insert(path.clone(), (*stamp, Arc::clone(&text)));
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            sources.push(Source {
                name: name.into(),
                text,
            });
        }
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        self.texts = texts;
        self.stamps = stamps;
        Some(Found {
            sources,
            problems,
            modules_changed,
        })
    }
}

/// Finds Lua files, in directories down to this depth.
fn list(directory: &Path, depth: usize, stamps: &mut BTreeMap<PathBuf, Stamp>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || stamps.len() >= MAX_FILES {
            continue;
        }
        if path.extension() == Some(OsStr::new("lua")) {
            // One that goes away meanwhile was not there.
            if let Ok(Some(stamp)) = Stamp::of(&path) {
                if stamp.size <= MAX_FILE {
                    stamps.insert(path, stamp);
                }
            }
        } else if depth > 0 && path.is_dir() {
            list(&path, depth - 1, stamps)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(found: &Found) -> Vec<&str> {
        found.sources.iter().map(|source| &*source.name).collect()
    }

    #[test]
    fn what_changes_is_seen_and_what_does_not_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let new = dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, dir.path().join(name)).unwrap();
        };
        let mut directory = Directory::new(dir.path(), true);
        assert!(directory.look().is_none());
        write("b.lua", "1");
        write("a.lua", "2");
        write(".hidden.lua", "3");
        write("notes.txt", "4");
        fs::create_dir(dir.path().join("c.lua")).unwrap();
        let found = directory.look().unwrap();
        assert_eq!(names(&found), ["a", "b"]);
        assert!(!found.modules_changed);
        assert!(directory.look().is_none());
        write("a.lua", "5");
        let found = directory.look().unwrap();
        assert_eq!(&*found.sources[0].text, b"5");
        fs::create_dir(dir.path().join("lib")).unwrap();
        assert!(directory.look().is_none());
        write("lib/m.lua", "6");
        let found = directory.look().unwrap();
        assert_eq!(names(&found), ["a", "b"]);
        assert!(found.modules_changed);
        fs::remove_file(dir.path().join("a.lua")).unwrap();
        assert_eq!(names(&directory.look().unwrap()), ["b"]);
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_could_have_written_is_no_rule_until_it_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules");
        fs::create_dir(&path).unwrap();
        for name in ["a.lua", "b.lua"] {
            fs::write(path.join(name), "").unwrap();
            set(&path.join(name), 0o644);
        }
        set(&path.join("b.lua"), 0o664);
        let mut directory = Directory::new(&path, true);
        let found = directory.look().unwrap();
        assert_eq!(names(&found), ["a"]);
        let [problem] = &found.problems[..] else {
            panic!("{:?}", found.problems)
        };
        assert!(
            problem.contains("b.lua: can be written by others"),
            "{problem}"
        );
        assert!(problem.contains("run: chmod g-w "), "{problem}");
        set(&path.join("b.lua"), 0o644);
        assert_eq!(names(&directory.look().unwrap()), ["a", "b"]);
        // One that was good, and is not any more.
        set(&path.join("a.lua"), 0o646);
        assert_eq!(names(&directory.look().unwrap()), ["b"]);
        set(&path.join("a.lua"), 0o644);
        assert_eq!(names(&directory.look().unwrap()), ["a", "b"]);
        // Whoever may write to the directory can put others there.
        set(&path, 0o777);
        let found = directory.look().unwrap();
        assert!(found.sources.is_empty() && found.modules_changed);
        assert!(
            found.problems[0].contains("no rule is used"),
            "{:?}",
            found.problems
        );
        assert!(directory.look().is_none());
        set(&path, 0o755);
        assert_eq!(names(&directory.look().unwrap()), ["a", "b"]);
        // A developer who tries rules may have them as they are.
        set(&path, 0o777);
        set(&path.join("b.lua"), 0o666);
        assert_eq!(
            names(&Directory::new(&path, false).look().unwrap()),
            ["a", "b"]
        );
    }

    #[test]
    fn a_rule_file_of_another_user_or_elsewhere_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules");
        fs::create_dir(&path).unwrap();
        fs::write(dir.path().join("away.lua"), "").unwrap();
        std::os::unix::fs::symlink("../away.lua", path.join("link.lua")).unwrap();
        let mut directory = Directory::new(&path, true);
        let found = directory.look().unwrap();
        assert!(found.sources.is_empty());
        assert!(
            found.problems[0].contains("leads out of its directory"),
            "{:?}",
            found.problems
        );
        if !rustix::process::geteuid().is_root() {
            return;
        }
        fs::write(path.join("a.lua"), "").unwrap();
        std::os::unix::fs::chown(path.join("a.lua"), Some(65534), None).unwrap();
        let found = directory.look().unwrap();
        assert!(found.sources.is_empty());
        assert!(
            found.problems[0].contains("belongs to the user 65534"),
            "{:?}",
            found.problems
        );
    }

    #[test]
    fn a_directory_that_cannot_be_read_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules");
        let mut directory = Directory::new(&path, true);
        assert!(directory.look().is_none());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.lua"), "").unwrap();
        assert_eq!(names(&directory.look().unwrap()), ["a"]);
        fs::rename(&path, dir.path().join("away")).unwrap();
        assert!(directory.look().is_none());
    }
}
