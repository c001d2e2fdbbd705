//! Makes images smaller before they are packed: fewer pixels, or stronger compression.

use fast_image_resize as fir;
use simclr_image::damage::{Damage, DamageReason};
use simclr_image::decode::{Orientation, RgbImage, decode, orientation};

/// Images of more pixels than this are not decoded for packing.
const MAX_PIXELS: u64 = 400_000_000;

/// How images are re-encoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resize {
    /// The short side in pixels; an image that is smaller keeps its size, 0 keeps all sizes.
    pub short_side: u32,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
    /// Halve the resolution of colors (4:2:0), which the eye hardly sees and decoding gains by.
    pub subsample: bool,
}

impl std::fmt::Display for Resize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sampling = if self.subsample { "4:2:0" } else { "4:4:4" };
        match self.short_side {
            0 => write!(f, "re-encoded at quality {} {sampling}", self.quality),
            side => write!(f, "short side {side}, quality {} {sampling}", self.quality),
        }
    }
}

impl Resize {
    /// The image in `bytes` as a JPEG of these settings, which says as the image does how it is to be turned.
    ///
    /// # Errors
    /// If it can't be decoded.
    pub fn apply(&self, bytes: &[u8]) -> Result<Vec<u8>, Damage> {
        let image = decode(bytes, MAX_PIXELS)?;
        let image = self.shrink(image)?;
        self.encode(&image, orientation(bytes, MAX_PIXELS))
            .map_err(|error| Damage::new(DamageReason::Unsupported, error.to_string()))
    }

    fn shrink(&self, image: RgbImage) -> Result<RgbImage, Damage> {
        let short = image.width.min(image.height);
        if self.short_side == 0 || short <= self.short_side {
            return Ok(image);
        }
        let scale = |side: u32| {
            let scaled = (u64::from(side) * u64::from(self.short_side) + u64::from(short) / 2) / u64::from(short);
            (scaled as u32).max(1)
        };
        let (width, height) = (scale(image.width), scale(image.height));
        type Rgb = fir::pixels::U8x3;
        let source = fir::images::TypedImageRef::<Rgb>::from_buffer(image.width, image.height, &image.pixels)
            .expect("a decoded image has all its pixels");
        let mut pixels = vec![0; width as usize * height as usize * 3];
        let mut target = fir::images::TypedImage::<Rgb>::from_buffer(width, height, &mut pixels).expect("sized for it");
        let options = fir::ResizeOptions::new()
            .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Lanczos3))
            .use_alpha(false);
        fir::Resizer::new().resize_typed(&source, &mut target, &options).expect("sides are at least a pixel");
        Ok(RgbImage { width, height, pixels })
    }

    fn encode(&self, image: &RgbImage, orientation: Orientation) -> std::io::Result<Vec<u8>> {
        let mut jpeg = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
        // libjpeg-turbo's own settings: the same files as other tools make, and several times faster.
        jpeg.set_fastest_defaults();
        jpeg.set_size(image.width as usize, image.height as usize);
        jpeg.set_quality(f32::from(self.quality));
        let chroma = if self.subsample { (2, 2) } else { (1, 1) };
        jpeg.set_chroma_sampling_pixel_sizes(chroma, chroma);
        jpeg.set_optimize_coding(true);
        let mut jpeg = jpeg.start_compress(Vec::new())?;
        if orientation != Orientation::NoTransforms {
            jpeg.write_marker(mozjpeg::Marker::APP(1), &exif(orientation));
        }
        jpeg.write_scanlines(&image.pixels)?;
        jpeg.finish()
    }
}

/// An EXIF segment that holds an orientation and nothing else: a TIFF of one directory with one entry.
fn exif(orientation: Orientation) -> Vec<u8> {
    let mut bytes = b"Exif\0\0MM\0\x2a\0\0\0\x08".to_vec();
    // One entry: tag 0x0112, a short, one of it, its value, two bytes of nothing; no other directory.
    bytes.extend([0, 1, 0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation.to_exif(), 0, 0, 0, 0, 0, 0]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use simclr_image::drawn;

    #[test]
    fn the_short_side_is_what_was_asked_for_and_small_images_stay() {
        let image = drawn::image(1, 2, 0, 96);
        let png = drawn::png(&image);
        for (short_side, wanted) in [(40, 40), (96, 96), (400, 96), (0, 96)] {
            let resize = Resize { short_side, quality: 92, subsample: false };
            let found = decode(&resize.apply(&png).unwrap(), 1 << 20).unwrap();
            assert_eq!((found.width, found.height), (wanted, wanted), "short side {short_side}");
            if wanted == 96 {
                let off = found.pixels.iter().zip(&image.pixels).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
                assert!(off / (found.pixels.len() as u64) < 8, "the same picture: mean difference {off}");
            }
        }
    }

    #[test]
    fn how_a_image_is_to_be_turned_survives() {
        let resize = Resize { short_side: 40, quality: 92, subsample: false };
        let image = drawn::image(1, 2, 0, 96);
        for value in 1..=8 {
            let wanted = Orientation::from_exif(value).unwrap();
            let turned = resize.encode(&image, wanted).unwrap();
            assert_eq!(orientation(&turned, MAX_PIXELS), wanted);
            assert_eq!(orientation(&resize.apply(&turned).unwrap(), MAX_PIXELS), wanted);
        }
    }
}
