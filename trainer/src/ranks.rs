//! The ranks of a training: one process each, on one machine or many, that take a step together.
//!
//! They meet at a store and compare what they are about to do ([`Meeting`]); then they are a [`World`],
//! whose collectives are torch's own: Gloo between processors, NCCL between GPUs. A rank that dies takes the others'
//! collectives with it; they call the roll at the store, so that each can say who is missing.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tch::{Device, Tensor};

use crate::error::TrainError;
use crate::parameters::Parameters;
use crate::shim::Said;
pub use crate::shim::c10d::Reducer;
use crate::shim::c10d::{self, Group, Store};

/// How long ranks wait for each other's answer when the roll is called.
const ROLL_CALL: Duration = Duration::from_secs(3);

/// How often a wait looks whether a rank has failed meanwhile.
const LOOK: Duration = Duration::from_millis(500);

/// One rank's place among all, as whoever launched it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which one, from 0. Rank 0 leads: it writes checkpoints and evaluates.
    pub rank: u32,
    /// Of how many.
    pub world: u32,
    /// Which one on its machine; the number of its GPU.
    pub local_rank: u32,
    /// Of how many there.
    pub local_world: u32,
    /// Where the store is.
    pub host: String,
    /// Its port there.
    pub port: u16,
    /// Whether the launcher keeps the store; else rank 0 does.
    pub launcher_keeps_store: bool,
    /// How often the launcher has started all ranks anew.
    pub restarts: u32,
}

/// Why ranks can't go on together.
#[derive(Debug, thiserror::Error)]
pub enum RanksError {
    /// The store can't be opened or reached.
    #[error("rank {rank} cannot {what} the store at {host}:{port} (MASTER_ADDR, MASTER_PORT): {why}")]
    Store {
        /// Who says so.
        rank: u32,
        /// `open` or `reach`.
        what: &'static str,
        /// Where.
        host: String,
        /// Where there.
        port: u16,
        /// What c10d said.
        why: String,
    },
    /// Some ranks have not come.
    #[error("{} not come within {} s, of a world of {world}; each must be started, and reach {host}:{port}", named(ranks, "has", "have"), waited.as_secs())]
    Missing {
        /// Which.
        ranks: Vec<u32>,
        /// Of how many.
        world: u32,
        /// How long they were waited for.
        waited: Duration,
        /// Where the store is.
        host: String,
        /// Where there.
        port: u16,
    },
    /// Another rank failed and said why.
    #[error("rank {rank} failed: {what}")]
    Failed {
        /// Which.
        rank: u32,
        /// What it said.
        what: String,
    },
    /// Other ranks are gone and said nothing.
    #[error("{who} gone or stuck; the last checkpoint is kept ({said})")]
    Lost {
        /// Which.
        who: String,
        /// What c10d said.
        said: String,
    },
    /// NCCL's backend can't be loaded.
    #[error("several ranks on GPUs need {library}: {why}; `bash trainer/shim/nccl/build.sh` builds it")]
    Nccl {
        /// The library.
        library: String,
        /// What the loader said.
        why: String,
    },
}

/// `rank 1 has`, `ranks 1, 2 have`.
fn named(ranks: &[u32], one: &str, several: &str) -> String {
    match ranks {
        [rank] => format!("rank {rank} {one}"),
        _ => format!("ranks {} {several}", ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Ranks on their way to each other: they can leave words, nothing more.
pub struct Meeting {
    place: Place,
    store: Store,
    timeout: Duration,
}

impl Meeting {
    /// Opens the store, or reaches it, within `timeout`.
    ///
    /// # Errors
    /// If it can't.
    pub fn open(place: &Place, timeout: Duration) -> Result<Self, RanksError> {
        let keep = place.rank == 0 && !place.launcher_keeps_store;
        let prefix = format!("simclr-pipeline/{}", place.restarts);
        let opened = Store::open((&place.host, place.port), keep, &prefix, timeout);
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
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What every rank says under `key`, this one `own`.
    ///
    /// # Errors
    /// If one of them fails, or does not say anything in time.
    pub fn exchange(&self, key: &str, own: &str) -> Result<Vec<String>, RanksError> {
        let gone = |said| self.keeper_gone(said);
        self.store.set(&format!("{key}/{}", self.place.rank), own).map_err(gone)?;
        let began = Instant::now();
        let mut all = Vec::new();
        let mut missing = Vec::new();
        for rank in 0..self.place.world {
            match self.word_of(rank, &format!("{key}/{rank}"), Some(began + self.timeout))? {
                Some(word) => all.push(word),
                None => missing.push(rank),
            }
        }
        if missing.is_empty() {
            return Ok(all);
        }
        let (host, port) = (self.place.host.clone(), self.place.port);
        Err(RanksError::Missing { ranks: missing, world: self.place.world, waited: self.timeout, host, port })
    }

    /// The word at `key`, which `rank` is to leave; `None` if it is not there in time.
    fn word_of(&self, rank: u32, key: &str, until: Option<Instant>) -> Result<Option<String>, RanksError> {
        loop {
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

    /// What `rank` said that went wrong.
    fn failure_of(&self, rank: u32) -> Result<Option<String>, RanksError> {
        let word = self.store.get(&format!("failed/{rank}"), Duration::ZERO);
        word.map_err(|said| self.keeper_gone(said))
    }

    /// Tells the others, if they can be told, that this rank can't go on.
    pub fn fail(&self, what: &str) {
        let _ = self.store.set(&format!("failed/{}", self.place.rank), what);
    }

    /// The store is gone, and with it whoever kept it.
    fn keeper_gone(&self, said: Said) -> RanksError {
        let who = if self.place.launcher_keeps_store { "the launcher is" } else { "rank 0, which keeps the store, is" };
        RanksError::Lost { who: who.into(), said }
    }

    /// Asks who is there. Those who are, ask too, for a collective that one misses fails for all.
    fn call_roll(&self, said: Said) -> RanksError {
        let called = || {
            let gone = |said| self.keeper_gone(said);
            let own = self.place.rank;
            self.store.set(&format!("noticed/{own}"), "").map_err(gone)?;
            let until = Instant::now() + ROLL_CALL;
            let mut lost = Vec::new();
            for rank in (0..self.place.world).filter(|&rank| rank != own) {
                if self.word_of(rank, &format!("noticed/{rank}"), Some(until))?.is_none() {
                    lost.push(rank);
                }
            }
            Ok(lost)
        };
        match called() {
            Err(error) => error,
            Ok(lost) if lost.is_empty() => RanksError::Lost { who: "no rank is known to be".into(), said },
            Ok(lost) => RanksError::Lost { who: named(&lost, "is", "are"), said },
        }
    }
}

/// All ranks of a training; or the only process, which has no one to wait for.
pub struct World {
    rank: u32,
    size: u32,
    members: Option<Members>,
}

struct Members {
    // Before the store that it was met at.
    group: Group,
    meeting: Rc<Meeting>,
    /// What a collective said that could not return it.
    said: RefCell<Option<Said>>,
}

impl World {
    /// A process that trains alone.
    pub fn alone() -> Rc<Self> {
        Rc::new(Self { rank: 0, size: 1, members: None })
    }

    /// Joins those who have met, all on devices of this kind. `nccl` is the library that GPUs need for it.
    ///
    /// # Errors
    /// If one of them does not, or the library can't be loaded.
    pub fn join(meeting: Rc<Meeting>, device: Device, nccl: &Path) -> Result<Rc<Self>, RanksError> {
        let Place { rank, world, .. } = meeting.place;
        let nccl = match device.is_cuda() {
            true => Some(c10d::load_nccl(nccl).map_err(|why| {
                let library = nccl.display().to_string();
                RanksError::Nccl { library, why }
            })?),
            false => None,
        };
        let group = Group::open(&meeting.store, rank, world, meeting.timeout, nccl);
        let group = group.map_err(|said| meeting.call_roll(said))?;
        let members = Members { group, meeting, said: RefCell::new(None) };
        Ok(Rc::new(Self { rank, size: world, members: Some(members) }))
    }

    /// Which one this process is, from 0.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// How many there are.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Whether this process writes and evaluates for all.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// Everyone's `own`, `[...]`, as `[world, ...]`, without a graph.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn gather(&self, own: &Tensor) -> Result<Tensor, TrainError> {
        let own = own.detach();
        let Some(members) = &self.members else { return Ok(own.unsqueeze(0)) };
        let own = own.contiguous();
        let shape: Vec<i64> = std::iter::once(i64::from(self.size)).chain(own.size()).collect();
        let all = Tensor::empty(shape, (own.kind(), own.device()));
        members.told(|group| group.gather(&own, &all))?;
        Ok(all)
    }

    /// Makes `tensor` the sum of all ranks'.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn sum(&self, tensor: &Tensor) -> Result<(), TrainError> {
        self.members.as_ref().map_or(Ok(()), |members| members.told(|group| group.sum(tensor)))
    }

    /// Makes all tensors those of rank 0.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn share<'a>(&self, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<(), TrainError> {
        let Some(members) = &self.members else { return Ok(()) };
        tensors.into_iter().try_for_each(|tensor| {
            let tensor = tensor.detach();
            let dense = tensor.contiguous();
            members.told(|group| group.broadcast(&dense))?;
            tch::no_grad(|| tensor.shallow_clone().copy_(&dense));
            Ok(())
        })
    }

    /// Whether `own` is set on any rank.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn any(&self, own: bool) -> Result<bool, TrainError> {
        let count = Tensor::from(f32::from(own));
        self.sum(&count)?;
        Ok(f64::try_from(&count)? > 0.0)
    }

    /// The largest of everyone's `own`.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn most(&self, own: u64) -> Result<u64, TrainError> {
        let all = self.gather(&Tensor::from(own as i64))?;
        Ok(i64::try_from(all.max())? as u64)
    }

    /// Batch norm over all ranks' `x`, `[N, C, ...]`; `None` if there are no others. What fails here is told by the next
    /// collective that can.
    pub(crate) fn batch_norm(
        &self,
        x: &Tensor,
        affine: (&Tensor, Option<&Tensor>),
        running: Option<(&Tensor, &Tensor)>,
        momentum: f64,
        epsilon: f64,
    ) -> Option<Tensor> {
        let members = self.members.as_ref()?;
        if members.said.borrow().is_some() {
            return None;
        }
        match members.group.batch_norm(x, affine, running, momentum, epsilon) {
            Ok(out) => Some(out),
            Err(said) => {
                *members.said.borrow_mut() = Some(said);
                None
            }
        }
    }

    /// A reducer of the gradients of `parameters`; `None` if there is nobody to reduce with.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn reducer(&self, parameters: &Parameters) -> Result<Option<Reducer>, TrainError> {
        let Some(members) = &self.members else { return Ok(None) };
        let learning: Vec<&Tensor> = parameters.learning().map(|parameter| &parameter.tensor).collect();
        let opened = Reducer::open(&members.group, &learning);
        Ok(Some(opened.map_err(|said| members.meeting.call_roll(said))?))
    }

    /// Makes the next backward pass reduce.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn prepare(&self, reducer: &Reducer) -> Result<(), TrainError> {
        self.members.as_ref().map_or(Ok(()), |members| members.told(|_| reducer.prepare()))
    }

    /// What went wrong in a backward pass, which may be that a rank is gone.
    pub fn explain(&self, error: TrainError) -> TrainError {
        let Some(members) = &self.members else { return error };
        let text = match &error {
            TrainError::Torch(error) => error.to_string(),
            _ => return error,
        };
        let of_ranks = ["gloo", "nccl", "connection"].iter().any(|word| text.to_lowercase().contains(word));
        if of_ranks { members.meeting.call_roll(first_line(&text)).into() } else { error }
    }

    /// Waits until rank 0 has done what only it does, however long that takes; rank 0 says with this that it has.
    ///
    /// # Errors
    /// If rank 0 fails.
    pub fn await_leader(&self, what: &str) -> Result<(), TrainError> {
        let Some(Members { meeting, .. }) = &self.members else { return Ok(()) };
        if self.leads() {
            return Ok(meeting.store.set(what, "").map_err(|said| meeting.keeper_gone(said))?);
        }
        meeting.word_of(0, what, None)?;
        Ok(())
    }

    /// Waits for the others at the end, so that what one keeps for all does not go before they do.
    ///
    /// # Errors
    /// If one of them fails.
    pub fn leave(&self) -> Result<(), TrainError> {
        let Some(Members { meeting, .. }) = &self.members else { return Ok(()) };
        self.await_leader("done")?;
        let own = meeting.place.rank;
        meeting.store.set(&format!("left/{own}"), "").map_err(|said| meeting.keeper_gone(said))?;
        if self.leads() {
            let until = Instant::now() + meeting.timeout;
            for rank in 1..self.size {
                meeting.word_of(rank, &format!("left/{rank}"), Some(until))?;
            }
        }
        Ok(())
    }
}

impl Members {
    /// Calls a collective, unless one has failed before.
    fn told(&self, call: impl FnOnce(&Group) -> Result<(), Said>) -> Result<(), TrainError> {
        let failed = self.said.borrow_mut().take();
        let said = match failed {
            Some(said) => Err(said),
            None => call(&self.group),
        };
        Ok(said.map_err(|said| self.meeting.call_roll(first_line(&said)))?)
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
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

/// A tensor `[world, parts × n, ...]` of every rank's parts as `[parts × world × n, ...]`: all first parts in the order of
/// ranks, then all second ones.
pub(crate) fn parts_together(all: &Tensor, parts: i64) -> Tensor {
    let size = all.size();
    let (world, rows) = (size[0], size[1]);
    let split: Vec<i64> = [world, parts, rows / parts].into_iter().chain(size[2..].iter().copied()).collect();
    let whole: Vec<i64> = [world * rows].into_iter().chain(size[2..].iter().copied()).collect();
    all.view(split.as_slice()).transpose(0, 1).reshape(whole.as_slice())
}

/// The rows of [`parts_together`] that came from `rank` of `world`, with `n` rows a part: where each part begins.
pub(crate) fn own_parts(rank: u32, world: u32, n: i64, parts: i64) -> impl Iterator<Item = i64> {
    (0..parts).map(move |part| (part * i64::from(world) + i64::from(rank)) * n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn parts_of_all_ranks_lie_together() {
        // Two ranks, each with two first views and two second ones.
        let all = Tensor::arange(8, (Kind::Int64, Device::Cpu)).view([2, 4]);
        let together = parts_together(&all, 2);
        assert_eq!(Vec::<i64>::try_from(&together).unwrap(), [0, 1, 4, 5, 2, 3, 6, 7]);
        for rank in 0..2 {
            let starts: Vec<i64> = own_parts(rank, 2, 2, 2).collect();
            let own: Vec<Tensor> = starts.iter().map(|&start| together.narrow(0, start, 2)).collect();
            let own = Vec::<i64>::try_from(Tensor::cat(&own, 0)).unwrap();
            assert_eq!(own, Vec::<i64>::try_from(all.get(i64::from(rank))).unwrap());
        }
    }

    #[test]
    fn a_store_that_is_not_there_is_an_error_that_names_it() {
        let place = Place {
            rank: 1,
            world: 2,
            local_rank: 1,
            local_world: 2,
            host: "127.0.0.1".into(),
            port: 1,
            launcher_keeps_store: false,
            restarts: 0,
        };
        let message = Meeting::open(&place, Duration::from_secs(1)).err().unwrap().to_string();
        assert!(message.starts_with("rank 1 cannot reach the store at 127.0.0.1:1 (MASTER_ADDR"), "{message}");
    }

    #[test]
    fn ranks_are_named() {
        assert_eq!(named(&[3], "is", "are"), "rank 3 is");
        assert_eq!(named(&[1, 2], "is", "are"), "ranks 1, 2 are");
    }
}
