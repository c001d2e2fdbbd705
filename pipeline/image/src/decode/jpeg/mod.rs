//! Baseline JPEG, fast: one pass over the entropy-coded data, pixels only where they are needed, color planes as they
//! are stored.
//!
//! What is not plain baseline (progressive, arithmetic, CMYK, odd sampling, several scans, anything that looks
//! damaged) is [`Unknown`] and goes to the general path, which knows it or knows what is wrong with it. The planes
//! equal those of libjpeg's `islow` decoder to the bit.

mod color;
mod entropy;
mod header;
mod huffman;
mod idct;
mod row_index;

use header::Header;
pub use header::Sampling;
use idct::Block;
pub use row_index::RowIndex;

use crate::decode::RgbImage;

/// A file that the general path has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown;

/// A part of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Region {
    /// The smallest region that holds both.
    pub fn union(self, other: Self) -> Self {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        let right = (self.left + self.width).max(other.left + other.width);
        let bottom = (self.top + self.height).max(other.top + other.height);
        Self { left, top, width: right - left, height: bottom - top }
    }
}

/// One color component of an image, or the part of it that was decoded.
#[derive(Debug, Clone, Default)]
pub struct Plane {
    /// Samples, row-major, and [`MARGIN`] bytes behind them.
    pub samples: Vec<u8>,
    /// Samples from one row to the next.
    pub stride: usize,
    /// Column of the first sample in the whole plane.
    pub left: usize,
    /// Row of the first sample in the whole plane.
    pub top: usize,
    /// Columns of the whole plane.
    pub width: usize,
    /// Rows of the whole plane.
    pub height: usize,
}

/// Bytes behind a plane's samples, so that whole vectors can be read at the end of its last row.
pub const MARGIN: usize = 32;

impl Plane {
    /// The samples of a row of the whole plane, from its column `from` up to before `to`; all must have been decoded.
    pub fn row(&self, y: usize, from: usize, to: usize) -> &[u8] {
        let start = (y - self.top) * self.stride;
        &self.samples[start + from - self.left..start + to - self.left]
    }

    /// At least `n` samples of a row from its column `from`; those that the row does not have mean nothing.
    pub fn row_from(&self, y: usize, from: usize, n: usize) -> &[u8] {
        &self.samples[(y - self.top) * self.stride + from - self.left..][..n]
    }
}

/// The colors that three planes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Colors {
    /// Luma and two differences, as JPEG has them.
    #[default]
    YCbCr,
    /// Red, green and blue.
    Rgb,
    /// Luma alone; the other planes are empty.
    Gray,
}

/// An image, or a part of it, as planes.
#[derive(Debug, Clone, Default)]
pub struct Planes {
    /// Columns of the whole image.
    pub width: u32,
    /// Rows of the whole image.
    pub height: u32,
    /// What the planes are.
    pub colors: Colors,
    /// The planes; the second and third may have half the columns, or rows, or both.
    pub planes: [Plane; 3],
}

impl Planes {
    /// Takes in an image whose pixels are there already.
    pub fn set_rgb(&mut self, image: &RgbImage) {
        (self.width, self.height, self.colors) = (image.width, image.height, Colors::Rgb);
        let (width, height) = (image.width as usize, image.height as usize);
        for (channel, plane) in self.planes.iter_mut().enumerate() {
            plane.samples.clear();
            plane.samples.extend(image.pixels.chunks_exact(3).map(|pixel| pixel[channel]));
            plane.samples.extend([0; MARGIN]);
            (plane.stride, plane.left, plane.top, plane.width, plane.height) = (width, 0, 0, width, height);
        }
    }

    /// The pixels of an image that was decoded as a whole: chroma brought to full size as libjpeg's "fancy"
    /// upsampling does, then RGB.
    pub fn to_rgb(&self) -> RgbImage {
        color::to_rgb(self)
    }
}

/// A baseline JPEG whose header was understood.
pub struct Jpeg<'a> {
    header: Header<'a>,
}

impl<'a> Jpeg<'a> {
    /// Understands the header of a JPEG file.
    ///
    /// # Errors
    /// [`Unknown`] if it is not plain baseline.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Unknown> {
        Ok(Self { header: Header::parse(bytes)? })
    }

    /// Columns and rows.
    pub fn size(&self) -> (u32, u32) {
        (self.header.width, self.header.height)
    }
}

/// Decodes images one after the other, keeping its buffers and tables.
#[derive(Default)]
pub struct Decoder {
    entropy: entropy::Entropy,
    planes: Planes,
}

impl Decoder {
    /// Decodes what is in `region`, and a little around it.
    ///
    /// All of the file's data is gone through, so that a damaged file is noticed whatever the region.
    ///
    /// # Errors
    /// [`Unknown`] if the data is not as it should be.
    pub fn decode(&mut self, jpeg: &Jpeg<'_>, region: Region) -> Result<&Planes, Unknown> {
        self.run(jpeg, region, None, None)?;
        Ok(&self.planes)
    }

    /// As [`Decoder::decode`], of a file that was found sound before, with an index that was found to be this file's: rows
    /// outside of the region are not gone through.
    ///
    /// # Errors
    /// [`Unknown`] if the index is not this file's, as far as that is noticed.
    pub fn decode_indexed(&mut self, jpeg: &Jpeg<'_>, region: Region, index: &RowIndex) -> Result<&Planes, Unknown> {
        self.run(jpeg, region, Some(index), None)?;
        Ok(&self.planes)
    }

    /// As [`Decoder::decode`], and whether `index` is this file's, which only its data as a whole can tell.
    ///
    /// # Errors
    /// [`Unknown`] if the data is not as it should be.
    pub fn decode_checking(&mut self, jpeg: &Jpeg<'_>, region: Region, index: &RowIndex) -> Result<bool, Unknown> {
        if jpeg.header.restart_interval > 0 {
            // Such a file has no index.
            self.run(jpeg, region, None, None)?;
            return Ok(false);
        }
        let mut found = RowIndex::default();
        self.run(jpeg, region, None, Some(&mut found))?;
        Ok(found == *index)
    }

    /// Where a file's data may be entered.
    ///
    /// # Errors
    /// [`Unknown`] if the file is not sound plain baseline, or has restart intervals.
    pub fn index(&mut self, jpeg: &Jpeg<'_>) -> Result<RowIndex, Unknown> {
        let header = &jpeg.header;
        let mut index = RowIndex::default();
        let nothing = [const { (0..0, 0..0) }; 3];
        self.entropy.decode(header, &nothing, None, Some(&mut index), |_, _, _, _| true)?;
        Ok(index)
    }

    /// The planes that were decoded last.
    pub fn planes(&self) -> &Planes {
        &self.planes
    }

    /// Takes in an image that the general path decoded.
    pub fn set_rgb(&mut self, image: &RgbImage) -> &Planes {
        self.planes.set_rgb(image);
        &self.planes
    }

    /// Decodes a region, entering the data where `known` says so, or noting in `index` where it may be entered.
    fn run(
        &mut self,
        jpeg: &Jpeg<'_>,
        region: Region,
        known: Option<&RowIndex>,
        index: Option<&mut RowIndex>,
    ) -> Result<(), Unknown> {
        let header = &jpeg.header;
        let planes = &mut self.planes;
        (planes.width, planes.height) = (header.width, header.height);
        planes.colors = if header.components.len() == 1 { Colors::Gray } else { Colors::YCbCr };
        let mut blocks = [const { (0..0, 0..0) }; 3];
        for (i, component) in header.components.iter().enumerate() {
            let plane = &mut planes.planes[i];
            let (h, v) = header.reduction(i);
            (plane.width, plane.height) = (header.width.div_ceil(h) as usize, header.height.div_ceil(v) as usize);
            // One sample more on each side, for kernels that reach over the edge of a subsampled region.
            let columns = (region.left / h).saturating_sub(1)..((region.left + region.width).div_ceil(h) + 1);
            let rows = (region.top / v).saturating_sub(1)..((region.top + region.height).div_ceil(v) + 1);
            let columns = columns.start / 8..columns.end.min(plane.width as u32).div_ceil(8);
            let rows = rows.start / 8..rows.end.min(plane.height as u32).div_ceil(8);
            (plane.left, plane.top) = (columns.start as usize * 8, rows.start as usize * 8);
            plane.stride = columns.len() * 8;
            plane.samples.resize(plane.stride * rows.len() * 8 + MARGIN, 0);
            blocks[i] = (columns, rows);
            debug_assert_eq!(component.index, i);
        }
        let transform = idct::Transform::choose();
        let outputs = &mut planes.planes;
        let quantization = &header.quantization;
        let place = |component: usize, column: u32, row: u32, block: &Block| {
            let plane = &mut outputs[component];
            let start = (row as usize * 8 - plane.top) * plane.stride + (column as usize * 8 - plane.left);
            transform.apply(block, &quantization[component], &mut plane.samples[start..], plane.stride)
        };
        let entropy = &mut self.entropy;
        crate::simd::vectorized(
            #[inline(always)]
            || entropy.decode(header, &blocks, known, index, place),
        )
    }
}

#[cfg(test)]
mod tests;
