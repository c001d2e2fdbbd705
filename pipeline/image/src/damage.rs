//! Why a sample can't be used: a small fixed vocabulary for metrics, and words for people.

/// Why a sample can't be used. A small fixed vocabulary, used as a metric's label; `detail` is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Damage {
    /// The kind of damage.
    pub reason: DamageReason,
    /// What was found.
    pub detail: String,
}

/// The kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DamageReason {
    /// No bytes at all.
    Empty,
    /// Not JPEG, PNG or WebP.
    UnknownFormat,
    /// The data ends before the image does.
    Truncated,
    /// The data contradicts itself.
    Corrupt,
    /// A variant of the format that is not decoded (arithmetic coding, 12 bits, lossless JPEG).
    Unsupported,
    /// More pixels than `data.max_pixels`, or none.
    Dimensions,
    /// There is no memory for it: the machine's fault, not the image's, and so no damage that is counted.
    NoMemory,
}

impl DamageReason {
    /// The reason's name in metrics and the ledger.
    pub fn name(self) -> &'static str {
        match self {
            DamageReason::Empty => "empty",
            DamageReason::UnknownFormat => "unknown_format",
            DamageReason::Truncated => "truncated",
            DamageReason::Corrupt => "corrupt",
            DamageReason::Unsupported => "unsupported",
            DamageReason::Dimensions => "dimensions",
            DamageReason::NoMemory => "no_memory",
        }
    }

    /// Every reason why a sample is counted as damaged.
    pub const ALL: [DamageReason; 6] = [
        DamageReason::Empty,
        DamageReason::UnknownFormat,
        DamageReason::Truncated,
        DamageReason::Corrupt,
        DamageReason::Unsupported,
        DamageReason::Dimensions,
    ];
}

impl std::fmt::Display for DamageReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Damage {
    /// Damage of this kind.
    pub fn new(reason: DamageReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}
