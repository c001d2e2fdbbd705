//! The working form of a view: three planes of f32 in [0, 255], so that loops over them vectorise.

/// A view while its colours are being changed.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green and blue, row-major, in [0, 255].
    pub planes: [Vec<f32>; 3],
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

    /// Gives out the pixels (`height × width × 3` u8), rounded half up and cut to [0, 255].
    pub fn write(&self, pixels: &mut [u8]) {
        let [red, green, blue] = &self.planes;
        for (((pixel, r), g), b) in pixels.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
            // `as` cuts to the range of u8.
            pixel[0] = (r + 0.5) as u8;
            pixel[1] = (g + 0.5) as u8;
            pixel[2] = (b + 0.5) as u8;
        }
    }

    /// Replaces every pixel's colour.
    pub(super) fn map(&mut self, f: impl Fn([f32; 3]) -> [f32; 3]) {
        let [red, green, blue] = &mut self.planes;
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            [*r, *g, *b] = f([*r, *g, *b]);
        }
    }

    /// Replaces every channel's value.
    pub(super) fn map_channels(&mut self, f: impl Fn(f32) -> f32) {
        for plane in &mut self.planes {
            for value in plane {
                *value = f(*value);
            }
        }
    }
}
