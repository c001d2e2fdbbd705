//! What can be wrong with a shard, or with what a manifest says of it.

use crate::tar_entries::shown;

/// One thing that is wrong: where, what was found, what would be right.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The shard's location as the manifest has it.
    pub shard: String,
    /// The entry in the shard, where one can be named.
    pub entry: Option<String>,
    /// The byte offset in the tar stream.
    pub offset: u64,
    /// What was found and what would be right.
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.shard)?;
        if let Some(entry) = &self.entry {
            write!(f, ": {}", shown(entry))?;
        }
        write!(f, " (byte {}): {}", self.offset, self.what)
    }
}
