//! Compressed shards with a way in: zstd's seekable format, whose frames can be unpacked one by one.
//!
//! The format is zstd's own (contrib/seekable_format): ordinary frames, and at the end a skippable frame that lists
//! the size of each, packed and unpacked. Any zstd reader reads such a file from its beginning.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Unpacked bytes of the frames that we write: a few photographs, and little enough to unpack for one of them.
pub const FRAME_BYTES: usize = 1 << 18;

const SKIPPABLE: u32 = 0x184D_2A5E;
const SEEKABLE: u32 = 0x8F92_EAB1;
/// Seek tables of more bytes than this are not looked for.
pub const MAX_TABLE_BYTES: usize = 1 << 20;
/// Number of frames, descriptor, magic.
const FOOTER_BYTES: usize = 9;

/// Where each frame of a compressed shard begins, packed and unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frames {
    /// Bytes of each frame in the file.
    pub packed: Vec<u32>,
    /// Bytes of each frame in the tar stream.
    pub unpacked: Vec<u32>,
}

impl Frames {
    /// The seek table that ends a file of these frames.
    pub fn table(&self) -> Vec<u8> {
        let entries = self.packed.len();
        let mut table = Vec::with_capacity(8 + 8 * entries + FOOTER_BYTES);
        table.extend(SKIPPABLE.to_le_bytes());
        table.extend(((8 * entries + FOOTER_BYTES) as u32).to_le_bytes());
        for (packed, unpacked) in self.packed.iter().zip(&self.unpacked) {
            table.extend(packed.to_le_bytes());
            table.extend(unpacked.to_le_bytes());
        }
        table.extend((entries as u32).to_le_bytes());
        table.push(0);
        table.extend(SEEKABLE.to_le_bytes());
        table
    }

    /// The frames of a file of `bytes` bytes with these last ones, unpacking to `tar_bytes`; `None` if it has no seek
    /// table or the table does not fit the file.
    pub fn from_end(end: &[u8], bytes: u64, tar_bytes: u64) -> Option<Self> {
        let word = |at: usize| end.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let footer = end.len().checked_sub(FOOTER_BYTES)?;
        if word(footer + 5)? != SEEKABLE {
            return None;
        }
        // With the descriptor's highest bit each entry has a checksum as well.
        let entry = if end[footer + 4] & 0x80 != 0 { 12 } else { 8 };
        let entries = word(footer)? as usize;
        let start = footer.checked_sub(entries.checked_mul(entry)?)?;
        let table = start.checked_sub(8)?;
        if word(table)? != SKIPPABLE || word(table + 4)? as usize != entries * entry + FOOTER_BYTES {
            return None;
        }
        let (packed, unpacked): (Vec<u32>, Vec<u32>) = (0..entries)
            .map(|i| Some((word(start + i * entry)?, word(start + i * entry + 4)?)))
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .unzip();
        let sum = |sizes: &[u32]| sizes.iter().map(|&size| u64::from(size)).sum::<u64>();
        let sound = sum(&packed) + (end.len() - table) as u64 == bytes && sum(&unpacked) == tar_bytes;
        sound.then_some(Self { packed, unpacked })
    }

    /// Whether these can be the frames of a file of `bytes` bytes that unpacks to `tar_bytes`; if not, what is wrong.
    ///
    /// # Errors
    /// What was found and what would be right.
    pub fn check(&self, bytes: u64, tar_bytes: u64) -> Result<(), String> {
        let sum = |sizes: &[u32]| sizes.iter().map(|&size| u64::from(size)).sum::<u64>();
        let (packed, unpacked) = (sum(&self.packed), sum(&self.unpacked));
        if self.packed.len() != self.unpacked.len() {
            return Err(format!("{} frames packed, {} unpacked", self.packed.len(), self.unpacked.len()));
        }
        if packed > bytes || unpacked != tar_bytes {
            return Err(format!(
                "its frames have {packed} bytes and unpack to {unpacked}, expected at most {bytes} and {tar_bytes}"
            ));
        }
        Ok(())
    }

    /// The bytes of the file that hold this range of the tar stream, and how many unpacked bytes come before it.
    pub fn covering(&self, wanted: Range<u64>) -> (Range<u64>, u64) {
        let (mut packed, mut unpacked) = (0u64, 0u64);
        let (mut stored, mut skip) = (None, 0);
        for (&p, &u) in self.packed.iter().zip(&self.unpacked) {
            let (next_packed, next_unpacked) = (packed + u64::from(p), unpacked + u64::from(u));
            if next_unpacked > wanted.start && stored.is_none() {
                stored = Some(packed);
                skip = wanted.start - unpacked;
            }
            (packed, unpacked) = (next_packed, next_unpacked);
            if unpacked >= wanted.end {
                break;
            }
        }
        (stored.unwrap_or(packed)..packed, skip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_found_through_the_table() {
        let data: Vec<u8> = (0..100_000u32).map(|i| ((u64::from(i) * u64::from(i)) >> 7) as u8).collect();
        let (mut file, mut frames) = (Vec::new(), Frames::default());
        for chunk in data.chunks(9_000) {
            let packed = zstd::encode_all(chunk, 3).unwrap();
            frames.packed.push(packed.len() as u32);
            frames.unpacked.push(chunk.len() as u32);
            file.extend(packed);
        }
        file.extend(frames.table());
        assert_eq!(zstd::decode_all(&file[..]).unwrap(), data, "any reader reads it");
        let read = Frames::from_end(&file, file.len() as u64, data.len() as u64).unwrap();
        assert_eq!(read, frames);
        assert!(Frames::from_end(&file[..file.len() - 1], file.len() as u64 - 1, data.len() as u64).is_none());
        assert!(Frames::from_end(&file, file.len() as u64, data.len() as u64 + 1).is_none());
        for range in [0..1, 0..100_000, 8_999..9_001, 54_321..54_400, 99_999..100_000] {
            let (stored, skip) = read.covering(range.clone());
            let unpacked = zstd::decode_all(&file[stored.start as usize..stored.end as usize]).unwrap();
            let found = &unpacked[skip as usize..][..(range.end - range.start) as usize];
            assert_eq!(found, &data[range.start as usize..range.end as usize], "{range:?}");
        }
    }
}
