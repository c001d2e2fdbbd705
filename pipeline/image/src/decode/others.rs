//! Formats of which there are few among photographs, by one library: BMP, GIF and TIFF.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError};

use super::{Format, RgbImage, check_size, damage, rgb};
use crate::damage::{Damage, DamageReason};

/// Decodes an image of one of these formats, of at most `max_pixels` pixels.
pub(super) fn decode(format: Format, bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    match format {
        Format::Bmp => with("BMP", bmp(bytes), max_pixels),
        Format::Gif => with("GIF", gif(bytes), max_pixels),
        Format::Tiff => with("TIFF", tiff(bytes), max_pixels),
        Format::Jpeg | Format::Png | Format::WebP => unreachable!("it has a decoder of its own"),
    }
}

/// Columns and rows, by the header.
pub(super) fn size(format: Format, bytes: &[u8]) -> Option<(u32, u32)> {
    match format {
        Format::Bmp => bmp(bytes).ok().map(|decoder| decoder.dimensions()),
        Format::Gif => gif(bytes).ok().map(|decoder| decoder.dimensions()),
        Format::Tiff => tiff(bytes).ok().map(|decoder| decoder.dimensions()),
        Format::Jpeg | Format::Png | Format::WebP => None,
    }
}

/// How the image is to be turned; only TIFFs say.
pub(super) fn orientation(format: Format, bytes: &[u8]) -> Orientation {
    match format {
        Format::Tiff => tiff(bytes).and_then(|mut tiff| tiff.orientation()).unwrap_or(Orientation::NoTransforms),
        _ => Orientation::NoTransforms,
    }
}

fn bmp(bytes: &[u8]) -> Result<BmpDecoder<Cursor<&[u8]>>, ImageError> {
    BmpDecoder::new(Cursor::new(bytes))
}

fn gif(bytes: &[u8]) -> Result<GifDecoder<Cursor<&[u8]>>, ImageError> {
    GifDecoder::new(Cursor::new(bytes))
}

fn tiff(bytes: &[u8]) -> Result<TiffDecoder<Cursor<&[u8]>>, ImageError> {
    TiffDecoder::new(Cursor::new(bytes))
}

fn with(format: &str, decoder: Result<impl ImageDecoder, ImageError>, max_pixels: u64) -> Result<RgbImage, Damage> {
    let damage = |error: ImageError| {
        let reason = match error {
            ImageError::Unsupported(_) => DamageReason::Unsupported,
            ImageError::Limits(_) => DamageReason::Dimensions,
            _ => DamageReason::Corrupt,
        };
        damage(format, &error, reason)
    };
    let mut decoder = decoder.map_err(damage)?;
    limit(&mut decoder, max_pixels)?;
    to_rgb(DynamicImage::from_decoder(decoder).map_err(damage)?)
}

fn limit(decoder: &mut impl ImageDecoder, max_pixels: u64) -> Result<(), Damage> {
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into(), max_pixels)?;
    let mut limits = image::Limits::default();
    // Eight bytes a pixel (16 bits, four channels) and as much again for the decoder's own buffers.
    limits.max_alloc = Some(max_pixels.saturating_mul(16).saturating_add(1 << 20));
    let _ = decoder.set_limits(limits);
    Ok(())
}

/// Any pixel type to RGB u8: alpha dropped, gray repeated, 16 bits cut to their upper 8 as Pillow does.
fn to_rgb(image: DynamicImage) -> Result<RgbImage, Damage> {
    let (width, height) = (image.width(), image.height());
    let high = |value: u16| (value >> 8) as u8;
    let pixels = match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageRgba8(image) => image.as_raw().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma8(image) => image.as_raw().iter().flat_map(|&p| [p; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => image.as_raw().chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(|&p| high(p)).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.as_raw().chunks_exact(4).flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect()
        }
        DynamicImage::ImageLuma16(image) => image.as_raw().iter().flat_map(|&p| [high(p); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => image.as_raw().chunks_exact(2).flat_map(|p| [high(p[0]); 3]).collect(),
        other => return Err(Damage::new(DamageReason::Unsupported, format!("pixels of type {:?}", other.color()))),
    };
    rgb(width, height, pixels)
}
