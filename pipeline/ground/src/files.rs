//! Files that are there whole or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

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
