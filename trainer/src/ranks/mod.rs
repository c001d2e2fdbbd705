//! The ranks of a training: one process each, on one machine or many, that take a step together.
//!
//! They meet at a store and compare what they are about to do ([`Meeting`]); then they are a [`World`],
//! whose collectives are torch's own: Gloo between processors, NCCL between GPUs. A rank that dies takes the others'
//! collectives with it; they call the roll at the store, so that each can say who is missing.

mod meeting;
mod world;

use std::time::Duration;

pub use meeting::{LaunchersStore, Meeting};
pub use world::World;
pub(crate) use world::{own_parts, parts_together};

pub use crate::shim::c10d::Reducer;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_named() {
        assert_eq!(named(&[3], "is", "are"), "rank 3 is");
        assert_eq!(named(&[1, 2], "is", "are"), "ranks 1, 2 are");
    }
}
