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

/// What a look at the next bits finds: a coefficient whole, and the code of the next one, whose value follows behind
/// the look's bits or begins in them; or that second part alone.
///
/// Every look is worked off in the same way, whatever it found: what a look finds cannot be foretold, so that a branch on
/// it would cost more than the work. If there is only one coefficient it takes the second part, and the first part
/// stands at the same place, which the second then overwrites.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found(u64);

/// The fields of [`Found`], taken apart.
impl Found {
    /// A code that is longer than a look, or one that stands for nothing.
    const LONG: Self = Self(1 << 22);

    /// The bits of all stand lowest, since the next look waits for them and for nothing else.
    fn pack(value: i16, steps: [usize; 2], first_bits: u32, before: u32, size: u32) -> Self {
        let [first_bits, before, size, all] = [first_bits, before, size, before + size].map(u64::from);
        let [first, second] = steps.map(|step| step as u64);
        let value = u64::from(value as u16);
        Self(all | before << 6 | size << 12 | first_bits << 16 | first << 24 | second << 32 | value << 48)
    }

    /// A coefficient alone, or the end of a block.
    fn alone(single: &Single) -> Self {
        let Single { length, size, step, .. } = *single;
        Self::pack(0, [step, 0], length + size, length, size)
    }

    /// Whether it has to be found another way.
    #[inline(always)]
    pub fn is_long(self) -> bool {
        self.0 & Self::LONG.0 != 0
    }

    /// How many places further the first part stands; [`END`] if the block ends.
    #[inline(always)]
    pub fn step(self) -> usize {
        (self.0 >> 24) as u8 as usize
    }

    /// How many places further the second part stands from there; [`END`] if the block ends.
    #[inline(always)]
    pub fn second_step(self) -> usize {
        (self.0 >> 32) as u8 as usize
    }

    /// The first part's value.
    #[inline(always)]
    pub fn value(self) -> i16 {
        (self.0 >> 48) as i16
    }

    /// The second part's value; `next` has the bits that were looked at, and those behind them, at its top.
    #[inline(always)]
    pub fn second_value(self, next: u64) -> i32 {
        let size = (self.0 >> 12) as u32 & 15;
        extend(next.wrapping_shl((self.0 >> 6) as u32), size)
    }

    /// Bits of the first part.
    #[inline(always)]
    pub fn first_bits(self) -> u32 {
        (self.0 >> 16) as u32 & 63
    }

    /// Bits of both parts, values and all.
    #[inline(always)]
    pub fn bits(self) -> u32 {
        self.0 as u32 & 63
    }
}

/// A code that a look begins with.
#[derive(Debug, Clone, Copy, Default)]
struct Single {
    /// Its bits; 0 if the look is too short for it.
    length: u32,
    /// Bits of the value behind it.
    size: u32,
    /// How many places further the coefficient is.
    step: usize,
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
        let lookup: Box<[Found; 1 << LOOKUP_BITS]> = Box::new([Found::LONG; 1 << LOOKUP_BITS]);
        let mut singles = [Single::default(); 1 << LOOKUP_BITS];
        let mut table = Self { spec: spec.clone(), lookup, limits: [0; 17], offsets: [0; 17] };
        let (mut code, mut symbol) = (0u32, 0usize);
        for length in 1..=16u32 {
            let count = usize::from(spec.counts[length as usize - 1]);
            table.offsets[length as usize] = symbol as i32 - code as i32;
            for _ in 0..count {
                let single = single(spec.symbols[symbol], length, dc)?;
                if length <= LOOKUP_BITS {
                    let free = LOOKUP_BITS - length;
                    singles[(code << free) as usize..((code + 1) << free) as usize].fill(single);
                }
                code += 1;
                symbol += 1;
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        for (i, found) in table.lookup.iter_mut().enumerate().filter(|(i, _)| singles[*i].length > 0) {
            *found = if dc { Found::alone(&singles[i]) } else { pair(&singles, i) };
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
        let length = (1..=16).find(|&length| code < self.limits[length as usize]).ok_or(Unknown)?;
        let symbol = (code >> (16 - length)) as i32 + self.offsets[length as usize];
        Ok((*self.spec.symbols.get(symbol as usize).ok_or(Unknown)?, length))
    }
}

/// What a symbol means whose code has `length` bits.
fn single(symbol: u8, length: u32, dc: bool) -> Result<Single, Unknown> {
    let size = u32::from(if dc { symbol } else { symbol & 15 });
    // No sample of eight bits has larger coefficients.
    if size > if dc { 11 } else { 10 } {
        return if dc { Err(Unknown) } else { Ok(Single::default()) };
    }
    let step = match symbol {
        _ if dc => 0,
        0 => END,
        _ if size == 0 && symbol != 0xF0 => return Err(Unknown),
        _ => usize::from(symbol >> 4) + 1,
    };
    Ok(Single { length, size, step })
}

/// What the look `i` finds of other than first coefficients: two, if the first is whole in it, and the second's code.
fn pair(singles: &[Single; 1 << LOOKUP_BITS], i: usize) -> Found {
    let first = &singles[i];
    let bits = first.length + first.size;
    if first.step == END || bits >= LOOKUP_BITS {
        return Found::alone(first);
    }
    let second = &singles[(i << bits) & ((1 << LOOKUP_BITS) - 1)];
    if second.length == 0 || bits + second.length > LOOKUP_BITS {
        return Found::alone(first);
    }
    let value = extend((i as u64) << (64 - LOOKUP_BITS + first.length), first.size) as i16;
    Found::pack(value, [first.step, second.step], bits, bits + second.length, second.size)
}

/// The value that the first `size` bits of `next` stand for: the upper half of their range as it is, the lower half
/// negative.
#[inline(always)]
pub fn extend(next: u64, size: u32) -> i32 {
    let bits = (next >> 1 >> (63 - size)) as i32;
    let is_low = !(next as i64 >> 63) as i32;
    bits + (is_low & ((-1 << size) + 1))
}
