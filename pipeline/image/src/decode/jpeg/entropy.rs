//! The entropy-coded data of a scan: every block's coefficients, in order.

use std::ops::Range;

use super::Unknown;
use super::header::{Header, ZIGZAG};
use super::huffman::{END, LOOKUP_BITS, Table, TableSpec, extend};
use super::idct::Block;
use super::row_index::RowIndex;

/// The place in a block of coefficient `k`, beyond the last for what follows the end of a block.
const PLACES: [u8; 256] = {
    let mut places = [64; 256];
    let mut k = 0;
    while k < 64 {
        places[k] = ZIGZAG[k];
        k += 1;
    }
    places
};

/// The blocks of a component that are needed: columns and rows.
pub type BlockRange = (Range<u32>, Range<u32>);

/// Decodes scans, keeping buffers and tables.
#[derive(Default)]
pub struct Entropy {
    /// The scan's bytes, stuffed zeros and markers taken out, and some zeros behind.
    data: Vec<u8>,
    /// Where in `data` each restart interval ends.
    ends: Vec<usize>,
    /// Tables made before; files of one camera have the same.
    tables: Vec<(bool, Table)>,
}

/// How many tables are kept.
const TABLES: usize = 8;

/// How many looks the bits of one refill are enough for, each with a value behind it.
const LOOKS_PER_REFILL: u32 = 56 / (LOOKUP_BITS + 10);

/// Zeros behind the data, so that a look beyond its end finds something.
const MARGIN: usize = 16;

impl Entropy {
    /// Calls `place` with each wanted block, in the file's order; it says whether the block is one of an image.
    ///
    /// With `known`, only rows that hold wanted blocks are gone through, and of them, where the beginning of the next
    /// row is known, only what lies before the last wanted block; with `index`, what would be known is noted.
    #[inline(always)]
    pub fn decode(
        &mut self,
        header: &Header<'_>,
        wanted: &[BlockRange; 3],
        known: Option<&RowIndex>,
        mut index: Option<&mut RowIndex>,
        mut place: impl FnMut(usize, u32, u32, &Block) -> bool,
    ) -> Result<(), Unknown> {
        let tables = self.take_tables(header)?;
        let (h, v) = header.components[0].sampling;
        let (columns, rows) = (header.width.div_ceil(8 * h), header.height.div_ceil(8 * v));
        if let Some(index) = &mut index {
            if header.restart_interval > 0 {
                return Err(Unknown);
            }
            **index = RowIndex::of(rows);
        }
        let (needed_columns, needed_rows) = needed_units(header, wanted).ok_or(Unknown)?;
        let needed_columns = needed_columns.min(columns);
        // Restart intervals, which need not end with a row, have no place in an index.
        let known = known.filter(|known| header.restart_interval == 0 && known.fits(rows));
        let (mut first, mut end, mut bit, mut predictions) = (0, rows, 0, [0i32; 3]);
        match known {
            None => {
                self.prepare(header, usize::MAX)?;
                // A file that claims more blocks than its bytes can hold is not gone through to find that out: a block takes
                // a code for its average and one for its end.
                let units = u64::from(columns) * u64::from(rows);
                let per_unit: u32 =
                    header.components.iter().map(|component| component.sampling).map(|(h, v)| h * v).sum();
                if units * u64::from(per_unit) * 2 > 8 * self.data.len() as u64 {
                    return Err(Unknown);
                }
            }
            Some(known) => {
                let (row, start) = known.before(needed_rows.start.min(rows - 1));
                (first, end) = (row, needed_rows.end.min(rows));
                (bit, predictions) = (start.bit as usize, start.predictions.map(i32::from));
                self.prepare(header, known.end_of(end).map_or(usize::MAX, |bit| bit.div_ceil(8) as usize))?;
            }
        }
        let mut bits = Bits::new(&self.data, bit);
        let mut interval = Interval { left: header.restart_interval, number: 0 };
        let mut block = Block::new();
        let mut scratch = Block::new();
        let mut sound = true;
        for row in first..end {
            if let Some(index) = &mut index {
                index.note(row, bits.position(), predictions);
            }
            let next = known.and_then(|known| known.at(row + 1));
            let is_last = known.is_some() && row + 1 == end;
            for column in 0..if next.is_some() || is_last { needed_columns } else { columns } {
                if header.restart_interval > 0 {
                    if interval.left == 0 {
                        interval.left = header.restart_interval;
                        self.end_interval(&bits, interval.number)?;
                        bits = Bits::new(&self.data, self.ends[interval.number] * 8);
                        interval.number += 1;
                        predictions = [0; 3];
                    }
                    interval.left -= 1;
                }
                for (i, component) in header.components.iter().enumerate() {
                    let (h, v) = component.sampling;
                    let (dc, ac) = (&self.tables[tables[i].0].1, &self.tables[tables[i].1].1);
                    for y in row * v..(row + 1) * v {
                        let in_row = wanted[i].1.contains(&y);
                        for x in column * h..(column + 1) * h {
                            if in_row && wanted[i].0.contains(&x) {
                                block.clear();
                                bits.block(dc, ac, &mut predictions[i], &mut block)?;
                                sound &= place(i, x, y, &block);
                            } else {
                                bits.block(dc, ac, &mut predictions[i], &mut scratch)?;
                            }
                        }
                    }
                }
            }
            if let Some(next) = next
                && !is_last
            {
                let next_predictions = next.predictions.map(i32::from);
                if needed_columns == columns && (bits.position(), predictions) != (next.bit as usize, next_predictions)
                {
                    return Err(Unknown);
                }
                bits = Bits::new(&self.data, next.bit as usize);
                predictions = next_predictions;
            }
        }
        if !sound {
            return Err(Unknown);
        }
        if known.is_some() {
            // Rows behind the last one wanted are not looked at, but reading must not have left the data.
            return if bits.position() <= 8 * (self.data.len() - MARGIN) { Ok(()) } else { Err(Unknown) };
        }
        self.end_interval(&bits, interval.number)?;
        if interval.number + 1 == self.ends.len() { Ok(()) } else { Err(Unknown) }
    }

    /// Takes the scan's bytes out of the file, as far as the first `enough` of them.
    fn prepare(&mut self, header: &Header<'_>, enough: usize) -> Result<(), Unknown> {
        self.data.clear();
        self.ends.clear();
        self.data.reserve(header.data.len() + MARGIN);
        let mut rest = header.data;
        let mut next_restart = 0xD0;
        while self.data.len() < enough {
            let at = memchr::memchr(0xFF, rest).ok_or(Unknown)?;
            let marker = *rest.get(at + 1).ok_or(Unknown)?;
            match marker {
                0 => self.data.extend_from_slice(&rest[..=at]),
                0xD0..=0xD7 if header.restart_interval > 0 && marker == next_restart => {
                    self.data.extend_from_slice(&rest[..at]);
                    self.ends.push(self.data.len());
                    next_restart = 0xD0 | ((marker + 1) & 7);
                }
                0xD9 => {
                    self.data.extend_from_slice(&rest[..at]);
                    self.ends.push(self.data.len());
                    break;
                }
                _ => return Err(Unknown),
            }
            rest = &rest[at + 2..];
        }
        self.data.extend_from_slice(&[0; MARGIN]);
        // Positions are counted in bits, as u32 in an index.
        if self.data.len() < (u32::MAX / 8) as usize { Ok(()) } else { Err(Unknown) }
    }

    /// Checks that a restart interval was used up: all its bytes and no more.
    fn end_interval(&self, bits: &Bits<'_>, number: usize) -> Result<(), Unknown> {
        let end = *self.ends.get(number).ok_or(Unknown)?;
        if bits.position().div_ceil(8) == end { Ok(()) } else { Err(Unknown) }
    }

    /// Indices of each component's tables for first and other coefficients.
    fn take_tables(&mut self, header: &Header<'_>) -> Result<[(usize, usize); 3], Unknown> {
        if self.tables.len() > TABLES {
            self.tables.clear();
        }
        let mut found = [(0, 0); 3];
        for (component, place) in header.components.iter().zip(&mut found) {
            let dc = header.dc[component.dc].as_ref().ok_or(Unknown)?;
            let ac = header.ac[component.ac].as_ref().ok_or(Unknown)?;
            *place = (self.table(dc, true)?, self.table(ac, false)?);
        }
        Ok(found)
    }

    fn table(&mut self, spec: &TableSpec, dc: bool) -> Result<usize, Unknown> {
        if let Some(at) = self.tables.iter().position(|(of_dc, table)| *of_dc == dc && table.is_of(spec)) {
            return Ok(at);
        }
        self.tables.push((dc, Table::new(spec, dc)?));
        Ok(self.tables.len() - 1)
    }
}

/// How far the restart intervals are.
struct Interval {
    left: u32,
    number: usize,
}

/// How many columns of units are needed, from the first on, and which rows: those that hold a wanted block of any component.
fn needed_units(header: &Header<'_>, wanted: &[BlockRange; 3]) -> Option<(u32, Range<u32>)> {
    let components = || header.components.iter().map(|component| component.sampling).zip(wanted);
    let columns = components().map(|((h, _), (columns, _))| columns.end.div_ceil(h)).max()?;
    let rows = components().map(|((_, v), (_, rows))| rows.start / v..rows.end.div_ceil(v));
    Some((columns, rows.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))?))
}

/// A place in the scan's bits.
struct Bits<'a> {
    data: &'a [u8],
    /// The next byte to be taken in.
    at: usize,
    /// The bits taken in and not used yet, from the top.
    next: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(data: &'a [u8], bit: usize) -> Self {
        let mut bits = Self { data, at: bit / 8, next: 0, count: 0 };
        bits.refill();
        bits.consume((bit % 8) as u32);
        bits
    }

    /// Bits used so far.
    fn position(&self) -> usize {
        self.at * 8 - self.count as usize
    }

    /// Takes in bytes until at least 56 bits are there; beyond the end there are zeros, and the position tells.
    #[inline(always)]
    fn refill(&mut self) {
        let bytes = match self.data.get(self.at..self.at + 8) {
            Some(bytes) => u64::from_be_bytes(bytes.try_into().expect("eight bytes")),
            None => 0,
        };
        self.next |= bytes >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    #[inline(always)]
    fn consume(&mut self, bits: u32) {
        self.next <<= bits;
        self.count -= bits;
    }

    /// The value of the next `size` bits.
    #[inline(always)]
    fn value(&mut self, size: u32) -> i32 {
        let value = extend(self.next, size);
        self.consume(size);
        value
    }

    /// Decodes a block; its coefficients are added to `block`, which is to be clear.
    #[inline(always)]
    fn block(&mut self, dc: &Table, ac: &Table, prediction: &mut i32, block: &mut Block) -> Result<(), Unknown> {
        self.refill();
        let found = dc.look(self.next);
        let difference = if found.is_long() {
            self.long_first(dc)?
        } else {
            let value = found.second_value(self.next);
            self.consume(found.bits());
            value
        };
        *prediction += difference;
        // No mean of eight-bit samples is farther from the middle.
        if !(-2048..2048).contains(prediction) {
            return Err(Unknown);
        }
        block.coefficients[0] = *prediction as i16;
        let (mut k, mut last) = (0usize, 0usize);
        'block: while k < 63 {
            self.refill();
            for _ in 0..LOOKS_PER_REFILL {
                let found = ac.look(self.next);
                if found.is_long() {
                    let (step, value) = self.long(ac)?;
                    if step == END {
                        break 'block;
                    }
                    k += step;
                    if k >= 64 {
                        return Err(Unknown);
                    }
                    block.coefficients[usize::from(PLACES[k])] = value;
                    last = k;
                    continue 'block;
                }
                let first = k + found.step();
                let second = first + found.second_step();
                block.coefficients[usize::from(PLACES[first & 255])] = found.value();
                block.coefficients[usize::from(PLACES[second & 255])] = found.second_value(self.next) as i16;
                if second < 63 {
                    self.consume(found.bits());
                    (k, last) = (second, second);
                    continue;
                }
                // The block ends here; with its last coefficient it ends by itself, and what follows is the next one's.
                let bits;
                (last, bits) = match (first, second) {
                    (63, _) => (63, found.first_bits()),
                    (_, 63) => (63, found.bits()),
                    _ if found.step() == END => (k, found.bits()),
                    (..63, _) if found.second_step() == END => (first, found.bits()),
                    _ => return Err(Unknown),
                };
                self.consume(bits);
                break 'block;
            }
        }
        block.last = last;
        Ok(())
    }

    /// The difference of a first coefficient whose code is longer than a look.
    #[cold]
    fn long_first(&mut self, dc: &Table) -> Result<i32, Unknown> {
        let (size, bits) = dc.long_code(self.next)?;
        self.consume(bits);
        if size > 11 {
            return Err(Unknown);
        }
        Ok(self.value(size.into()))
    }

    /// The step and value of a coefficient whose code is longer than a look.
    #[inline(always)]
    fn long(&mut self, ac: &Table) -> Result<(usize, i16), Unknown> {
        self.refill();
        let (symbol, bits) = ac.long_code(self.next)?;
        self.consume(bits);
        let (step, size) = match symbol {
            0 => (END, 0),
            0xF0 => (16, 0),
            _ if symbol & 15 == 0 => return Err(Unknown),
            _ => (usize::from(symbol >> 4) + 1, u32::from(symbol & 15)),
        };
        if size > 10 {
            return Err(Unknown);
        }
        Ok((step, self.value(size) as i16))
    }
}
