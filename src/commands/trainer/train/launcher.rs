//! `train --nproc N`: N ranks on this machine, watched, and started anew from the last checkpoint if one of them fails.

use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use simclr_ground::error::{Context, Error, Result};
use simclr_trainer::distributed::LaunchersStore;

use crate::output::ExitStatus;
use crate::signals::LAUNCHER;
use crate::telemetry::logging::say;

/// How long the other ranks may take to end by themselves once one has failed: they call the roll, and say what they saw.
const GRACE: Duration = Duration::from_secs(8);

/// Starts `count` ranks of this program with the arguments of this process, `--nproc` and `--restarts` left out, and waits
/// until they are done or `stop` is set. When one fails, all are started anew, at most `restarts` times.
///
/// # Errors
/// If ranks can't be started, or have failed too often.
pub fn run(count: u32, restarts: u32, stop: &AtomicBool) -> Result<ExitStatus> {
    if count == 0 {
        return Err(Error::input("--nproc must be at least 1"));
    }
    let store = LaunchersStore::open()?;
    for attempt in 0..=restarts {
        let mut ranks = start(count, attempt, store.port)?;
        let failed = watch(&mut ranks, stop);
        let Some((rank, status)) = failed else { return Ok(ExitStatus::Success) };
        match status.code() {
            Some(130) => return Ok(ExitStatus::Interrupted),
            // Wrong input stays wrong. After a step it was not: what is missing then may come back.
            Some(2) if attempt == 0 => {
                return Err(Error::input(format!("rank {rank} failed to start (see error above)")));
            }
            _ if attempt == restarts => return Err(Error::runtime(format!("rank {rank} exited with {status}"))),
            _ => say(&format!(
                "rank {rank} exited with {status}; restarting from the last checkpoint ({}/{restarts})",
                attempt + 1
            )),
        }
    }
    unreachable!("the last attempt returns")
}

fn start(count: u32, attempt: u32, port: u16) -> Result<Vec<Child>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut arguments = own_arguments(std::env::args().skip(1));
    if attempt > 0 && !arguments.iter().any(|argument| argument == "--resume") {
        arguments.push("--resume".into());
    }
    let mut ranks: Vec<Child> = Vec::new();
    for rank in 0..count {
        let mut command = Command::new(&program);
        command.args(&arguments).env(LAUNCHER, std::process::id().to_string());
        for (name, value) in [
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("WORLD_SIZE", count.to_string()),
            ("LOCAL_WORLD_SIZE", count.to_string()),
            ("MASTER_ADDR", "127.0.0.1".into()),
            ("MASTER_PORT", port.to_string()),
            ("TORCHELASTIC_USE_AGENT_STORE", "True".into()),
            ("TORCHELASTIC_RESTART_COUNT", attempt.to_string()),
        ] {
            command.env(name, value);
        }
        // Ctrl-C on a terminal reaches the launcher alone, which hands it on once.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        match command.spawn() {
            Ok(child) => ranks.push(child),
            Err(error) => {
                end(&mut ranks);
                return Err(error).with_context(|| format!("cannot start rank {rank}"));
            }
        }
    }
    Ok(ranks)
}

/// The arguments without those that are the launcher's.
fn own_arguments(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut all = all.peekable();
    while let Some(argument) = all.next() {
        let is_ours = |name: &str| argument == name || argument.starts_with(&format!("{name}="));
        match () {
            () if !(is_ours("--nproc") || is_ours("--restarts")) => kept.push(argument),
            () if !argument.contains('=') => drop(all.next()),
            () => {}
        }
    }
    kept
}

/// Waits until all ranks have ended. The first that failed, if one did; the others are then ended too.
fn watch(ranks: &mut [Child], stop: &AtomicBool) -> Option<(usize, std::process::ExitStatus)> {
    let mut told = false;
    let mut ended = vec![None; ranks.len()];
    let mut failed: Option<(usize, std::process::ExitStatus, Instant)> = None;
    loop {
        if !told && stop.load(Ordering::Relaxed) {
            told = true;
            ranks.iter().for_each(|rank| signal(rank, Signal::TERM));
        }
        for (rank, child) in ranks.iter_mut().enumerate().filter(|(rank, _)| ended[*rank].is_none()).collect::<Vec<_>>()
        {
            let Ok(Some(status)) = child.try_wait() else { continue };
            ended[rank] = Some(status);
            // Where one rank was killed and the others say so, the killed one is the one to name.
            let was_killed = |status: &std::process::ExitStatus| status.code().is_none();
            let is_worse = failed.is_none_or(|(_, known, _)| was_killed(&status) && !was_killed(&known));
            if !status.success() && is_worse {
                let since = failed.map_or_else(Instant::now, |(_, _, since)| since);
                failed = Some((rank, status, since));
            }
        }
        if ended.iter().all(Option::is_some) {
            return failed.map(|(rank, status, _)| (rank, status));
        }
        if failed.is_some_and(|(_, status, since)| status.code() != Some(130) && since.elapsed() > GRACE) {
            end(ranks);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn end(ranks: &mut [Child]) {
    for rank in ranks {
        let _ = rank.kill();
        let _ = rank.wait();
    }
}

fn signal(rank: &Child, signal: Signal) {
    let _ = kill_process(Pid::from_child(rank), signal);
}

/// Makes this process, if it was launched, end when its launcher does, however that ends.
pub fn follow() {
    let Some(launcher) = std::env::var(LAUNCHER).ok().and_then(|id| id.parse::<i32>().ok()) else { return };
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    if rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(launcher) {
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_given_all_but_the_launchers_arguments() {
        let given =
            ["train", "--nproc", "2", "--run", "r", "--restarts=3", "--set", "a.b=--nproc", "--nproc=4", "--json"];
        let own = own_arguments(given.iter().map(|s| (*s).to_owned()));
        assert_eq!(own, ["train", "--run", "r", "--set", "a.b=--nproc", "--json"]);
    }
}
