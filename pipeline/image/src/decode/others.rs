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
        Format::Gif => {
            // The decoder believes the first frame's own size, and allocates it before it compares it with the canvas.
            if let (Some((w, h)), Some((width, height))) = (gif_frame(bytes), size(format, bytes))
                && (w > width || h > height)
            {
                let detail = format!("GIF: a frame of {w}×{h} pixels on a canvas of {width}×{height}");
                return Err(Damage::new(DamageReason::Corrupt, detail));
            }
            with("GIF", gif(bytes), max_pixels)
        }
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

/// Columns and rows of a GIF's first frame, by its own header.
fn gif_frame(bytes: &[u8]) -> Option<(u32, u32)> {
    let table = |flags: u8| if flags & 0x80 != 0 { 3 << ((flags & 7) + 1) } else { 0 };
    let mut at = 13 + table(*bytes.get(10)?);
    loop {
        match bytes.get(at)? {
            0x2C => {
                let &[w1, w2, h1, h2] = bytes.get(at + 5..at + 9)?.first_chunk()?;
                return Some((u16::from_le_bytes([w1, w2]).into(), u16::from_le_bytes([h1, h2]).into()));
            }
            // An extension: its kind, then blocks with their lengths, until an empty one.
            0x21 => {
                at += 2;
                while *bytes.get(at)? != 0 {
                    at += 1 + usize::from(bytes[at]);
                }
                at += 1;
            }
            _ => return None,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_a_gif_frame_larger_than_its_canvas_is_refused_before_it_is_decoded() {
        // A canvas of 1×1 with a table of two colors, a comment, and a frame of its own size.
        let gif = |w: u16, h: u16| {
            let frame = [&[0x2C, 0, 0, 0, 0][..], &w.to_le_bytes(), &h.to_le_bytes(), &[0]].concat();
            let canvas = [&b"GIF89a"[..], &[1, 0, 1, 0, 0x80, 0, 0], &[0; 6]].concat();
            // The one pixel: code size 2, a clear code, color 0, an end.
            [&canvas[..], &[0x21, 0xFE, 2, b'h', b'i', 0], &frame, &[2, 2, 0x44, 1, 0, 0x3B]].concat()
        };
        assert_eq!(gif_frame(&gif(39_000, 40_000)), Some((39_000, 40_000)));
        let damage = decode(Format::Gif, &gif(39_000, 40_000), 1 << 40).unwrap_err();
        assert!(damage.detail.contains("39000×40000") && damage.detail.contains("1×1"), "{damage:?}");
        assert_eq!(decode(Format::Gif, &gif(1, 1), 1 << 20).map(|image| (image.width, image.height)), Ok((1, 1)));
        for cut in 0..gif(1, 1).len() {
            let _ = gif_frame(&gif(1, 1)[..cut]);
        }
    }
}
