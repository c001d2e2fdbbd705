//! The folders of runs that were given none: `runs/train-N`.

use std::path::{Path, PathBuf};

use simclr_ground::error::{Error, Result};
use simclr_trainer::run::RunFolder;

const RUNS: &str = "runs";
const PREFIX: &str = "train-";

/// The next free folder, or the latest to go on with.
///
/// # Errors
/// If there is none to go on with.
pub fn folder(resume: bool) -> Result<PathBuf> {
    match resume {
        true => latest_of(|run| run.is_dir()),
        false => Ok(Path::new(RUNS).join(format!("{PREFIX}{}", numbers().into_iter().max().unwrap_or(0) + 1))),
    }
}

/// The latest run that has a checkpoint; one that failed before its first is passed over.
///
/// # Errors
/// If there is none.
pub fn latest() -> Result<PathBuf> {
    latest_of(|run| !RunFolder::at(run).checkpoints().list().is_empty())
}

fn latest_of(is_meant: impl Fn(&Path) -> bool) -> Result<PathBuf> {
    let mut numbers = numbers();
    numbers.sort_unstable();
    let runs = numbers.iter().rev().map(|number| Path::new(RUNS).join(format!("{PREFIX}{number}")));
    runs.into_iter().find(|run| is_meant(run)).ok_or_else(|| {
        let what = if numbers.is_empty() { "there is no" } else { "none has a checkpoint of" };
        Error::input(format!("no run was named, and {what} {RUNS}/{PREFIX}N here; name one with --run DIR"))
    })
}

fn numbers() -> Vec<u64> {
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse::<u64>().ok();
    std::fs::read_dir(RUNS).into_iter().flatten().flatten().filter_map(number).collect()
}
