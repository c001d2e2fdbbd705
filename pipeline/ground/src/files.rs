//! Files that are read as a whole, and written whole or not at all.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::patience::saying;

/// Writes `bytes` to `path` through a temporary file beside it: written, synced to disk, then renamed.
///
/// # Errors
/// If the folder can't be written to or the disk is full; `path` is then as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link stays one, and what it leads to is written; into a pipe or a device one writes, and does not take its place.
    let target = match std::fs::canonicalize(path) {
        Ok(target) if !target.is_file() && !target.is_dir() => {
            return File::options().write(true).open(&target)?.write_all(bytes);
        }
        Ok(target) => target,
        Err(_) if path.is_symlink() => followed(path)?,
        Err(_) => path.to_owned(),
    };
    let path = target.as_path();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".writing-").permissions(readable_by_all()).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(folder)
}

/// Reads a file that a person named. It may be a pipe, in which nobody may ever write: that is said, not waited for in silence.
///
/// # Errors
/// If it can't be read, or has more than 4 GiB.
pub fn read_named(path: &Path) -> io::Result<Vec<u8>> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_NAMED_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_NAMED_BYTES {
            let why = format!("more than {MAX_NAMED_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(bytes)
    };
    if path.metadata()?.is_file() {
        return read();
    }
    let say = |waited: std::time::Duration| {
        let (path, seconds) = (path.display(), waited.as_secs());
        tracing::warn!("{path}: waiting for {seconds} s for someone to write into this pipe and close it");
    };
    saying(say, read)
}

/// As [`read_named`], of text.
///
/// # Errors
/// As [`read_named`], or if it is not UTF-8.
pub fn read_named_text(path: &Path) -> io::Result<String> {
    let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text");
    String::from_utf8(read_named(path)?).map_err(not_text)
}

/// Lists, configurations and ledgers have no more bytes.
const MAX_NAMED_BYTES: u64 = 4 << 30;

/// Where a link leads to that may lead to another, the last of which leads to nothing yet.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut place = path.to_owned();
    for _ in 0..MOST_LINKS {
        if !place.is_symlink() {
            return Ok(place);
        }
        let target = place.read_link()?;
        place = place.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "too many links lead to each other"))
}

/// As many links as Linux follows.
const MOST_LINKS: usize = 40;

/// Ends the last line of a file that lines are appended to, if a kill cut it short.
///
/// # Errors
/// If the file, which must be open for reading and appending, can't be read or written.
pub fn end_line(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    if last == [b'\n'] { Ok(()) } else { file.write_all(b"\n") }
}

/// Syncs a folder, so that a rename in it survives a power cut.
///
/// # Errors
/// If the folder can't be opened or synced.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Permissions of an ordinary new file before the umask; temporary files are private otherwise.
pub fn readable_by_all() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

/// BLAKE3 of `bytes`, in hex.
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
