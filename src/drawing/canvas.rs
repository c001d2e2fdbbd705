//! Draws on RGB images: text, boxes, other images. Enough for a contact sheet.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};
use simclr_image::decode::RgbImage;

/// The ground of images that stand in reports.
pub const PAPER: [u8; 3] = [251, 251, 249];
/// What is written on it.
pub const INK: [u8; 3] = [28, 30, 34];

/// An image that is being drawn on.
pub struct Canvas {
    image: RgbImage,
    text: FontRef<'static>,
    mono: FontRef<'static>,
}

/// A font of the canvas.
#[derive(Clone, Copy)]
pub enum Face {
    /// For titles and names.
    Text,
    /// For numbers in columns.
    Mono,
}

impl Canvas {
    /// A canvas of one color.
    pub fn new(width: u32, height: u32, colour: [u8; 3]) -> Self {
        let pixels = colour.repeat(width as usize * height as usize);
        let font = |bytes: &'static [u8]| FontRef::try_from_slice(bytes).expect("the embedded fonts are fonts");
        Self {
            image: RgbImage { width, height, pixels },
            text: font(epaint_default_fonts::UBUNTU_LIGHT),
            mono: font(epaint_default_fonts::HACK_REGULAR),
        }
    }

    /// The image.
    pub fn into_image(self) -> RgbImage {
        self.image
    }

    /// Fills a rectangle.
    pub fn fill(&mut self, x: u32, y: u32, width: u32, height: u32, colour: [u8; 3]) {
        for row in y..(y + height).min(self.image.height) {
            for column in x..(x + width).min(self.image.width) {
                self.blend(column as i64, row as i64, colour, 1.0);
            }
        }
    }

    /// Puts `image` into the square of `side` pixels at (x, y): scaled to fit, centered.
    pub fn put(&mut self, image: &RgbImage, x: u32, y: u32, side: u32) {
        let scale = f64::from(side) / f64::from(image.width.max(image.height));
        let width = ((f64::from(image.width) * scale).round() as u32).clamp(1, side);
        let height = ((f64::from(image.height) * scale).round() as u32).clamp(1, side);
        let source = image::RgbImage::from_raw(image.width, image.height, image.pixels.clone())
            .expect("an image has all its pixels");
        // Small images are shown as the pixels they are.
        let filter = if scale >= 1.0 { image::imageops::Nearest } else { image::imageops::CatmullRom };
        let scaled = image::imageops::resize(&source, width, height, filter);
        let (left, top) = (x + (side - width) / 2, y + (side - height) / 2);
        for (column, row, pixel) in scaled.enumerate_pixels() {
            self.blend(i64::from(left + column), i64::from(top + row), pixel.0, 1.0);
        }
    }

    /// Writes a line whose top is at y; what does not fit into `width` is cut off with an ellipsis.
    #[allow(clippy::too_many_arguments)]
    pub fn write(&mut self, text: &str, x: u32, y: u32, width: u32, size: f32, face: Face, colour: [u8; 3]) {
        let font = match face {
            Face::Text => self.text.clone(),
            Face::Mono => self.mono.clone(),
        };
        let scaled = font.as_scaled(PxScale::from(size));
        let advance = |c: char| scaled.h_advance(scaled.glyph_id(c));
        let mut line = text.to_owned();
        if text.chars().map(advance).sum::<f32>() > width as f32 {
            while !line.is_empty() && line.chars().map(advance).sum::<f32>() + advance('…') > width as f32 {
                line.pop();
            }
            line.push('…');
        }
        let mut pen = point(x as f32, y as f32 + scaled.ascent());
        for c in line.chars() {
            let id = scaled.glyph_id(c);
            if let Some(outline) = font.outline_glyph(id.with_scale_and_position(PxScale::from(size), pen)) {
                let bounds = outline.px_bounds();
                outline.draw(|dx, dy, share| {
                    self.blend(bounds.min.x as i64 + i64::from(dx), bounds.min.y as i64 + i64::from(dy), colour, share);
                });
            }
            pen.x += scaled.h_advance(id);
        }
    }

    fn blend(&mut self, x: i64, y: i64, colour: [u8; 3], share: f32) {
        if (0..i64::from(self.image.width)).contains(&x) && (0..i64::from(self.image.height)).contains(&y) {
            let at = (y as usize * self.image.width as usize + x as usize) * 3;
            for (old, new) in self.image.pixels[at..at + 3].iter_mut().zip(colour) {
                *old = (f32::from(*old) + (f32::from(new) - f32::from(*old)) * share.clamp(0.0, 1.0)).round() as u8;
            }
        }
    }
}
