//! A random part of the image, resized to the view.

use fast_image_resize as fir;
use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::{Augmentation, Mode, Step, ViewContext};
use crate::decode::RgbImage;
use crate::decode::jpeg::Region;

/// A random box of the image, resized to the view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// The box's area as a share of the image's, from and to; (0.08, 1) in the paper.
    pub scale: [f64; 2],
    /// The box's width over its height, from and to; (3/4, 4/3) in the paper.
    pub ratio: [f64; 2],
    /// How the box is resized; bicubic in the paper.
    pub interpolation: Interpolation,
    /// Whether a box may end at the image's last row and column. The official code's kernel
    /// (`sample_distorted_bounding_box`) draws its offset below the last one there is, so that only boxes as high or wide as the
    /// image do; at 32 pixels that shows.
    #[serde(default = "reaches", skip_serializing_if = "Clone::clone")]
    pub reach_last: bool,
}

/// [`RandomResizedCrop::reach_last`] where it is not said.
fn reaches() -> bool {
    true
}

impl Default for RandomResizedCrop {
    /// The paper's (appendix A), with every box that there is.
    fn default() -> Self {
        Self { scale: [0.08, 1.0], ratio: [0.75, 4.0 / 3.0], interpolation: Interpolation::Bicubic, reach_last: true }
    }
}

/// How pixels between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Straight lines between pixels.
    Bilinear,
    /// Keys' cubic with a = −0.5.
    Bicubic,
}

/// A box of the image, to be resized to the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropStep {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns, at least one.
    pub width: u32,
    /// Rows, at least one.
    pub height: u32,
    /// How it is resized.
    pub interpolation: Interpolation,
}

impl CropStep {
    /// The box.
    pub fn region(&self) -> Region {
        Region { left: self.left, top: self.top, width: self.width, height: self.height }
    }
}

impl Augmentation for RandomResizedCrop {
    fn check(&self) -> Result<(), (String, String)> {
        let sound = |[low, high]: [f64; 2], max: f64| low > 0.0 && low <= high && high <= max;
        if !sound(self.scale, 1.0) {
            return Err((format!("scale {:?}", self.scale), "expected [from, to] with 0 < from <= to <= 1".into()));
        }
        if !sound(self.ratio, 1e3) {
            return Err((format!("ratio {:?}", self.ratio), "expected [from, to] with 0 < from <= to <= 1000".into()));
        }
        Ok(())
    }

    fn draw(&self, context: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.push(Step::Crop(self.drawn(context.mode, draws, context.width, context.height)));
    }

    fn is_crop(&self) -> bool {
        true
    }
}

impl RandomResizedCrop {
    /// Draws the box in an image of `width` × `height` pixels.
    fn drawn(&self, mode: Mode, draws: &mut Draws, width: u32, height: u32) -> CropStep {
        let (left, top, width, height) = match mode {
            Mode::Torchvision => self.draw_by_area(draws, width, height),
            Mode::Paper => self.draw_by_height(draws, width, height),
        };
        CropStep { left, top, width, height, interpolation: self.interpolation }
    }

    /// Same sampling rule as torchvision's RandomResizedCrop: area uniform, ratio log-uniform, ten tries, then the
    /// largest central box of an allowed ratio.
    fn draw_by_area(&self, draws: &mut Draws, width: u32, height: u32) -> (u32, u32, u32, u32) {
        let (full_width, full_height) = (f64::from(width), f64::from(height));
        for _ in 0..10 {
            let area = full_width * full_height * draws.uniform(self.scale[0], self.scale[1]);
            let ratio = libm::exp(draws.uniform(libm::log(self.ratio[0]), libm::log(self.ratio[1])));
            let w = libm::sqrt(area * ratio).round_ties_even() as u32;
            let h = libm::sqrt(area / ratio).round_ties_even() as u32;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = self.offset(draws, height - h);
                let left = self.offset(draws, width - w);
                return (left, top, w, h);
            }
        }
        let ratio = full_width / full_height;
        let (w, h) = if ratio < self.ratio[0] {
            (width, (full_width / self.ratio[0]).round_ties_even() as u32)
        } else if ratio > self.ratio[1] {
            ((full_height * self.ratio[1]).round_ties_even() as u32, height)
        } else {
            (width, height)
        };
        let (w, h) = (w.clamp(1, width), h.clamp(1, height));
        ((width - w) / 2, (height - h) / 2, w, h)
    }

    /// Same sampling rule as TensorFlow's `sample_distorted_bounding_box` with the whole image as the object and
    /// `min_object_covered` 0.1: ratio uniform, height uniform among those whose area is allowed, a hundred tries,
    /// then the whole image.
    fn draw_by_height(&self, draws: &mut Draws, width: u32, height: u32) -> (u32, u32, u32, u32) {
        const MIN_OBJECT_COVERED: f64 = 0.1;
        let (full_width, full_height) = (f64::from(width), f64::from(height));
        let full_area = full_width * full_height;
        let (min_area, max_area) = (self.scale[0] * full_area, self.scale[1] * full_area);
        for _ in 0..100 {
            let ratio = draws.uniform(self.ratio[0], self.ratio[1]);
            let lowest = libm::sqrt(min_area / ratio).round_ties_even();
            let mut highest = libm::sqrt(max_area / ratio).round_ties_even();
            if (highest * ratio).round_ties_even() > full_width {
                highest = ((full_width + 0.5 - 1e-7) / ratio).floor();
            }
            highest = highest.min(full_height);
            let mut h = lowest.min(highest);
            if h < highest {
                h += draws.below((highest - h) as u64 + 1) as f64;
            }
            let mut w = (h * ratio).round_ties_even();
            // Rounding can push the area over an edge by one row; take the row off or put it on.
            if w * h < min_area {
                h += 1.0;
                w = (h * ratio).round_ties_even();
            }
            if w * h > max_area {
                h -= 1.0;
                w = (h * ratio).round_ties_even();
            }
            let fits = w >= 1.0 && h >= 1.0 && w <= full_width && h <= full_height;
            if !fits || w * h < min_area.max(MIN_OBJECT_COVERED * full_area) || w * h > max_area {
                continue;
            }
            let (w, h) = (w as u32, h as u32);
            let top = self.offset(draws, height - h);
            let left = self.offset(draws, width - w);
            return (left, top, w, h);
        }
        (0, 0, width, height)
    }

    /// An offset of a box with so many rows or columns to spare.
    fn offset(&self, draws: &mut Draws, spare: u32) -> u32 {
        let offsets = if self.reach_last { u64::from(spare) + 1 } else { u64::from(spare).max(1) };
        draws.below(offsets) as u32
    }
}

/// Cuts and resizes, keeping the resizer's buffers.
#[derive(Default)]
pub(super) struct Cropper {
    resizer: fir::Resizer,
    narrowed: Vec<u8>,
    columns: Vec<Tap>,
    rows: Vec<Tap>,
    values: Vec<f32>,
}

impl Cropper {
    /// Writes the box of `image` that `crop` names, resized to `size` × `size`, to `out`.
    ///
    /// The box is an image of its own: pixels outside it have no influence. With antialiasing (torchvision) the
    /// kernel widens with the reduction; without (paper) it always spans four pixels. Rows are resized before
    /// columns, u8 between the two, as Pillow and torchvision do; with a cubic kernel the order can be seen.
    pub(super) fn crop(&mut self, image: &RgbImage, crop: &CropStep, mode: Mode, size: usize, out: &mut [u8]) {
        let filter = match crop.interpolation {
            Interpolation::Bilinear => fir::FilterType::Bilinear,
            Interpolation::Bicubic => fir::FilterType::CatmullRom,
        };
        if mode == Mode::Paper {
            return self.interpolate(image, crop, size, out);
        }
        let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter)).use_alpha(false);
        let side = size as u32;
        // The typed forms: the dynamic ones would compile every pixel type of the library in.
        type Rgb = fir::pixels::U8x3;
        let source = fir::images::TypedImageRef::<Rgb>::from_buffer(image.width, image.height, &image.pixels)
            .expect("a decoded image has all its pixels");
        let source = fir::images::TypedCroppedImage::new(source, crop.left, crop.top, crop.width, crop.height)
            .expect("a drawn box lies in its image");
        self.narrowed.resize(size * crop.height as usize * 3, 0);
        let mut narrowed = fir::images::TypedImage::<Rgb>::from_buffer(side, crop.height, &mut self.narrowed)
            .expect("the buffer has room for its pixels");
        self.resizer.resize_typed(&source, &mut narrowed, &options).expect("a box is at least a pixel large");
        let mut target = fir::images::TypedImage::<Rgb>::from_buffer(side, side, out)
            .expect("a view's place has room for its pixels");
        self.resizer.resize_typed(&narrowed, &mut target, &options).expect("a view is at least a pixel large");
    }

    /// Resizes as `tf.image.resize` without antialiasing does: a kernel of fixed width, in floats, rounded once.
    fn interpolate(&mut self, image: &RgbImage, crop: &CropStep, size: usize, out: &mut [u8]) {
        let (width, height) = (crop.width as usize, crop.height as usize);
        let row_values = size * 3;
        taps(crop.interpolation, width, size, &mut self.columns);
        taps(crop.interpolation, height, size, &mut self.rows);
        // Four rows are kept, each in the place of its number modulo four; output rows need them in order.
        self.values.resize(4 * row_values, 0.0);
        let mut kept = [usize::MAX; 4];
        for (out, tap) in out.chunks_exact_mut(row_values).zip(&self.rows) {
            let wanted: [usize; 4] = std::array::from_fn(|i| (tap.first + i).min(height - 1));
            for y in wanted {
                if kept[y % 4] != y {
                    kept[y % 4] = y;
                    let start = ((crop.top as usize + y) * image.width as usize + crop.left as usize) * 3;
                    let values = &mut self.values[y % 4 * row_values..][..row_values];
                    resize_row(&image.pixels[start..start + width * 3], &self.columns, values);
                }
            }
            let [a, b, c, d] = wanted.map(|y| &self.values[y % 4 * row_values..][..row_values]);
            let [wa, wb, wc, wd] = tap.weights;
            for (i, out) in out.iter_mut().enumerate() {
                // `as` cuts to the range of u8.
                *out = (wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i] + 0.5) as u8;
            }
        }
    }
}

/// Resizes one row of RGB pixels.
fn resize_row(source: &[u8], columns: &[Tap], values: &mut [f32]) {
    let last = source.len() / 3 - 1;
    for (value, tap) in values.chunks_exact_mut(3).zip(columns) {
        let mut sum = [0f32; 3];
        for (i, weight) in tap.weights.iter().enumerate() {
            let pixel = &source[(tap.first + i).min(last) * 3..][..3];
            for channel in 0..3 {
                sum[channel] += weight * f32::from(pixel[channel]);
            }
        }
        value.copy_from_slice(&sum);
    }
}

/// The pixels that one output pixel is made of: four in a row, whose weights sum to 1; those outside weigh nothing.
struct Tap {
    first: usize,
    weights: [f32; 4],
}

/// The taps that resize `from` pixels to `to`.
fn taps(interpolation: Interpolation, from: usize, to: usize, taps: &mut Vec<Tap>) {
    let kernel = |distance: f64| {
        let x = distance.abs();
        match interpolation {
            Interpolation::Bilinear => (1.0 - x).max(0.0),
            Interpolation::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Interpolation::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Interpolation::Bicubic => 0.0,
        }
    };
    taps.clear();
    taps.extend((0..to).map(|i| {
        let centre = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let wanted = centre.floor() as i64 - 1;
        let first = wanted.max(0);
        let inside = first..(wanted + 4).min(from as i64);
        let weights: [f64; 4] = std::array::from_fn(|i| {
            let at = first + i as i64;
            if inside.contains(&at) { kernel(at as f64 - centre) } else { 0.0 }
        });
        let sum: f64 = weights.iter().sum();
        Tap { first: first as usize, weights: weights.map(|weight| (weight / sum) as f32) }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use simclr_ground::rng::Purpose;

    fn op() -> RandomResizedCrop {
        RandomResizedCrop::default()
    }

    fn boxes(mode: Mode, width: u32, height: u32) -> Vec<CropStep> {
        (0..3000).map(|i| op().drawn(mode, &mut Draws::new(1, Purpose::Augment, &[i]), width, height)).collect()
    }

    #[test]
    fn boxes_lie_in_the_image() {
        for mode in [Mode::Paper, Mode::Torchvision] {
            for (width, height) in [(500, 375), (1, 1), (2, 900), (900, 2), (3, 3)] {
                for step in boxes(mode, width, height) {
                    let inside = step.width >= 1 && step.height >= 1;
                    assert!(inside && step.left + step.width <= width && step.top + step.height <= height, "{step:?}");
                }
            }
        }
    }

    /// torchvision: the mean area is that of U(0.08, 1), a little less for boxes that do not fit.
    #[test]
    fn torchvision_boxes_are_uniform_in_area() {
        let areas: Vec<f64> =
            boxes(Mode::Torchvision, 400, 400).iter().map(|b| f64::from(b.width * b.height) / 160_000.0).collect();
        let mean = areas.iter().sum::<f64>() / areas.len() as f64;
        assert!((0.46..0.55).contains(&mean), "mean area {mean}");
        let small = areas.iter().filter(|&&a| a < 0.31).count() as f64 / areas.len() as f64;
        assert!((small - 0.27).abs() < 0.04, "share of areas below 0.31: {small}");
    }

    /// paper: heights are uniform between those of the smallest and largest area, so small areas are more frequent
    /// than uniform areas would be, and none covers less than a tenth of the image.
    #[test]
    fn paper_boxes_are_uniform_in_height() {
        let boxes = boxes(Mode::Paper, 400, 400);
        let square: Vec<f64> = boxes
            .iter()
            .filter(|b| (0.97..1.03).contains(&(f64::from(b.width) / f64::from(b.height))))
            .map(|b| f64::from(b.height))
            .collect();
        let mean = square.iter().sum::<f64>() / square.len() as f64;
        let wanted = (f64::sqrt(0.1) + 1.0) / 2.0 * 400.0;
        assert!((mean - wanted).abs() < 15.0, "mean height {mean}, {wanted} wanted");
        assert!(boxes.iter().all(|b| f64::from(b.width * b.height) >= 0.1 * 160_000.0));
    }
}
