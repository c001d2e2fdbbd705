//! The working form of a view: three planes of bytes, so that loops over them vectorise.

use crate::simd::interleave;

/// A view while it is being made.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green and blue, row-major.
    pub planes: [Vec<u8>; 3],
    /// Room for a plane while one is made of another.
    pub(super) spare: Vec<u8>,
    /// Room for a plane with more bits.
    pub(super) wide: Vec<i16>,
}

impl View {
    /// Takes in `pixels` (`height × width × 3` u8).
    pub fn read(&mut self, pixels: &[u8], width: usize, height: usize) {
        assert_eq!(pixels.len(), width * height * 3, "{width} × {height} pixels");
        (self.width, self.height) = (width, height);
        for (channel, plane) in self.planes.iter_mut().enumerate() {
            plane.clear();
            plane.extend(pixels.chunks_exact(3).map(|pixel| pixel[channel]));
        }
    }

    /// Gives out the pixels (`height × width × 3` u8).
    pub fn write(&self, pixels: &mut [u8]) {
        interleave(self.planes.each_ref().map(Vec::as_slice), pixels);
    }

    /// Mirrors left and right.
    pub(super) fn mirror(&mut self) {
        for plane in &mut self.planes {
            plane.chunks_exact_mut(self.width.max(1)).for_each(<[u8]>::reverse);
        }
    }
}
