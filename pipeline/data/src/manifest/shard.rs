//! What a manifest says of one shard, and what of it can't be so.

use serde::{Deserialize, Serialize};
use simclr_ground::digest::Digest;
use simclr_ground::sample::Check;

use crate::compression::Compression;
use crate::frames::{Frames, can_unpack};
use crate::shard::{MAX_CLASSES, MAX_ENTRY_BYTES};
use crate::tar_entries::{MAX_NAME_BYTES, shown};

/// One shard and its samples, by column: entry `i` of each column belongs to sample `i`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Where the shard is: a URL, or a path, absolute or relative to the manifest's folder.
    pub location: String,
    /// Size of the file as stored.
    pub bytes: u64,
    /// BLAKE3 of the file as stored.
    pub blake3: Digest,
    /// Size of the tar stream inside.
    pub tar_bytes: u64,
    /// BLAKE3 of the tar stream inside.
    pub tar_blake3: Digest,
    /// The name of each sample's image entry.
    pub entries: Vec<String>,
    /// The class of each sample, `null` for one without; absent for a shard without labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Option<u32>>>,
    /// Where each image's bytes begin in the tar stream.
    pub offsets: Vec<u64>,
    /// How many bytes each image has.
    pub sizes: Vec<u32>,
    /// XXH3-64 of each image's bytes.
    pub checks: Vec<Check>,
    /// Where each image's data may be entered, so that a crop is decoded without all of it; empty for an image that is
    /// no sound baseline JPEG. Worked out from the images' bytes, it is no part of the content and changes no batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<String>>,
    /// How the file is compressed, where its name does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Whether each sample is a file of its own: `location` is then the folder that the paths in `entries` start from, every
    /// offset is 0, and digests are over names, sizes and checks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loose: bool,
    /// Where the frames of a zstd shard with a seek table are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
    /// Image entries of the shard that the manifest leaves out on purpose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<String>,
}

impl Shard {
    /// Number of samples in the shard.
    pub fn num_samples(&self) -> usize {
        self.entries.len()
    }

    /// The class of sample `i`, if it has one.
    pub fn label(&self, i: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|labels| labels[i])
    }

    /// Holds the columns against each other, so that nothing is allocated that the shard can't have.
    pub(super) fn check(&self, compression: Compression) -> Result<(), String> {
        let n = self.num_samples();
        let labels = self.labels.as_ref().map_or(n, Vec::len);
        let rows = self.rows.as_ref().map_or(n, Vec::len);
        for (column, length) in [
            ("offsets", self.offsets.len()),
            ("sizes", self.sizes.len()),
            ("checks", self.checks.len()),
            ("labels", labels),
            ("rows", rows),
        ] {
            if length != n {
                return Err(format!("columns differ in length: entries has {n}, {column} {length}"));
            }
        }
        let (bytes, tar_bytes) = (self.bytes, self.tar_bytes);
        match (&self.frames, compression) {
            (_, Compression::Zstd | Compression::Gzip) if !can_unpack(bytes, tar_bytes) => {
                return Err(format!("tar_bytes is {tar_bytes}, more than {bytes} bytes (bytes) unpack to"));
            }
            (Some(frames), Compression::Zstd) => frames.check(bytes, tar_bytes)?,
            (None, Compression::Zstd | Compression::Gzip) => {}
            (Some(_), _) => return Err("frames are listed, but the shard is not zstd".into()),
            (None, Compression::None) if tar_bytes != bytes => {
                return Err(format!("tar_bytes is {tar_bytes} and bytes {bytes}; of a plain tar they are equal"));
            }
            (None, Compression::None) => {}
        }
        if let Some(i) = (0..n).find(|&i| self.entries[i].len() as u64 > MAX_NAME_BYTES) {
            return Err(format!(
                "entries has a name of {} bytes; expected at most {MAX_NAME_BYTES}",
                self.entries[i].len()
            ));
        }
        if let Some(label) = self.labels.iter().flatten().flatten().find(|&&label| label >= MAX_CLASSES) {
            return Err(format!("labels has {label}; expected a number below {MAX_CLASSES}"));
        }
        if let Some(i) = (0..n).find(|&i| u64::from(self.sizes[i]) > MAX_ENTRY_BYTES) {
            let (entry, size) = (shown(&self.entries[i]), self.sizes[i]);
            return Err(format!("sizes has {size} for {entry}; expected at most {MAX_ENTRY_BYTES}"));
        }
        let end = |i: usize| self.offsets[i].checked_add(self.sizes[i].into());
        if let Some(i) = (0..n).find(|&i| end(i).is_none_or(|end| end > tar_bytes)) {
            return Err(format!(
                "entry {} ends after the shard's {tar_bytes} bytes (tar_bytes)",
                shown(&self.entries[i])
            ));
        }
        Ok(())
    }

    /// The row index of image `i`, if it has one.
    pub fn rows(&self, i: usize) -> Option<&str> {
        self.rows.as_ref().map(|rows| rows[i].as_str()).filter(|rows| !rows.is_empty())
    }
}
