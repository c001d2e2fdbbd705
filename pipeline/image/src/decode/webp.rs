//! WebP: the pixels of the first frame, and the EXIF data for the orientation.
//!
//! The decoder believes the size of the canvas and allocates what a frame's own header says before it compares the two;
//! here they are compared first.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::webp::WebPDecoder;

use super::{RgbImage, check_size, damage, rgb, room, to_rgb};
use crate::damage::{Damage, DamageReason};

/// Decodes a WebP of at most `max_pixels` pixels.
pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    let of_webp = |error: image::ImageError| {
        let reason = match &error {
            image::ImageError::Unsupported(_) => DamageReason::Unsupported,
            image::ImageError::Limits(_) => DamageReason::Dimensions,
            _ => DamageReason::Corrupt,
        };
        damage("WebP", &error, reason)
    };
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(of_webp)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into(), max_pixels)?;
    if let Some((w, h)) = lossy_frame(bytes)
        && (w > width || h > height)
    {
        let detail = format!("WebP: a frame of {w}×{h} pixels on a canvas of {width}×{height}");
        return Err(Damage::new(DamageReason::Corrupt, detail));
    }
    let channels = usize::from(decoder.color_type().channel_count());
    let mut pixels = room(channels * width as usize * height as usize)?;
    decoder.read_image(&mut pixels).map_err(of_webp)?;
    rgb(width, height, to_rgb(channels, pixels))
}

/// Columns and rows, by the header.
pub(super) fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    let decoder = WebPDecoder::new(Cursor::new(bytes)).ok()?;
    Some(decoder.dimensions())
}

/// The EXIF data of an extended file.
pub(super) fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut chunks = chunks(bytes.get(12..)?);
    chunks.next().filter(|chunk| chunk.kind == b"VP8X")?;
    chunks.find(|chunk| chunk.kind == b"EXIF").filter(|chunk| chunk.is_whole).map(|chunk| chunk.data)
}

/// Columns and rows, by its own header, of the lossy frame that is decoded of an extended file.
fn lossy_frame(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut chunks = chunks(bytes.get(12..)?);
    let header = chunks.next().filter(|chunk| chunk.kind == b"VP8X")?;
    let is_animated = header.data.first()? & 2 != 0;
    let frame = if is_animated {
        let animation_frame = chunks.find(|chunk| chunk.kind == b"ANMF")?;
        // Behind sixteen bytes of the frame's own the image, or its alpha channel and then the image.
        self::chunks(animation_frame.data.get(16..)?).find(|chunk| chunk.kind == b"VP8 ")?
    } else {
        chunks.find(|chunk| chunk.kind == b"VP8 ")?
    };
    // A frame tag and a start code, then 14 bits each and two of scaling.
    let &[w1, w2, h1, h2] = frame.data.get(6..10)?.first_chunk()?;
    Some((u32::from(u16::from_le_bytes([w1, w2]) & 0x3FFF), u32::from(u16::from_le_bytes([h1, h2]) & 0x3FFF)))
}

/// A chunk of a RIFF file.
struct Chunk<'a> {
    kind: &'a [u8; 4],
    /// Its bytes, as far as the file has them.
    data: &'a [u8],
    /// Whether it has all of them.
    is_whole: bool,
}

/// The chunks that follow each other in `rest`.
fn chunks(mut rest: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    std::iter::from_fn(move || {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (size, after) = after.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size) as usize;
        let data = after.get(..size).unwrap_or(after);
        rest = after.get(size.next_multiple_of(2)..).unwrap_or_default();
        Some(Chunk { kind, data, is_whole: data.len() == size })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{decode, decode_upright};

    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut chunk = [kind, &(data.len() as u32).to_le_bytes()[..], data].concat();
        chunk.resize(chunk.len().next_multiple_of(2), 0);
        chunk
    }

    fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
        chunk(b"RIFF", &[b"WEBP".to_vec(), chunks.concat()].concat())
    }

    /// A header of an extended file.
    fn extended(flags: u8, width: u32, height: u32) -> Vec<u8> {
        let (w, h) = ((width - 1).to_le_bytes(), (height - 1).to_le_bytes());
        chunk(b"VP8X", &[&[flags, 0, 0, 0], &w[..3], &h[..3]].concat())
    }

    /// The beginning of a lossy frame of 16383×16383 pixels.
    fn huge_frame() -> Vec<u8> {
        chunk(b"VP8 ", &[&[0x10, 0, 0, 0x9D, 0x01, 0x2A, 0xFF, 0x3F, 0xFF, 0x3F], &[0; 64][..]].concat())
    }

    #[test]
    fn bounded_a_frame_larger_than_its_canvas_is_refused_before_it_is_decoded() {
        let frame_place = [&[0; 6][..], &[9, 0, 0, 9, 0, 0], &[0; 4]].concat();
        let animated = chunk(b"ANMF", &[frame_place, huge_frame()].concat());
        let animation = [extended(2, 10, 10), chunk(b"ANIM", &[0; 6]), animated];
        for file in [riff(&[extended(0, 10, 10), huge_frame()]), riff(&animation)] {
            let damage = decode(&file, 1 << 24).unwrap_err();
            assert!(damage.detail.contains("16383×16383") && damage.detail.contains("10×10"), "{damage:?}");
        }
    }

    #[test]
    fn bounded_exif_data_that_is_not_there_is_not_allocated() {
        let mut file = riff(&[extended(8, 1, 1), chunk(b"EXIF", b"II*\0")]);
        assert_eq!(exif(&file), Some(&b"II*\0"[..]));
        let at = file.len() - 8;
        file[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(exif(&file), None);
        assert!(decode_upright(&file, 1 << 24).is_err(), "it has no pixels");
    }

    #[test]
    fn an_encoded_image_comes_back() {
        let image = crate::drawn::image(1, 0, 0, 24);
        let mut file = Vec::new();
        let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut file);
        encoder.encode(&image.pixels, 24, 24, image::ExtendedColorType::Rgb8).unwrap();
        assert_eq!(decode(&file, 1 << 24).unwrap(), image);
        assert_eq!(decode_upright(&file, 1 << 24).unwrap(), image);
    }
}
