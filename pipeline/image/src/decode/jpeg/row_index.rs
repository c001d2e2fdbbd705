//! Where a sound file's entropy-coded data may be entered, so that rows before and behind a region, and what lies to
//! its right, need not be gone through.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// Places in the data of a baseline file without restart intervals that was gone through from end to end and found
/// sound, some rows of units apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowIndex {
    /// Rows of units from one place to the next; the first place is behind that many.
    pub every: u32,
    /// The places.
    pub starts: Vec<Start>,
}

/// The beginning of a row of units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// Bits from the beginning of the scan's data, stuffed bytes taken out.
    pub bit: u32,
    /// For each component the value that its first coefficient is counted from.
    pub predictions: [i16; 3],
}

/// At most this many parts has a file: a place for each row of units of what the field trains on, and fewer for large
/// images, whose rows are long.
const PARTS: u32 = 64;

/// What an index's bytes begin with: which way of writing it this is.
const FORMAT: u32 = 2;

impl RowIndex {
    /// An index, with no places yet, of a file of `rows` rows of units.
    pub(super) fn of(rows: u32) -> Self {
        Self { every: rows.div_ceil(PARTS).max(1), starts: Vec::new() }
    }

    /// Notes the beginning of row `row` if it is one of the index.
    pub(super) fn note(&mut self, row: u32, bit: usize, predictions: [i32; 3]) {
        if row > 0 && row.is_multiple_of(self.every) {
            self.starts.push(Start { bit: bit as u32, predictions: predictions.map(|value| value as i16) });
        }
    }

    /// Whether the index may be that of a file of `rows` rows.
    pub(super) fn fits(&self, rows: u32) -> bool {
        self.every > 0 && self.starts.len() as u32 == rows.saturating_sub(1) / self.every
    }

    /// The last place at or before row `row`, and which row that is.
    pub(super) fn before(&self, row: u32) -> (u32, Start) {
        match row / self.every {
            0 => (0, Start::default()),
            n => (n * self.every, self.starts[n as usize - 1]),
        }
    }

    /// The beginning of row `row`, if the index knows it.
    #[inline(always)]
    pub(super) fn at(&self, row: u32) -> Option<&Start> {
        row.is_multiple_of(self.every).then(|| self.starts.get((row / self.every).checked_sub(1)? as usize))?
    }

    /// The bit at which everything up to before row `row` is over, if the index knows it.
    pub(super) fn end_of(&self, row: u32) -> Option<u32> {
        let n = row.div_ceil(self.every) as usize;
        self.starts.get(n.checked_sub(1)?).map(|start| start.bit)
    }

    /// The index in a line of text, about eight characters a place.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::new();
        push(&mut bytes, FORMAT);
        push(&mut bytes, self.every);
        // Rows are about as long and as bright as those above them: differences are small.
        let (mut last, mut length) = (Start::default(), 0u32);
        for start in &self.starts {
            let new_length = start.bit - last.bit;
            push(&mut bytes, fold(new_length.wrapping_sub(length) as i32));
            length = new_length;
            for (value, last) in start.predictions.into_iter().zip(last.predictions) {
                push(&mut bytes, fold(i32::from(value) - i32::from(last)));
            }
            last = *start;
        }
        STANDARD_NO_PAD.encode(bytes)
    }

    /// What [`RowIndex::to_text`] gave; `None` for anything else.
    pub fn from_text(text: &str) -> Option<Self> {
        // The longest index has a place behind each part but the last, of four numbers of up to five bytes.
        let mut buffer = [0; 10 + 20 * PARTS as usize];
        let n = STANDARD_NO_PAD.decode_slice(text, &mut buffer).ok()?;
        let mut bytes = &buffer[..n];
        if take(&mut bytes)? != FORMAT {
            return None;
        }
        let mut index = Self { every: take(&mut bytes)?, starts: Vec::with_capacity(PARTS as usize) };
        let (mut last, mut length) = (Start::default(), 0u32);
        while !bytes.is_empty() {
            length = length.wrapping_add(unfold(take(&mut bytes)?) as u32);
            last.bit = last.bit.checked_add(length)?;
            for value in &mut last.predictions {
                *value = i16::try_from(i32::from(*value).checked_add(unfold(take(&mut bytes)?))?).ok()?;
            }
            index.starts.push(last);
        }
        (index.every > 0).then_some(index)
    }
}

/// Numbers around zero as small ones.
fn fold(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)) as u32
}

fn unfold(folded: u32) -> i32 {
    (folded >> 1) as i32 ^ -((folded & 1) as i32)
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn push(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0u32;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(byte & 0x7F).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_the_same_and_other_text_is_refused() {
        let start = |bit, predictions| Start { bit, predictions };
        let index =
            RowIndex { every: 6, starts: vec![start(70_000, [-1024, 1023, 0]), start(4_000_000_000, [5, -6, 2047])] };
        assert_eq!(RowIndex::from_text(&index.to_text()), Some(index.clone()));
        let empty = RowIndex { every: 1, starts: vec![] };
        assert_eq!(RowIndex::from_text(&empty.to_text()), Some(empty));
        for text in ["", "?", "A", "AA", "AgA", "gICAgICA", &index.to_text()[1..], &"AAAA".repeat(1000)] {
            assert_eq!(RowIndex::from_text(text), None, "{text:?}");
        }
    }
}
