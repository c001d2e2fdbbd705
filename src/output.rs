//! How a command answers: a result on stdout, an exit status.

use std::io::{Read, Seek, SeekFrom, Write};
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

/// How a file begins and ends: results say there what made them.
#[derive(Debug, Default)]
pub struct Ends {
    /// Its first bytes.
    pub start: Vec<u8>,
    /// Its last bytes, which may be some of the first.
    end: Vec<u8>,
}

impl Ends {
    /// So many bytes of a file's start, and of its end, say what it is: a Parquet file has its keys at the end.
    const BYTES: u64 = 64 << 10;

    fn read(path: &Path) -> std::io::Result<Self> {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        let mut ends = Self::default();
        (&mut file).take(Self::BYTES).read_to_end(&mut ends.start)?;
        file.seek(SeekFrom::Start(size.saturating_sub(Self::BYTES)))?;
        file.take(Self::BYTES).read_to_end(&mut ends.end)?;
        Ok(ends)
    }

    /// Whether the file begins with this.
    pub fn starts(&self, text: &str) -> bool {
        self.start.starts_with(text.as_bytes())
    }

    /// Whether this stands near its start or its end.
    pub fn contains(&self, text: &str) -> bool {
        [&self.start, &self.end].iter().any(|part| part.windows(text.len()).any(|found| found == text.as_bytes()))
    }
}

/// Whether a result may take the place of what is at `path`: of nothing, of a pipe or device, and of a result of the same
/// kind that this program wrote, as `is_one` tells. Something else was not meant.
///
/// # Errors
/// If it is something else.
pub fn check_replaceable(flag: &str, path: &Path, what: &str, is_one: impl Fn(&Ends) -> bool) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    match Ends::read(path) {
        Ok(ends) if ends.start.is_empty() || is_one(&ends) => Ok(()),
        _ => Err(Error::input(format!(
            "{flag} {}: already there, and not {what} that could be replaced; choose another name",
            path.display()
        ))),
    }
}
