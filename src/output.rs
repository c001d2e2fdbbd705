//! How a command answers: a result on stdout, an exit status.

use std::io::{Read, Write};
use std::path::Path;

use serde::Serialize;
use simclr_ground::error::{Error, Result};

use crate::terminal::plain;

/// The exit code of a clean stop by a signal.
pub const INTERRUPTED: u8 = 130;

/// How a command ended when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done; exit code 0.
    Success,
    /// Done, and what was looked at is not as it should be; exit code 1.
    ProblemsFound,
    /// Stopped by a signal, cleanly; exit code 130.
    Interrupted,
}

/// How a command answers.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// One JSON object on stdout instead of text.
    pub json: bool,
    /// No progress.
    pub quiet: bool,
}

impl Output {
    /// Prints a command's result: the object, or the text.
    ///
    /// # Errors
    /// If stdout can't be written, as when it is a file on a full disk. A reader that has gone away is no failure of ours.
    pub fn result(self, object: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let written = match self.json {
            true => serde_json::to_writer(&mut out, object).map_err(Into::into).and_then(|()| writeln!(out)),
            false => writeln!(out, "{}", plain(&text())),
        };
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::runtime(format!("cannot write the result to stdout: {error}")))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a result may take the place of what is at `path`: of nothing, of a pipe or device, and of a result of the same
/// kind, whose first bytes `is_one`. Something else was not meant.
///
/// # Errors
/// If it is something else.
pub fn check_replaceable(flag: &str, path: &Path, what: &str, is_one: impl Fn(&[u8]) -> bool) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(START).read_to_end(&mut start));
    match read {
        Ok(_) if start.is_empty() || is_one(&start) => Ok(()),
        _ => Err(Error::input(format!(
            "{flag} {}: already there, and not {what} that could be replaced; choose another name",
            path.display()
        ))),
    }
}

/// So many bytes of a file say what it is.
const START: u64 = 4096;
