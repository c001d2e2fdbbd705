//! The folders of runs that were given none: `runs/train-N`.

use std::path::{Path, PathBuf};

use simclr_ground::error::{Error, Result};

const RUNS: &str = "runs";
const PREFIX: &str = "train-";

/// The next free folder, or the latest to go on with.
///
/// # Errors
/// If there is none to go on with.
pub fn folder(resume: bool) -> Result<PathBuf> {
    match resume {
        true => latest(),
        false => Ok(Path::new(RUNS).join(format!("{PREFIX}{}", last_number().unwrap_or(0) + 1))),
    }
}

/// The latest run.
///
/// # Errors
/// If there is none.
pub fn latest() -> Result<PathBuf> {
    let last = last_number().ok_or_else(|| {
        Error::input(format!("no run was named, and there is no {RUNS}/{PREFIX}N here; name one with --run DIR"))
    })?;
    Ok(Path::new(RUNS).join(format!("{PREFIX}{last}")))
}

fn last_number() -> Option<u64> {
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse::<u64>().ok();
    std::fs::read_dir(RUNS).ok()?.flatten().filter_map(number).max()
}
