//! The collectives of a training's ranks.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use simclr_ground::patience::{LongWait, saying};
use simclr_torch::TorchError;
use simclr_torch::c10d::{self, Group};
use tch::{Device, Tensor};

use super::{RankInfo, RanksError, Reducer, Rendezvous};
use crate::error::{TrainError, named};

/// All ranks of a training; or the only process, which has no one to wait for.
pub struct World {
    rank: u32,
    size: u32,
    members: Option<Members>,
}

struct Members {
    // Before the store that it was met at.
    group: Group,
    rendezvous: Rc<Rendezvous>,
    /// What a collective said that could not return it.
    said: RefCell<Option<TorchError>>,
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
    pub fn join(rendezvous: Rc<Rendezvous>, device: Device, nccl: &Path) -> Result<Rc<Self>, RanksError> {
        let &RankInfo { rank, world, ref host, .. } = rendezvous.place();
        let nccl = match device.is_cuda() {
            true => Some(c10d::load_nccl(nccl).map_err(|why| {
                let library = nccl.display().to_string();
                RanksError::Nccl { library, why }
            })?),
            false => None,
        };
        let say = |waited: Duration| {
            let seconds = waited.as_secs();
            tracing::warn!(
                "rank {rank} has waited {seconds} s for the other ranks of {world}: they are there, and connect to each other"
            );
        };
        let group = saying(say, || Group::open((&rendezvous.store, host), rank, world, rendezvous.timeout, nccl));
        let group = group.map_err(|said| rendezvous.check_liveness(said))?;
        let members = Members { group, rendezvous, said: RefCell::new(None) };
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
    pub fn is_leader(&self) -> bool {
        self.rank == 0
    }

    /// Everyone's `own`, `[...]`, as `[world, ...]`, without a graph.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn all_gather(&self, own: &Tensor) -> Result<Tensor, TrainError> {
        let own = own.detach();
        let Some(members) = &self.members else { return Ok(own.unsqueeze(0)) };
        let own = own.contiguous();
        let shape: Vec<i64> = std::iter::once(i64::from(self.size)).chain(own.size()).collect();
        let all = Tensor::empty(shape, (own.kind(), own.device()));
        members.told(|group| group.all_gather(&own, &all))?;
        Ok(all)
    }

    /// Makes `tensor` the sum of all ranks'.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<(), TrainError> {
        self.members.as_ref().map_or(Ok(()), |members| members.told(|group| group.all_reduce(tensor)))
    }

    /// Makes all tensors those of rank 0.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn broadcast<'a>(&self, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<(), TrainError> {
        let Some(members) = &self.members else { return Ok(()) };
        tensors.into_iter().try_for_each(|tensor| {
            let tensor = tensor.detach();
            let dense = tensor.contiguous();
            members.told(|group| group.broadcast(&dense))?;
            tch::no_grad(|| tensor.shallow_clone().copy_(&dense));
            Ok(())
        })
    }

    /// Which of these are set on any rank.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn any<const N: usize>(&self, own: [bool; N]) -> Result<[bool; N], TrainError> {
        if self.members.is_none() {
            return Ok(own);
        }
        let counts = Tensor::from_slice(&own.map(f32::from));
        let rank = self.rank;
        let say = |waited: Duration| {
            let seconds = waited.as_secs();
            tracing::warn!(
                "rank {rank} has waited {seconds} s for the other ranks to be ready for the next step: the one that has no \
                 batch yet says what that waits for"
            );
        };
        saying(say, || self.all_reduce(&counts))?;
        let counts = Vec::<f32>::try_from(&counts)?;
        Ok(std::array::from_fn(|i| counts[i] > 0.0))
    }

    /// What made another rank stop; to be asked once it is known that one did.
    pub fn failure_elsewhere(&self) -> TrainError {
        let alone = || RanksError::Lost { who: "no rank is known to be".into(), said: "this process is alone".into() };
        self.members.as_ref().map_or_else(alone, |members| members.rendezvous.failure_elsewhere()).into()
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

    /// A reducer of the gradients of these tensors; `None` if there is nobody to reduce with.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn reducer(&self, learning: &[&Tensor]) -> Result<Option<Reducer>, TrainError> {
        let Some(members) = &self.members else { return Ok(None) };
        let opened = Reducer::open(&members.group, learning);
        Ok(Some(opened.map_err(|said| members.rendezvous.check_liveness(said))?))
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
        if of_ranks { members.rendezvous.check_liveness(first_line(&text)).into() } else { error }
    }

    /// Waits until rank 0 has done what only it does, however long that takes; rank 0 says with this that it has.
    ///
    /// # Errors
    /// If rank 0 fails.
    pub fn await_leader(&self, what: &str) -> Result<(), TrainError> {
        let Some(Members { rendezvous, .. }) = &self.members else { return Ok(()) };
        if self.is_leader() {
            return Ok(rendezvous.say(what, "")?);
        }
        rendezvous.wait_for_key(0, what, None, &mut waiting(self.rank, &[0], what))?;
        Ok(())
    }

    /// Waits for the others at the end, so that what one keeps for all does not go before they do.
    ///
    /// # Errors
    /// If one of them fails.
    pub fn leave(&self) -> Result<(), TrainError> {
        let Some(Members { rendezvous, .. }) = &self.members else { return Ok(()) };
        self.await_leader("done")?;
        let own = rendezvous.place().rank;
        rendezvous.say(&format!("left/{own}"), "")?;
        if self.is_leader() {
            let until = Instant::now() + rendezvous.timeout;
            for rank in 1..self.size {
                rendezvous.wait_for_key(
                    rank,
                    &format!("left/{rank}"),
                    Some(until),
                    &mut waiting(0, &[rank], "left"),
                )?;
            }
        }
        Ok(())
    }
}

impl Members {
    /// Calls a collective, unless one has failed before.
    fn told(&self, call: impl FnOnce(&Group) -> Result<(), TorchError>) -> Result<(), TrainError> {
        let failed = self.said.borrow_mut().take();
        let said = match failed {
            Some(said) => Err(said),
            None => call(&self.group),
        };
        Ok(said.map_err(|said| self.rendezvous.check_liveness(first_line(&said)))?)
    }
}

/// Says, once a wait is long, which rank waits for which others, to have done what.
fn waiting(rank: u32, others: &[u32], what: &str) -> impl FnMut() {
    let (others, what) = (named(others, "has", "have"), what.split('/').next().unwrap_or_default().to_owned());
    let mut long = LongWait::default();
    move || {
        if let Some(waited) = long.due() {
            let seconds = waited.as_secs();
            tracing::info!("rank {rank} has waited {seconds} s: {others} not said yet: {what}");
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
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
}
