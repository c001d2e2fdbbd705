//! Progress of long work: a bar on a terminal, plain lines in a pipe.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::logging::{self, say};
use crate::terminal::row;

/// Time between two lines in a pipe.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The progress of one piece of work, on stderr.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    started: Instant,
    last_line: Mutex<Option<Instant>>,
    quiet: bool,
}

impl Progress {
    /// Progress of `what`, in `total` steps of which `done` are done already.
    pub fn new(what: &'static str, done: u64, total: u64, quiet: bool) -> Self {
        let bar = (std::io::stderr().is_terminal() && !quiet && !logging::is_json()).then(|| {
            let style = ProgressStyle::with_template("{prefix:>10} {bar:30} {pos}/{len} [{elapsed} < {eta}] {msg}")
                .expect("the template is valid");
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.with_style(style).with_prefix(what).with_position(done).with_elapsed(Duration::ZERO)
        });
        if let Some(bar) = &bar {
            bar.reset_eta();
        }
        Self { bar, what, started: Instant::now(), last_line: Mutex::new(None), quiet }
    }

    /// Says that `done` of `total` are done; `message` is made only when it is shown.
    pub fn set(&self, done: u64, total: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_length(total);
            bar.set_message(row(&message()));
            return;
        }
        let mut last = self.last_line.lock().expect("no panic while held");
        if self.quiet || (last.is_some_and(|at| at.elapsed() < LINE_EVERY) && done != total) {
            return;
        }
        *last = Some(Instant::now());
        let seconds = self.started.elapsed().as_secs_f64();
        say(&format!("{} {done}/{total} after {seconds:.0} s {}", self.what, message()));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
