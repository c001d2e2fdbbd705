//! The working form of a view: three planes of f32 in [0, 255], so that loops over them vectorise.

use crate::simd::interleave_floats;

/// A view while its colours are being changed.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green and blue, row-major, in [0, 255].
    pub planes: [Vec<f32>; 3],
    /// Room for a plane while one is made of another.
    pub(super) spare: Vec<f32>,
}

impl View {
    /// Takes in `pixels` (`height × width × 3` u8).
    pub fn read(&mut self, pixels: &[u8], width: usize, height: usize) {
        assert_eq!(pixels.len(), width * height * 3, "{width} × {height} pixels");
        (self.width, self.height) = (width, height);
        for (channel, plane) in self.planes.iter_mut().enumerate() {
            plane.clear();
            plane.extend(pixels.chunks_exact(3).map(|pixel| f32::from(pixel[channel])));
        }
    }

    /// Makes room for `width` × `height` pixels.
    pub(super) fn set_size(&mut self, width: usize, height: usize) {
        (self.width, self.height) = (width, height);
        self.planes.iter_mut().for_each(|plane| plane.resize(width * height, 0.0));
    }

    /// Gives out the pixels (`height × width × 3` u8), rounded half up and cut to [0, 255].
    pub fn write(&self, pixels: &mut [u8]) {
        interleave_floats(self.planes.each_ref().map(Vec::as_slice), pixels);
    }

    /// Mirrors left and right.
    pub(super) fn mirror(&mut self) {
        for plane in &mut self.planes {
            plane.chunks_exact_mut(self.width.max(1)).for_each(<[f32]>::reverse);
        }
    }
}
