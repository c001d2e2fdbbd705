//! Compressed shards with a way in: zstd's seekable format, whose frames can be unpacked one by one.
//!
//! The format is zstd's own (contrib/seekable_format): ordinary frames, and at the end a skippable frame that lists
//! the size of each, packed and unpacked. Any zstd reader reads such a file from its beginning.

use std::io::{self, Read};
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

/// What a byte of zstd unpacks to at most: a run of 128 KiB is a block of four bytes.
const MOST_PER_BYTE: u64 = (1 << 17) / 4;

/// Whether a zstd file of `packed` bytes can unpack to `unpacked` bytes.
pub fn can_unpack(packed: u64, unpacked: u64) -> bool {
    unpacked.div_ceil(MOST_PER_BYTE) <= packed
}

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

    /// Holds the sizes against those of the file and the tar stream; what contradicts them.
    ///
    /// # Errors
    /// What is wrong, with the column's name.
    pub fn check(&self, bytes: u64, tar_bytes: u64) -> Result<(), String> {
        let n = self.packed.len();
        if self.unpacked.len() != n {
            return Err(format!("frames.packed has {n} entries, but frames.unpacked has {}", self.unpacked.len()));
        }
        let sum = |sizes: &[u32]| sizes.iter().map(|&size| u64::from(size)).sum::<u64>();
        // With or without a checksum of each frame.
        let tables = [8, 12].map(|entry| 8 + entry * n as u64 + FOOTER_BYTES as u64);
        let packed = sum(&self.packed);
        if !tables.iter().any(|table| packed + table == bytes) {
            let table = tables[0];
            return Err(format!("frames.packed adds up to {packed} and a table of {table}, but bytes is {bytes}"));
        }
        let unpacked = sum(&self.unpacked);
        if unpacked != tar_bytes {
            return Err(format!("frames.unpacked adds up to {unpacked}, but tar_bytes is {tar_bytes}"));
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

/// Of what `packed` unpacks to, the `wanted` bytes behind the first `skip`, or as many of them as there are; what frames
/// unpack to beyond that, whatever a table says of them, is not unpacked.
///
/// # Errors
/// If they are not zstd, or there is no memory for `wanted` bytes.
pub fn unpack(packed: &[u8], skip: u64, wanted: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(wanted).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut stream = zstd::Decoder::with_buffer(packed)?;
    io::copy(&mut stream.by_ref().take(skip), &mut io::sink())?;
    stream.take(wanted as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of a few kB that unpacks to `bytes` zeros.
    fn bomb(bytes: u64) -> Vec<u8> {
        let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
        io::copy(&mut io::repeat(0).take(bytes), &mut packed).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn bounded_a_frame_is_unpacked_as_far_as_its_sample_goes() {
        let bomb = bomb(1 << 30);
        assert!(bomb.len() < 1 << 17 && can_unpack(bomb.len() as u64, 1 << 30) && !can_unpack(1 << 14, (1 << 29) + 1));
        let before = crate::testing::peak_memory();
        let found = unpack(&bomb, 1000, 5000).unwrap();
        assert_eq!(found, [0; 5000]);
        assert!(found.capacity() < 10_000, "{} bytes", found.capacity());
        let grown = crate::testing::peak_memory() - before;
        // Other tests run beside this one.
        assert!(grown < 1 << 29, "{grown} bytes for 5000 of a frame");
        assert_eq!(unpack(&zstd::encode_all(&[7; 100][..], 1).unwrap(), 90, 50).unwrap(), [7; 10]);
        assert!(unpack(b"not zstd", 0, 1).is_err());
    }

    #[test]
    fn bounded_sizes_that_contradict_each_other_are_named() {
        let frames = |packed: &[u32], unpacked: &[u32]| Frames { packed: packed.into(), unpacked: unpacked.into() };
        let check = |frames: Frames, wanted: &str| {
            let found = frames.check(50, 2048).err().unwrap_or_default();
            assert!(found.contains(wanted) && found.is_empty() == wanted.is_empty(), "{found:?}");
        };
        check(frames(&[10, 7], &[1024, 1024]), "");
        check(frames(&[9], &[2048]), "frames.packed adds up to 9 and a table of 25, but bytes is 50");
        check(frames(&[10, 7], &[1024, 1025]), "frames.unpacked adds up to 2049, but tar_bytes is 2048");
        check(frames(&[10, 7], &[2048]), "frames.packed has 2 entries, but frames.unpacked has 1");
        check(frames(&[u32::MAX; 9000], &[0; 9000]), "frames.packed adds up to 38654705655000");
    }

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
