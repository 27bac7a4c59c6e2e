//! Files that decide what is run, or that are secret: opened and checked as sshd does with `StrictModes`.
//!
//! A file is trusted as far as everybody who could have written it: its owner, and whoever may write to it or to
//! a directory above it. That may be root and the user that the daemon runs as, and nobody else.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{open, openat, openat2, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

/// More than any such file needs; keeps a mistake like `/dev/zero` from filling the memory.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// What becomes of a file that others may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privacy {
    /// Everybody may read it.
    Public,
    /// Others must not read it; a group may.
    Secret,
    /// Nobody but its owner may read it.
    Private,
}

/// Why a file is not taken. `Display` names the file, the cause, and what mends it.
#[derive(Debug)]
pub enum FileError {
    /// It could not be opened or read.
    Io(PathBuf, io::Error),
    /// It was there, but is not safe.
    Unsafe {
        /// The file or the directory that is at fault.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// The command that mends it.
        remedy: String,
    },
}

impl FileError {
    /// Whether it is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, FileError::Io(_, error) if error.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileError::Io(path, error) => write!(f, "{}: {error}", path.display()),
            FileError::Unsafe { path, what, remedy } => {
                write!(f, "{}: {what} (run: {remedy})", path.display())
            }
        }
    }
}

impl std::error::Error for FileError {}

/// Reads a file that nobody but root and our own user can have written.
pub fn read(path: &Path, privacy: Privacy) -> Result<Vec<u8>, FileError> {
    let file = open_checked(path, privacy)?;
    let fail = |error| FileError::Io(path.to_owned(), error);
    let mut text = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut text)
        .map_err(fail)?;
    if text.len() as u64 > MAX_FILE {
        let what = format!("is larger than {MAX_FILE} bytes");
        return Err(fail(io::Error::other(what)));
    }
    Ok(text)
}

/// Opens a file for reading that nobody but root and our own user can have written.
pub fn open_checked(path: &Path, privacy: Privacy) -> Result<File, FileError> {
    let fail = |error: io::Error| FileError::Io(path.to_owned(), error);
    let file = open_beneath(path).map_err(|error| match error {
        Errno::XDEV | Errno::LOOP => fail(io::Error::other(
            "is a link that leads out of its directory",
        )),
        error => fail(error.into()),
    })?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(fail(io::Error::other("is not a regular file")));
    }
    check_owner(path, metadata.uid())?;
    let forbidden = match privacy {
        Privacy::Public => 0o022,
        Privacy::Secret => 0o026,
        Privacy::Private => 0o066,
    };
    check_mode(path, metadata.mode(), forbidden)?;
    // Where it really is: links may have led there, and whoever can replace a directory can replace the file.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let real = std::fs::read_link(link).map_err(fail)?;
    check_parents(&real)?;
    Ok(file)
}

/// Checks a file that is open already, to which we write: nobody but root and our own user can have written it.
pub(crate) fn check_own(path: &Path, file: &File) -> Result<(), FileError> {
    let fail = |error| FileError::Io(path.to_owned(), error);
    let metadata = file.metadata().map_err(fail)?;
    check_owner(path, metadata.uid())?;
    check_mode(path, metadata.mode(), 0o022)?;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    check_parents(&std::fs::read_link(link).map_err(fail)?)
}

/// Makes a file that was not there, for its owner only.
pub fn create_private(path: &Path, text: &[u8]) -> Result<(), FileError> {
    write_new(path, text, 0o600).map_err(|error| FileError::Io(path.to_owned(), error))
}

/// Replaces a file as a whole: whoever reads it sees the old or the new one. Its mode stays; a new one can be read
/// by everybody.
pub fn replace(path: &Path, text: &[u8]) -> Result<(), FileError> {
    let fail = |error| FileError::Io(path.to_owned(), error);
    let mode = std::fs::metadata(path).map_or(0o644, |metadata| metadata.mode() & 0o777);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let written = write_new(&new, text, mode).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        // What is left of it would only be in the way.
        drop(std::fs::remove_file(&new));
    }
    written.map_err(fail)
}

fn write_new(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(text)?;
    file.sync_all()
}

/// Checks a directory and every one above it: what is in it is what root or our own user have put there.
pub(crate) fn check_directory(path: &Path) -> Result<(), FileError> {
    let real = path
        .canonicalize()
        .map_err(|error| FileError::Io(path.to_owned(), error))?;
    check_parents(&real.join("entry"))
}

/// Checks every directory above a path.
pub(crate) fn check_parents(real: &Path) -> Result<(), FileError> {
    for directory in real.ancestors().skip(1) {
        let metadata = std::fs::symlink_metadata(directory)
            .map_err(|error| FileError::Io(directory.to_owned(), error))?;
        check_owner(directory, metadata.uid())?;
        // In a directory with the sticky bit only the owner of an entry may replace it, and each is checked.
        if metadata.mode() & 0o1000 == 0 {
            check_mode(directory, metadata.mode(), 0o022)?;
        }
    }
    Ok(())
}

/// Opens a file without following a link out of its directory, and without waiting for anything.
fn open_beneath(path: &Path) -> rustix::io::Result<OwnedFd> {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(Errno::ISDIR),
    };
    let name = path.file_name().ok_or(Errno::ISDIR)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let directory = open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(&directory, name, flags, Mode::empty(), resolve) {
        // A kernel before 5.6, or a sandbox that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            openat(&directory, name, flags | OFlags::NOFOLLOW, Mode::empty())
        }
        opened => opened,
    }
}

fn check_owner(path: &Path, owner: u32) -> Result<(), FileError> {
    let own = geteuid().as_raw();
    if owner == 0 || owner == own {
        return Ok(());
    }
    Err(FileError::Unsafe {
        path: path.to_owned(),
        what: format!("belongs to the user {owner}, and not to root or the daemon's user"),
        remedy: format!("chown {own} {}", quoted(path)),
    })
}

fn check_mode(path: &Path, mode: u32, forbidden: u32) -> Result<(), FileError> {
    let wrong = mode & forbidden;
    if wrong == 0 {
        return Ok(());
    }
    let mut change = Vec::new();
    for (class, shift) in [("g", 3), ("o", 0)] {
        let bits = wrong >> shift & 7;
        if bits != 0 {
            let read = if bits & 4 == 0 { "" } else { "r" };
            let write = if bits & 2 == 0 { "" } else { "w" };
            change.push(format!("{class}-{read}{write}"));
        }
    }
    let what = match wrong & 0o022 {
        0 => "can be read by others",
        _ => "can be written by others",
    };
    Err(FileError::Unsafe {
        path: path.to_owned(),
        what: format!("{what} (mode {:04o})", mode & 0o7777),
        remedy: format!("chmod {} {}", change.join(","), quoted(path)),
    })
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::symlink;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "text").unwrap();
        set(&file, 0o644);
        (dir, file)
    }

    #[test]
    fn a_file_is_read_if_nobody_else_can_have_written_it() {
        let (_dir, file) = directory();
        assert_eq!(read(&file, Privacy::Public).unwrap(), b"text");
        for (mode, remedy) in [
            (0o664, "chmod g-w "),
            (0o646, "chmod o-w "),
            (0o666, "chmod g-w,o-w "),
        ] {
            set(&file, mode);
            let error = read(&file, Privacy::Public).unwrap_err().to_string();
            assert!(error.contains("can be written by others"), "{error}");
            assert!(error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn a_secret_is_not_for_others_and_a_private_one_for_no_group() {
        let (_dir, file) = directory();
        let error = read(&file, Privacy::Secret).unwrap_err().to_string();
        assert!(
            error.contains("can be read by others (mode 0644) (run: chmod o-r "),
            "{error}"
        );
        set(&file, 0o640);
        assert!(read(&file, Privacy::Secret).is_ok());
        let error = read(&file, Privacy::Private).unwrap_err().to_string();
        assert!(error.contains("chmod g-r "), "{error}");
        set(&file, 0o600);
        assert!(read(&file, Privacy::Private).is_ok());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_as_bad_unless_it_is_sticky() {
        let (dir, _) = directory();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let file = inner.join("file");
        fs::write(&file, "text").unwrap();
        set(&inner, 0o777);
        let error = read(&file, Privacy::Public).unwrap_err().to_string();
        assert!(error.contains("inner: can be written by others"), "{error}");
        set(&inner, 0o1777);
        assert!(read(&file, Privacy::Public).is_ok());
    }

    #[test]
    fn links_are_followed_within_their_directory_only() {
        let (dir, file) = directory();
        let link = dir.path().join("link");
        symlink("file", &link).unwrap();
        assert!(read(&link, Privacy::Public).is_ok());
        fs::remove_file(&link).unwrap();
        symlink("/etc/hostname", &link).unwrap();
        let error = read(&link, Privacy::Public).unwrap_err().to_string();
        assert!(error.contains("leads out of its directory"), "{error}");
        fs::remove_file(&link).unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let link = dir.path().join("sub/link");
        symlink("../file", &link).unwrap();
        assert!(read(&link, Privacy::Public).is_err());
        // The way to the directory may have links, if what they lead to is safe.
        symlink(dir.path(), dir.path().join("sub/way")).unwrap();
        assert!(read(&dir.path().join("sub/way/file"), Privacy::Public).is_ok());
        drop(file);
    }

    #[test]
    fn what_is_no_file_is_not_read_and_not_waited_for() {
        let (dir, _) = directory();
        let error = read(dir.path(), Privacy::Public).unwrap_err().to_string();
        assert!(error.contains("regular file"), "{error}");
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let error = read(&fifo, Privacy::Public).unwrap_err().to_string();
        assert!(error.contains("regular file"), "{error}");
        let missing = read(&dir.path().join("missing"), Privacy::Public).unwrap_err();
        assert!(missing.is_missing());
    }

    #[test]
    fn a_file_of_another_user_is_refused_with_the_remedy() {
        if !geteuid().is_root() {
            return;
        }
        let (_dir, file) = directory();
        std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
        let error = read(&file, Privacy::Public).unwrap_err().to_string();
        assert!(error.contains("belongs to the user 65534"), "{error}");
        assert!(error.contains("(run: chown 0 /"), "{error}");
    }

    #[test]
    fn a_new_file_is_private_and_a_replaced_one_keeps_its_mode() {
        let (dir, file) = directory();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let new = dir.path().join("new");
        create_private(&new, b"secret").unwrap();
        assert_eq!(
            (fs::read(&new).unwrap(), mode(&new)),
            (b"secret".to_vec(), 0o600)
        );
        let error = create_private(&new, b"other").unwrap_err().to_string();
        assert!(error.contains("exists"), "{error}");
        assert_eq!(fs::read(&new).unwrap(), b"secret");
        symlink("elsewhere", dir.path().join("link")).unwrap();
        assert!(create_private(&dir.path().join("link"), b"x").is_err());
        set(&file, 0o640);
        replace(&file, b"other").unwrap();
        assert_eq!(
            (fs::read(&file).unwrap(), mode(&file)),
            (b"other".to_vec(), 0o640)
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_path_is_quoted_for_the_shell() {
        assert_eq!(quoted(Path::new("/a/b-c.d")), "/a/b-c.d");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
