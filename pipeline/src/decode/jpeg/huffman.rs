//! Huffman tables that decode a code together with the value after it, and two of them in one look if they are short.

use super::Unknown;

/// Bits that are looked up at once: as many as keep two tables in the first-level cache.
pub const LOOKUP_BITS: u32 = 10;

/// A step that ends a block: larger than any step to a coefficient.
pub const END: usize = 128;

/// A Huffman table as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// How many codes of each length there are, from one bit.
    counts: [u8; 16],
    symbols: [u8; 256],
}

impl TableSpec {
    pub fn new(counts: [u8; 16], symbols: &[u8]) -> Result<Self, Unknown> {
        let mut all = [0; 256];
        all.get_mut(..symbols.len()).ok_or(Unknown)?.copy_from_slice(symbols);
        // The codes of each length must fit into what the shorter ones leave.
        let mut free = 1u32;
        for &count in &counts {
            free = (2 * free).checked_sub(u32::from(count)).ok_or(Unknown)?;
        }
        Ok(Self { counts, symbols: all })
    }
}

/// What a look at the next bits finds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found(u64);

/// What is found: the fields of [`Found`], taken apart.
impl Found {
    const DONE: u64 = 0;
    const LONG_VALUE: u64 = 1;
    const LONG_CODE: u64 = 2;

    /// Bits stand lowest, since the next look waits for them and for nothing else.
    fn pack(values: [i16; 2], steps: [usize; 2], bits: [u32; 2], kind: u64) -> Self {
        let [v1, v2] = values.map(|value| u64::from(value as u16));
        let [b1, b2] = bits.map(u64::from);
        Self(b2 | b1 << 6 | kind << 12 | (steps[0] as u64) << 16 | (steps[1] as u64) << 24 | v1 << 32 | v2 << 48)
    }

    /// The first coefficient's value; its size in bits if the value has to be read.
    #[inline(always)]
    pub fn first(self) -> i16 {
        (self.0 >> 32) as i16
    }

    /// The second coefficient's value; the first's again if there is none.
    #[inline(always)]
    pub fn second(self) -> i16 {
        (self.0 >> 48) as i16
    }

    /// How many places further the first coefficient is; [`END`] if the block ends.
    #[inline(always)]
    pub fn step(self) -> usize {
        (self.0 >> 16) as u8 as usize
    }

    /// How many places further the second is; 0 if there is none.
    #[inline(always)]
    pub fn second_step(self) -> usize {
        (self.0 >> 24) as u8 as usize
    }

    /// Bits of the first code and its value, or of the code alone if the value has to be read.
    #[inline(always)]
    pub fn first_bits(self) -> u32 {
        (self.0 >> 6) as u32 & 63
    }

    /// Bits of all that was found.
    #[inline(always)]
    pub fn bits(self) -> u32 {
        self.0 as u32 & 63
    }

    /// Whether the coefficients are there, values and all.
    #[inline(always)]
    pub fn is_done(self) -> bool {
        self.0 >> 12 & 3 == Self::DONE
    }

    /// Whether the code is known and its value has to be read.
    #[inline(always)]
    pub fn is_long_value(self) -> bool {
        self.0 >> 12 & 3 == Self::LONG_VALUE
    }
}

/// A table ready for looking up.
pub struct Table {
    spec: TableSpec,
    lookup: Box<[Found; 1 << LOOKUP_BITS]>,
    /// For codes longer than the lookup: the first code of each length that is longer, as 16 bits, and what to add to
    /// a code of that length to find its symbol.
    limits: [u32; 17],
    offsets: [i32; 17],
}

impl Table {
    /// The table of a component's first (`dc`) or other coefficients. Symbols of first coefficients are sizes, others
    /// have a run of zeros in their upper half.
    pub fn new(spec: &TableSpec, dc: bool) -> Result<Self, Unknown> {
        let lookup = vec![Found::pack([0; 2], [0; 2], [0; 2], Found::LONG_CODE); 1 << LOOKUP_BITS];
        let lookup: Box<[Found; 1 << LOOKUP_BITS]> = lookup.try_into().map_err(|_| Unknown)?;
        let mut table = Self { spec: spec.clone(), lookup, limits: [0; 17], offsets: [0; 17] };
        let (mut code, mut symbol) = (0u32, 0usize);
        for length in 1..=16u32 {
            let count = usize::from(spec.counts[length as usize - 1]);
            table.offsets[length as usize] = symbol as i32 - code as i32;
            for _ in 0..count {
                if length <= LOOKUP_BITS {
                    table.enter(code, length, spec.symbols[symbol], dc)?;
                } else if dc && spec.symbols[symbol] > 11 {
                    return Err(Unknown);
                }
                code += 1;
                symbol += 1;
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        if !dc {
            table.pair();
        }
        Ok(table)
    }

    /// Whether this is the table of `spec`.
    pub fn is_of(&self, spec: &TableSpec) -> bool {
        self.spec == *spec
    }

    /// What the next bits are; `next` has them at its top.
    #[inline(always)]
    pub fn look(&self, next: u64) -> Found {
        self.lookup[(next >> (64 - LOOKUP_BITS)) as usize]
    }

    /// A code that is too long for the lookup: its symbol and length.
    #[cold]
    pub fn long_code(&self, next: u64) -> Result<(u8, u32), Unknown> {
        let code = (next >> 48) as u32;
        let length = (LOOKUP_BITS + 1..=16).find(|&length| code < self.limits[length as usize]).ok_or(Unknown)?;
        let symbol = (code >> (16 - length)) as i32 + self.offsets[length as usize];
        Ok((*self.spec.symbols.get(symbol as usize).ok_or(Unknown)?, length))
    }

    /// Enters one code and everything that may follow it.
    fn enter(&mut self, code: u32, length: u32, symbol: u8, dc: bool) -> Result<(), Unknown> {
        let size = u32::from(if dc { symbol } else { symbol & 15 });
        if dc && size > 11 {
            return Err(Unknown);
        }
        let step = match symbol {
            _ if dc => 0,
            0 => END,
            _ if size == 0 && symbol != 0xF0 => return Err(Unknown),
            _ => usize::from(symbol >> 4) + 1,
        };
        let free = LOOKUP_BITS - length;
        let places = (code << free) as usize..((code + 1) << free) as usize;
        if size > free {
            self.lookup[places].fill(Found::pack([size as i16, 0], [step, 0], [length, length], Found::LONG_VALUE));
            return Ok(());
        }
        let rest = free - size;
        for (value, places) in self.lookup[places].chunks_exact_mut(1 << rest).enumerate() {
            let value = extend(value as u32, size) as i16;
            let bits = length + size;
            places.fill(Found::pack([value; 2], [step, 0], [bits, bits], Found::DONE));
        }
        Ok(())
    }

    /// Where a second code, value and all, fits behind the first, enters both.
    fn pair(&mut self) {
        for i in 0..self.lookup.len() {
            let first = self.lookup[i];
            if !first.is_done() || first.step() == END {
                continue;
            }
            // What follows may have been paired already; its own first code is what counts.
            let second = self.lookup[(i << first.first_bits()) & ((1 << LOOKUP_BITS) - 1)];
            let bits = first.first_bits() + second.first_bits();
            if second.is_done() && bits <= LOOKUP_BITS {
                let (values, steps) = ([first.first(), second.first()], [first.step(), second.step()]);
                self.lookup[i] = Found::pack(values, steps, [first.first_bits(), bits], Found::DONE);
            }
        }
    }
}

/// The value that `size` bits stand for: the upper half of their range as it is, the lower half negative.
#[inline(always)]
pub fn extend(bits: u32, size: u32) -> i32 {
    let half = (1i32 << size) >> 1;
    let value = bits as i32;
    if value < half { value - (1 << size) + 1 } else { value }
}
