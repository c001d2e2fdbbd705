//! PNG: the pixels, and the EXIF data for the orientation.
//!
//! Color profiles and texts are compressed data of a size that no header names, and nobody here reads them: they are
//! skipped, never inflated. What is left to inflate are the pixels, whose size is known before.

use std::io::Cursor;

use png::{BitDepth, DecodingError, Limits, Reader, Transformations};

use super::{RgbImage, check_size, damage, rgb, to_rgb};
use crate::damage::{Damage, DamageReason};

/// What the decoder may allocate beside the chunks of the file and the pixels: a row of the longest side that is allowed,
/// of eight bytes a pixel, several times over.
const BUFFER_BYTES: usize = 1 << 22;

/// Decodes a PNG of at most `max_pixels` pixels. 16 bits are cut to their upper 8, as Pillow does.
pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    let mut reader = open(bytes, max_pixels)?;
    let (width, height) = reader.info().size();
    let size = reader.output_buffer_size().ok_or(DecodingError::LimitsExceeded).map_err(of_png)?;
    let mut pixels = super::room(size)?;
    let frame = reader.next_frame(&mut pixels).map_err(of_png)?;
    if frame.bit_depth == BitDepth::Sixteen {
        // The upper byte comes first.
        pixels = pixels.chunks_exact(2).map(|sample| sample[0]).collect();
    }
    rgb(width, height, to_rgb(frame.color_type.samples(), pixels))
}

/// Columns and rows, by the header.
pub(super) fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    // Behind the signature, a chunk's length and its name.
    let (width, rest) = bytes.get(16..)?.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*rest.first_chunk()?)))
}

/// The EXIF data before the pixels.
pub(super) fn exif(bytes: &[u8], max_pixels: u64) -> Option<Vec<u8>> {
    open(bytes, max_pixels).ok()?.info().exif_metadata.as_ref().map(|exif| exif.to_vec())
}

/// A decoder that has read all before the pixels, and found the image's size allowed.
fn open(bytes: &[u8], max_pixels: u64) -> Result<Reader<Cursor<&[u8]>>, Damage> {
    // A chunk is counted when it is read, and again when what it says is kept.
    let limits = Limits { bytes: bytes.len().saturating_mul(2).saturating_add(BUFFER_BYTES) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_ignore_text_chunk(true);
    // Palettes are looked up, and fewer than 8 bits made 8; 16 stay 16.
    decoder.set_transformations(Transformations::EXPAND);
    let header = decoder.read_header_info().map_err(of_png)?;
    check_size(header.width.into(), header.height.into(), max_pixels)?;
    decoder.read_info().map_err(of_png)
}

fn of_png(error: DecodingError) -> Damage {
    let reason = match error {
        DecodingError::LimitsExceeded => DamageReason::Dimensions,
        _ => DamageReason::Corrupt,
    };
    damage("PNG", &error, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{decode, decode_upright};
    use crate::drawn;

    /// A zlib stream of a few MB that inflates to `bytes` zeros: matches of 258 bytes, 13 bits each.
    fn zlib_bomb(bytes: usize) -> Vec<u8> {
        let (mut out, mut held, mut count) = (vec![0x78, 0x01], 0u32, 0);
        let mut put = |out: &mut Vec<u8>, value: u32, bits: u32| {
            held |= value << count;
            count += bits;
            while count >= 8 {
                out.push(held as u8);
                held >>= 8;
                count -= 8;
            }
        };
        // The last block, of fixed codes: a zero, then "258 bytes, one byte back", then the end.
        put(&mut out, 0b011, 3);
        put(&mut out, 0b0000_1100, 8);
        for _ in 0..bytes / 258 {
            put(&mut out, 0b1010_0011, 8);
            put(&mut out, 0, 5);
        }
        put(&mut out, 0, 7);
        put(&mut out, 0, 8);
        out.extend([0; 4]);
        out
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
        })
    }

    /// The PNG with a chunk more, right behind its header.
    fn with_chunk(png: &[u8], kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let body = [kind, data].concat();
        let (header, rest) = png.split_at(33);
        [header, &(data.len() as u32).to_be_bytes(), &body, &crc32(&body).to_be_bytes(), rest].concat()
    }

    /// The most memory that this process had, in bytes.
    fn peak_memory() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    #[test]
    fn bounded_a_color_profile_is_not_inflated() {
        const INFLATED: usize = 2 << 30;
        let image = drawn::image(1, 0, 0, 24);
        let bomb = zlib_bomb(INFLATED);
        let profile = with_chunk(&drawn::png(&image), b"iCCP", &[b"p\0\0", &bomb[..]].concat());
        let text = with_chunk(&profile, b"zTXt", &[b"t\0\0", &bomb[..]].concat());
        let before = peak_memory();
        assert_eq!(decode(&text, 1 << 24).unwrap(), image);
        assert_eq!(decode_upright(&text, 1 << 24).unwrap(), image);
        let grown = peak_memory() - before;
        // Other tests run beside this one.
        assert!(grown < INFLATED as u64 / 2, "{grown} bytes for a {} byte PNG of 24×24 pixels", text.len());
    }

    #[test]
    fn bounded_the_size_is_checked_before_anything_else_is_read() {
        let mut png = drawn::png(&drawn::image(1, 0, 0, 24));
        png[16..24].copy_from_slice(&[0, 0, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF]);
        let crc = crc32(&png[12..29]).to_be_bytes();
        png[29..33].copy_from_slice(&crc);
        let damage = decode(&png[..33], 1 << 24).unwrap_err();
        assert!(damage.reason == DamageReason::Dimensions && damage.detail.contains("data.max_pixels"), "{damage:?}");
    }

    #[test]
    fn every_kind_of_pixel_becomes_rgb() {
        let encode = |color, depth, palette: &[u8], data: &[u8]| {
            let mut out = Vec::new();
            let mut encoder = png::Encoder::new(&mut out, 2, 1);
            encoder.set_color(color);
            encoder.set_depth(depth);
            if !palette.is_empty() {
                encoder.set_palette(palette);
            }
            encoder.write_header().unwrap().write_image_data(data).unwrap();
            out
        };
        use png::ColorType::{Grayscale, GrayscaleAlpha, Indexed, Rgb, Rgba};
        let check = |png: Vec<u8>, wanted: [u8; 6]| assert_eq!(decode(&png, 4).unwrap().pixels, wanted);
        check(encode(Grayscale, BitDepth::One, &[], &[0b0100_0000]), [0, 0, 0, 255, 255, 255]);
        check(encode(Grayscale, BitDepth::Sixteen, &[], &[1, 9, 2, 9]), [1, 1, 1, 2, 2, 2]);
        check(encode(GrayscaleAlpha, BitDepth::Eight, &[], &[1, 9, 2, 9]), [1, 1, 1, 2, 2, 2]);
        check(encode(Indexed, BitDepth::Eight, &[1, 2, 3, 4, 5, 6], &[1, 0]), [4, 5, 6, 1, 2, 3]);
        check(encode(Rgb, BitDepth::Eight, &[], &[1, 2, 3, 4, 5, 6]), [1, 2, 3, 4, 5, 6]);
        check(
            encode(Rgba, BitDepth::Sixteen, &[], &[1, 9, 2, 9, 3, 9, 0, 9, 4, 9, 5, 9, 6, 9, 0, 9]),
            [1, 2, 3, 4, 5, 6],
        );
    }
}
