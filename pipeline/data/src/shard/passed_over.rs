//! What a shard holds beside its samples, counted and in words.

use std::collections::{BTreeMap, BTreeSet};

/// What a shard holds beside its samples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PassedOver {
    /// Entries that are nobody's: hidden ones, and what systems put beside files.
    pub nobodys: u64,
    /// Keys without an image, such as a README or a caption whose image is missing.
    pub without_image: u64,
    /// The first of them.
    pub first_without_image: Option<String>,
    /// How many entries of samples were not used, by extension.
    pub unused: BTreeMap<String, u64>,
    /// Extensions in keys without an image that may be those of images, such as `input.jpg`.
    pub maybe_images: BTreeSet<String>,
}

impl PassedOver {
    /// Adds what another shard holds beside its samples.
    pub fn add(&mut self, other: &Self) {
        self.nobodys += other.nobodys;
        self.without_image += other.without_image;
        self.first_without_image = self.first_without_image.take().or_else(|| other.first_without_image.clone());
        self.maybe_images.extend(other.maybe_images.iter().cloned());
        for (extension, count) in &other.unused {
            *self.unused.entry(extension.clone()).or_default() += count;
        }
    }

    /// It in words for people, a line each.
    pub fn told(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.nobodys > 0 {
            lines.push(format!("passed over {} hidden or system files", self.nobodys));
        }
        if let Some(first) = &self.first_without_image {
            lines.push(format!("passed over {} keys without an image, e.g. {first}", self.without_image));
        }
        if !self.unused.is_empty() {
            let counts: Vec<String> = self.unused.iter().map(|(name, count)| format!(".{name} ({count})")).collect();
            lines.push(format!("passed over entries beside images: {}", counts.join(", ")));
        }
        lines
    }
}
