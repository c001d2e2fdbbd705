//! Words that ranks leave for each other: before they are a world, and when one of them is gone.

use std::time::{Duration, Instant};

use simclr_ground::patience::{LongWait, saying};
use simclr_torch::TorchError;
use simclr_torch::c10d::Store;

use super::RankInfo;
use crate::error::{RanksError, named};

/// How long ranks wait for each other's answer when the roll is called.
const ROLL_CALL: Duration = Duration::from_secs(3);

/// How often a wait looks whether a rank has failed meanwhile.
const LOOK: Duration = Duration::from_millis(500);

/// Ranks on their way to each other: they can leave words, nothing more.
pub struct Rendezvous {
    place: RankInfo,
    pub(super) store: Store,
    pub(super) timeout: Duration,
}

impl Rendezvous {
    /// Opens the store, or reaches it, within `timeout`.
    ///
    /// # Errors
    /// If it can't.
    pub fn open(place: &RankInfo, timeout: Duration) -> Result<Self, RanksError> {
        let keep = keeps_store(place);
        let prefix = format!("simclr-pipeline/{}", place.restarts);
        let &RankInfo { rank, world, ref host, port, .. } = place;
        let say = move |waited: Duration| {
            let seconds = waited.as_secs();
            match place.launcher_keeps_store {
                true => tracing::warn!("rank {rank} has waited {seconds} s for its launcher's store at {host}:{port}"),
                false => tracing::warn!(
                    "rank {rank} of {world} has waited {seconds} s for rank 0, which keeps the store at {host}:{port} \
                     (MASTER_ADDR, MASTER_PORT): it has not begun, or can't be reached there; {}",
                    place.told_by
                ),
            }
        };
        let opened = saying(say, || Store::open((host, port), keep, &prefix, timeout));
        let (store, _) = opened.map_err(|why| RanksError::Store {
            rank: place.rank,
            what: if keep { "open" } else { "reach" },
            host: place.host.clone(),
            port: place.port,
            why,
        })?;
        Ok(Self { place: place.clone(), store, timeout })
    }

    /// Where this rank stands.
    pub fn place(&self) -> &RankInfo {
        &self.place
    }

    /// What every rank says under `key`, this one `own`.
    ///
    /// # Errors
    /// If one of them fails, or does not say anything in time.
    pub fn exchange(&self, key: &str, own: &str) -> Result<Vec<String>, RanksError> {
        self.say(&format!("{key}/{}", self.place.rank), own)?;
        let (began, mut long) = (Instant::now(), LongWait::default());
        let mut waiting = || {
            let Some(waited) = long.due() else { return };
            let absent = |&rank: &u32| matches!(self.store.get(&format!("{key}/{rank}"), Duration::ZERO), Ok(None));
            let absent: Vec<u32> = (0..self.place.world).filter(absent).collect();
            let RankInfo { rank, world, told_by, host, port, .. } = &self.place;
            tracing::warn!(
                "rank {rank} has waited {} s: of a world of {world}, {} not come to {host}:{port}; {told_by}",
                waited.as_secs(),
                named(&absent, "has", "have"),
            );
        };
        let mut all = Vec::new();
        let mut missing = Vec::new();
        for rank in 0..self.place.world {
            match self.wait_for_key(rank, &format!("{key}/{rank}"), Some(began + self.timeout), &mut waiting)? {
                Some(word) => all.push(word),
                None => missing.push(rank),
            }
        }
        if missing.is_empty() {
            self.say(&format!("{key}-read/{}", self.place.rank), "")?;
            for rank in (1..self.place.world).filter(|_| self.keeps_store()) {
                // Whatever this rank does next, the others shall have read it all.
                self.wait_for_key(rank, &format!("{key}-read/{rank}"), Some(began + self.timeout), &mut waiting)?;
            }
            return Ok(all);
        }
        let (host, port) = (self.place.host.clone(), self.place.port);
        Err(RanksError::Missing { ranks: missing, world: self.place.world, waited: self.timeout, host, port })
    }

    /// Leaves a word at `key`.
    pub(super) fn say(&self, key: &str, word: &str) -> Result<(), RanksError> {
        self.store.set(key, word).map_err(|said| self.keeper_gone(said))
    }

    /// The word at `key`, which `rank` is to leave; `None` if it is not there in time. `waiting` is called now and then.
    pub(super) fn wait_for_key(
        &self,
        rank: u32,
        key: &str,
        until: Option<Instant>,
        waiting: &mut dyn FnMut(),
    ) -> Result<Option<String>, RanksError> {
        loop {
            waiting();
            let left = until.map_or(LOOK, |until| until.saturating_duration_since(Instant::now()));
            let word = self.store.get(key, left.min(LOOK)).map_err(|said| self.keeper_gone(said))?;
            if word.is_some() {
                return Ok(word);
            }
            if let Some(what) = self.failure_of(rank)? {
                return Err(RanksError::Failed { rank, what });
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// What another rank said that went wrong, once one has.
    pub(super) fn failure_elsewhere(&self) -> RanksError {
        let until = Instant::now() + self.timeout;
        while Instant::now() < until {
            for rank in (0..self.place.world).filter(|&rank| rank != self.place.rank) {
                match self.failure_of(rank) {
                    Ok(Some(what)) => return RanksError::Failed { rank, what },
                    Ok(None) => {}
                    Err(error) => return error,
                }
            }
            std::thread::sleep(LOOK);
        }
        RanksError::Lost { who: "a rank that failed is".into(), said: "it did not say why".into() }
    }

    /// What `rank` said that went wrong.
    fn failure_of(&self, rank: u32) -> Result<Option<String>, RanksError> {
        let word = self.store.get(&format!("failed/{rank}"), Duration::ZERO);
        word.map_err(|said| self.keeper_gone(said))
    }

    /// Tells the others, if they can be told, that this rank can't go on.
    pub fn fail(&self, what: &str) {
        let told = self.store.set(&format!("failed/{}", self.place.rank), what);
        if told.is_ok() && self.keeps_store() {
            // Those who wait for a word look for this one.
            std::thread::sleep(2 * LOOK);
        }
    }

    fn keeps_store(&self) -> bool {
        keeps_store(&self.place)
    }

    /// The store is gone, and with it whoever kept it.
    fn keeper_gone(&self, said: TorchError) -> RanksError {
        let who = if self.place.launcher_keeps_store { "the launcher is" } else { "rank 0, which keeps the store, is" };
        RanksError::Lost { who: who.into(), said }
    }

    /// Asks who is there. Those who are, ask too, for a collective that one misses fails for all.
    pub(super) fn check_liveness(&self, said: TorchError) -> RanksError {
        let called = || {
            let own = self.place.rank;
            self.say(&format!("noticed/{own}"), "")?;
            let until = Instant::now() + ROLL_CALL;
            let mut lost = Vec::new();
            for rank in (0..self.place.world).filter(|&rank| rank != own) {
                if self.wait_for_key(rank, &format!("noticed/{rank}"), Some(until), &mut || {})?.is_none() {
                    lost.push(rank);
                }
            }
            Ok(lost)
        };
        match called() {
            Err(error) => error,
            Ok(lost) if lost.is_empty() => RanksError::Lost { who: "an unknown rank is".into(), said },
            Ok(lost) => RanksError::Lost { who: named(&lost, "is", "are"), said },
        }
    }
}

fn keeps_store(place: &RankInfo) -> bool {
    place.rank == 0 && !place.launcher_keeps_store
}

/// The store of a launcher, for the ranks that it starts on this machine.
pub struct LaunchersStore {
    _store: Store,
    /// Its port on this machine.
    pub port: u16,
}

impl LaunchersStore {
    /// Opens it, at a port that is free.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn open() -> Result<Self, RanksError> {
        let host = "127.0.0.1";
        let (store, port) = Store::open((host, 0), true, "", Duration::from_secs(10))
            .map_err(|why| RanksError::Store { rank: 0, what: "open", host: host.into(), port: 0, why })?;
        Ok(Self { _store: store, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_not_there_is_an_error_that_names_it() {
        let place = RankInfo {
            rank: 1,
            world: 2,
            local_rank: 1,
            local_world: 2,
            host: "127.0.0.1".into(),
            port: 1,
            launcher_keeps_store: false,
            restarts: 0,
            told_by: "this test says so".into(),
        };
        let message = Rendezvous::open(&place, Duration::from_secs(1)).err().unwrap().to_string();
        assert!(message.starts_with("rank 1 cannot reach the store at 127.0.0.1:1 (MASTER_ADDR"), "{message}");
    }
}
