//! The segments before a JPEG's image data.

use super::Unknown;
use super::huffman::TableSpec;
use super::idct::Quantization;

/// The order of coefficients in the file: entry `k` is the place of coefficient `k` in its block, row-major.
pub const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// How many blocks of luma, across and down, go with one block of each color difference.
pub type Sampling = (u32, u32);

/// A color component as the frame and scan headers describe it.
#[derive(Debug, Clone)]
pub struct Component {
    pub index: usize,
    id: u8,
    /// Blocks across and down in a unit of the scan.
    pub sampling: Sampling,
    quantization: u8,
    /// Indices of its Huffman tables.
    pub dc: usize,
    pub ac: usize,
}

/// All that is needed to decode the scan.
pub struct Header<'a> {
    pub width: u32,
    pub height: u32,
    pub components: Vec<Component>,
    /// Each component's quantization.
    pub quantization: Vec<Quantization>,
    pub dc: [Option<TableSpec>; 4],
    pub ac: [Option<TableSpec>; 4],
    /// Units of the scan between two restart markers; 0 without.
    pub restart_interval: u32,
    /// The entropy-coded data and whatever follows.
    pub data: &'a [u8],
}

impl<'a> Header<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Unknown> {
        let mut rest = bytes.strip_prefix(&[0xFF, 0xD8]).ok_or(Unknown)?;
        let mut tables: [Option<[i16; 64]>; 4] = [None; 4];
        let (mut dc, mut ac) = ([const { None }; 4], [const { None }; 4]);
        let mut frame: Option<(u32, u32, Vec<Component>)> = None;
        let (mut restart_interval, mut jfif, mut adobe) = (0, false, None);
        loop {
            let [0xFF, marker, high, low, ..] = *rest else { return Err(Unknown) };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let segment = rest.get(4..2 + length).ok_or(Unknown)?;
            rest = &rest[2 + length..];
            match marker {
                0xC0 | 0xC1 if frame.is_none() => frame = Some(parse_frame(segment)?),
                0xC4 => parse_huffman(segment, &mut dc, &mut ac)?,
                0xDB => parse_quantization(segment, &mut tables)?,
                0xDD => restart_interval = u32::from(u16::from_be_bytes(segment.try_into().map_err(|_| Unknown)?)),
                0xE0 => jfif |= segment.starts_with(b"JFIF\0"),
                0xEE => {
                    if let (true, Some(&transform)) = (segment.starts_with(b"Adobe"), segment.get(11)) {
                        adobe = Some(transform);
                    }
                }
                0xE1..=0xEF | 0xFE => {}
                0xDA => {
                    let (width, height, mut components) = frame.ok_or(Unknown)?;
                    parse_scan(segment, &mut components)?;
                    let ids: Vec<u8> = components.iter().map(|component| component.id).collect();
                    let ycc = match (jfif, adobe) {
                        (true, _) => true,
                        (false, Some(transform)) => transform == 1,
                        (false, None) => ids == [1, 2, 3],
                    };
                    if components.len() == 3 && !ycc {
                        return Err(Unknown);
                    }
                    let table = |component: &Component| tables[usize::from(component.quantization)];
                    let quantization = components.iter().map(|component| table(component).map(Quantization::new));
                    let quantization = quantization.collect::<Option<_>>().ok_or(Unknown)?;
                    return Ok(Self { width, height, components, quantization, dc, ac, restart_interval, data: rest });
                }
                _ => return Err(Unknown),
            }
        }
    }

    /// By how much component `i` has fewer samples than the image has pixels, across and down.
    pub fn reduction(&self, i: usize) -> Sampling {
        let (h, v) = self.components[0].sampling;
        (h / self.components[i].sampling.0, v / self.components[i].sampling.1)
    }
}

fn parse_frame(segment: &[u8]) -> Result<(u32, u32, Vec<Component>), Unknown> {
    let [8, h1, h2, w1, w2, count, components @ ..] = segment else { return Err(Unknown) };
    let (width, height) = (u16::from_be_bytes([*w1, *w2]), u16::from_be_bytes([*h1, *h2]));
    if width == 0 || height == 0 || components.len() != 3 * usize::from(*count) {
        return Err(Unknown);
    }
    let component = |(index, parts): (usize, &[u8])| {
        let sampling = (u32::from(parts[1] >> 4), u32::from(parts[1] & 15));
        Component { index, id: parts[0], sampling, quantization: parts[2], dc: 0, ac: 0 }
    };
    let mut components: Vec<Component> = components.chunks_exact(3).enumerate().map(component).collect();
    let samplings: Vec<Sampling> = components.iter().map(|component| component.sampling).collect();
    match samplings[..] {
        // A single component's blocks stand one after the other, whatever its factors.
        [_] => components[0].sampling = (1, 1),
        [(1 | 2, 1 | 2), (1, 1), (1, 1)] => {}
        _ => return Err(Unknown),
    }
    if components.iter().any(|component| component.quantization > 3) {
        return Err(Unknown);
    }
    Ok((width.into(), height.into(), components))
}

fn parse_scan(segment: &[u8], components: &mut [Component]) -> Result<(), Unknown> {
    let n = components.len();
    if segment.len() != 4 + 2 * n || usize::from(segment[0]) != n || segment[1 + 2 * n..] != [0, 63, 0] {
        return Err(Unknown);
    }
    for (component, parts) in components.iter_mut().zip(segment[1..].chunks_exact(2)) {
        (component.dc, component.ac) = (usize::from(parts[1] >> 4), usize::from(parts[1] & 15));
        if parts[0] != component.id || component.dc > 3 || component.ac > 3 {
            return Err(Unknown);
        }
    }
    Ok(())
}

fn parse_quantization(mut segment: &[u8], tables: &mut [Option<[i16; 64]>; 4]) -> Result<(), Unknown> {
    while let [kind, rest @ ..] = segment {
        if kind >> 4 > 1 || kind & 15 > 3 {
            return Err(Unknown);
        }
        let width = 1 + usize::from(kind >> 4);
        let values = rest.get(..64 * width).ok_or(Unknown)?;
        let mut table = [0; 64];
        for (&place, value) in ZIGZAG.iter().zip(values.chunks_exact(width)) {
            let value = value.iter().fold(0, |all, &byte| all << 8 | u16::from(byte));
            // The largest coefficient of eight-bit samples is below 2048; more is no image's.
            table[usize::from(place)] = i16::try_from(value).ok().filter(|&value| value <= 2048).ok_or(Unknown)?;
        }
        tables[usize::from(kind & 15)] = Some(table);
        segment = &rest[64 * width..];
    }
    Ok(())
}

fn parse_huffman(
    mut segment: &[u8],
    dc: &mut [Option<TableSpec>; 4],
    ac: &mut [Option<TableSpec>; 4],
) -> Result<(), Unknown> {
    while let [kind, rest @ ..] = segment {
        let counts: [u8; 16] = rest.get(..16).and_then(|counts| counts.try_into().ok()).ok_or(Unknown)?;
        let n: usize = counts.iter().map(|&count| usize::from(count)).sum();
        let symbols = rest.get(16..16 + n).ok_or(Unknown)?;
        let tables = match kind >> 4 {
            0 => &mut *dc,
            1 => &mut *ac,
            _ => return Err(Unknown),
        };
        *tables.get_mut(usize::from(kind & 15)).ok_or(Unknown)? = Some(TableSpec::new(counts, symbols)?);
        segment = &rest[16 + n..];
    }
    Ok(())
}
