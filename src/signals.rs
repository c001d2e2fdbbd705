//! Signals that ask a command to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use simclr_ground::error::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::output::INTERRUPTED;
use crate::telemetry::logging;

/// Whether somebody asked this process to stop; all who hold one share it.
#[derive(Clone, Default)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    /// Whether there is something to put in order first.
    in_order: Arc<AtomicBool>,
    /// What is done before the program ends at once.
    tidy: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Whether it gives way to any other that listens.
    is_fallback: bool,
}

impl Stop {
    /// Begins to listen: to SIGINT and SIGTERM, and to SIGHUP, SIGUSR1 and SIGUSR2, which terminals and schedulers send
    /// before they end a process, unless whoever started this process has it ignore them (`nohup`).
    ///
    /// Until [`Stop::in_order`] the first signal ends the program, whatever it waits for: there is nothing to lose yet.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default().listen()?;
        LISTENED.store(true, Ordering::Relaxed);
        Ok(stop)
    }

    fn listen(self) -> Result<Self> {
        let stop = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listened = listened_to();
        let entered = runtime.enter();
        let mut signals =
            listened.into_iter().map(|kind| Ok((kind, signal(kind)?))).collect::<std::io::Result<Vec<_>>>()?;
        drop(entered);
        let told = stop.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                loop {
                    let next = std::future::poll_fn(|context| {
                        let mut came = signals
                            .iter_mut()
                            .filter_map(|(kind, signal)| signal.poll_recv(context).is_ready().then_some(*kind));
                        came.next().map_or(std::task::Poll::Pending, std::task::Poll::Ready)
                    });
                    told.on_signal(next.await);
                }
            });
        })?;
        Ok(stop)
    }

    /// Ends the program at the first signal, once `tidy` has put things in order: whatever is being done is broken off.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn before_leaving(tidy: impl Fn() + Send + Sync + 'static) -> Result<()> {
        Self { tidy: Some(Arc::new(tidy)), ..Self::default() }.listen()?;
        LISTENED.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the program at the first signal, unless a command listens itself.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn unless_listened() -> Result<()> {
        Self { is_fallback: true, ..Self::default() }.listen().map(drop)
    }

    /// From here on a signal is a request, for whoever looks at [`Stop::flag`]: there is something to put in order.
    pub fn in_order(&self) {
        self.in_order.store(true, Ordering::Relaxed);
    }

    /// From here on a signal ends the program again.
    pub fn at_once(&self) {
        self.in_order.store(false, Ordering::Relaxed);
    }

    /// Whether somebody asked to stop.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// That, for those who know no signals.
    pub fn flag(&self) -> &Arc<AtomicBool> {
        &self.asked
    }

    fn on_signal(&self, kind: SignalKind) {
        if self.is_fallback && LISTENED.load(Ordering::Relaxed) {
            return;
        }
        let urges = [SignalKind::interrupt(), SignalKind::terminate()].contains(&kind);
        if !self.in_order.load(Ordering::Relaxed) {
            LEAVING.store(true, Ordering::Relaxed);
            logging::say("interrupted");
            self.tidy.iter().for_each(|tidy| tidy());
            leave();
        }
        // A scheduler's warning comes before its order to end, which is not meant to hurry what the warning began.
        match (self.asked.swap(true, Ordering::Relaxed), urges) {
            (true, true) if URGED.swap(true, Ordering::Relaxed) => leave(),
            (false, urges) => {
                URGED.store(urges, Ordering::Relaxed);
                if !is_spoken_for() {
                    logging::say("stopping after this step (press Ctrl-C again to stop immediately)");
                }
            }
            _ => {}
        }
    }
}

/// Whether a command listens to signals itself.
static LISTENED: AtomicBool = AtomicBool::new(false);

/// Whether the program is being ended by a signal.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Says that a command listens to signals itself, without a [`Stop`].
pub fn listens_itself() {
    LISTENED.store(true, Ordering::Relaxed);
}

/// Whether the program is being ended by a signal: what fails then fails for that.
pub fn is_leaving() -> bool {
    LEAVING.load(Ordering::Relaxed)
}

/// Whether SIGINT or SIGTERM was among what asked to stop.
static URGED: AtomicBool = AtomicBool::new(false);

/// Says to a rank which process launched it.
pub const LAUNCHER: &str = "SIMCLR_PIPELINE_LAUNCHER";

/// Whether a launcher of this program started this process, and speaks for it.
pub fn is_spoken_for() -> bool {
    std::env::var_os(LAUNCHER).is_some()
}

fn leave() -> ! {
    logging::finish();
    std::process::exit(INTERRUPTED.into())
}

/// SIGINT and SIGTERM, and of those that terminals and schedulers send those that this process is not to ignore.
pub fn listened_to() -> Vec<SignalKind> {
    let ignored = ignored_signals(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let also = [SignalKind::hangup(), SignalKind::user_defined1(), SignalKind::user_defined2()];
    let also = also.into_iter().filter(|kind| ignored >> (kind.as_raw_value() - 1) & 1 == 0);
    [SignalKind::interrupt(), SignalKind::terminate()].into_iter().chain(also).collect()
}

/// The signals that this process ignores, a bit each, as the system's text about it says.
fn ignored_signals(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read() {
        // As `nohup` leaves it: SIGHUP is signal 1.
        assert_eq!(ignored_signals("Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000000001\n"), 1);
        assert_eq!(ignored_signals(""), 0);
    }
}
