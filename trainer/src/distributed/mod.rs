//! The ranks of a training: one process each, on one machine or many, that take a step together.
//!
//! They meet at a store and compare what they are about to do ([`Rendezvous`]); then they are a [`World`],
//! whose collectives are torch's own: Gloo between processors, NCCL between GPUs. A rank that dies takes the others'
//! collectives with it; they call the roll at the store, so that each can say who is missing.

mod rendezvous;
mod place;
mod world;

pub use crate::error::RanksError;
pub use place::{join, place, share};
pub use rendezvous::{LaunchersStore, Rendezvous};
pub use world::World;
pub(crate) use world::{own_parts, parts_together};

pub use simclr_torch::c10d::Reducer;

/// One rank's place among all, as whoever launched it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankInfo {
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
    /// Who says that this is a rank, and how; for people.
    pub told_by: String,
}
