//! Decodes JPEG, PNG, WebP, BMP, GIF (its first frame) and TIFF to RGB. The format is told from the content, never from the
//! name.
//!
//! Anything that is not a whole, sound image is [`Damage`] with a reason, never an empty or half image. Alpha is
//! dropped, gray is repeated, palettes are looked up, 16 bits are cut to 8, CMYK is multiplied out, as the field's
//! loaders do. Images are turned upright by their EXIF orientation only on request.

mod exif;
pub mod jpeg;
mod libjpeg;
mod others;
mod png;
mod webp;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use image::metadata::Orientation;

use crate::damage::{Damage, DamageReason};
use jpeg::{Decoder, Jpeg, Planes, Region, RowIndex};

/// A decoded image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height × width × 3` u8, row-major RGB.
    pub pixels: Vec<u8>,
}

/// The formats that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    WebP,
    /// BMP.
    Bmp,
    /// GIF, of which the first frame counts.
    Gif,
    /// TIFF, of which the first image counts.
    Tiff,
}

/// The format of an image, by its first bytes.
///
/// # Errors
/// The damage that it is to be none of the formats; the detail names a known other format.
pub fn sniff(bytes: &[u8]) -> Result<Format, Damage> {
    match bytes {
        [] => Err(Damage::new(DamageReason::Empty, "no bytes at all")),
        [0xFF, 0xD8, 0xFF, ..] => Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Ok(Format::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        [b'B', b'M', ..] => Ok(Format::Bmp),
        [b'G', b'I', b'F', b'8', ..] => Ok(Format::Gif),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Ok(Format::Tiff),
        _ => {
            let name = match bytes {
                [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => {
                    "an AVIF (convert it, e.g. with `avifdec`)"
                }
                [_, _, _, _, b'f', b't', b'y', b'p', ..] => "a HEIC or HEIF (convert it, e.g. with `heif-convert`)",
                [0x1F, 0x8B, ..] => "gzip data",
                [b'<', ..] => "markup text",
                [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', ..] => "a Git LFS pointer",
                [0xFF, 0xD8] => "the first marker of a JPEG and nothing else",
                _ => "data of no known format",
            };
            let start: String = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            Err(Damage::new(
                DamageReason::UnknownFormat,
                format!("{name} (first bytes {start}); expected JPEG, PNG, WebP, BMP, GIF or TIFF"),
            ))
        }
    }
}

/// Decodes an image of at most `max_pixels` pixels, and turns it as its EXIF orientation says.
///
/// # Errors
/// The damage: what kind, and what was found.
pub fn decode_upright(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    let image = decode(bytes, max_pixels)?;
    Ok(exif::upright(image, orientation(bytes, max_pixels)))
}

/// How an image of at most `max_pixels` pixels is to be turned, as a camera wrote beside it; not at all if it says nothing
/// that makes sense.
pub fn orientation(bytes: &[u8], max_pixels: u64) -> Orientation {
    match sniff(bytes) {
        Ok(Format::Jpeg) => exif::jpeg_orientation(bytes),
        Ok(Format::Png) => exif::orientation(png::exif(bytes, max_pixels).as_deref()),
        Ok(Format::WebP) => exif::orientation(webp::exif(bytes)),
        Ok(format) => others::orientation(format, bytes),
        Err(_) => Orientation::NoTransforms,
    }
}

/// Decodes an image of at most `max_pixels` pixels.
///
/// # Errors
/// The damage: what kind, and what was found.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    let format = sniff(bytes)?;
    let decoded = catch_unwind(AssertUnwindSafe(|| match format {
        Format::Jpeg => decode_jpeg(bytes, max_pixels),
        Format::Png => png::decode(bytes, max_pixels),
        Format::WebP => webp::decode(bytes, max_pixels),
        format => others::decode(format, bytes, max_pixels),
    }));
    decoded.unwrap_or_else(|_| Err(Damage::new(DamageReason::Corrupt, "the decoder gave up on it")))
}

/// JPEGs of more pixels than this are told apart by how much memory they take.
const TOLD_APART_PIXELS: u64 = 1 << 22;

/// About the most memory that decoding an image takes, by its header alone; 0 if there is none.
pub fn decode_bytes(bytes: &[u8]) -> u64 {
    let pixels = |(width, height): (u32, u32)| u64::from(width) * u64::from(height);
    match sniff(bytes) {
        Ok(Format::Jpeg) => {
            let pixels = exif::jpeg_size(bytes).map_or(0, pixels);
            // Planes, and pixels if the general path has to look at it; or all coefficients, then pixels, then planes.
            // To tell takes longer, and matters for large images alone.
            let is_baseline = pixels > TOLD_APART_PIXELS && Jpeg::parse(bytes).is_ok();
            if is_baseline { 6 * pixels } else { 16 * pixels }
        }
        // Eight bytes a pixel (16 bits, four channels), then RGB, then planes.
        Ok(Format::Png) => 16 * png::size(bytes).map_or(0, pixels),
        // The canvas, a frame and its planes of color, the pixels, then RGB, then planes.
        Ok(Format::WebP) => 16 * webp::size(bytes).map_or(0, pixels),
        Ok(format) => 16 * others::pixels_held(format, bytes),
        Err(_) => 0,
    }
}

/// No side may be longer, whatever the format: JPEG's own limit, and a bound on the buffers of a resize.
const MAX_SIDE: u64 = 65_535;

/// Memory for a decoder's output; that there is none is no reason to end the process.
fn room(bytes: usize) -> Result<Vec<u8>, Damage> {
    let none = || Damage::new(DamageReason::NoMemory, format!("no memory for its {bytes} bytes"));
    simclr_ground::batch::zeros(bytes).ok_or_else(none)
}

fn check_size(width: u64, height: u64, max_pixels: u64) -> Result<(), Damage> {
    if width == 0 || height == 0 {
        return Err(Damage::new(DamageReason::Dimensions, format!("{width}×{height} pixels")));
    }
    if width.max(height) > MAX_SIDE {
        let detail = format!("{width}×{height} pixels, a side longer than {MAX_SIDE}");
        return Err(Damage::new(DamageReason::Dimensions, detail));
    }
    if width.saturating_mul(height) > max_pixels {
        let detail = format!("{width}×{height} pixels, more than data.max_pixels = {max_pixels}");
        return Err(Damage::new(DamageReason::Dimensions, detail));
    }
    Ok(())
}

fn decode_jpeg(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    if let Ok(jpeg) = Jpeg::parse(bytes) {
        let (width, height) = jpeg.size();
        check_size(width.into(), height.into(), max_pixels)?;
        let whole = Region { left: 0, top: 0, width, height };
        if let Ok(planes) = DECODER.with_borrow_mut(|decoder| decoder.decode(&jpeg, whole).map(Planes::to_rgb)) {
            return Ok(planes);
        }
    }
    // What the fast decoder does not take the general one may know, and if not it knows the reason.
    libjpeg::decode(bytes, max_pixels)
}

thread_local! {
    /// Buffers and tables of whole images' decoding.
    static DECODER: RefCell<Decoder> = RefCell::default();
}

/// What a manifest says of where an image's data may be entered. That it is so only the data can tell: an index that is
/// consistent in itself may still give other pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows<'a> {
    /// The index, as [`RowIndex::to_text`] gives it.
    pub text: &'a str,
    /// Whether it was held against the image's bytes.
    pub check: RowCheck,
}

/// What came of holding a row index against an image's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowCheck {
    /// It was not done.
    NotYet,
    /// It is the index of these bytes.
    Right,
    /// It is not.
    Wrong,
}

/// An image, or the part of one that is needed, in the form that is resized.
pub struct PlanarDecoder {
    decoder: Decoder,
    /// Images of more pixels are damage.
    max_pixels: u64,
    /// Whether images are turned as their EXIF orientation says.
    upright: bool,
}

impl PlanarDecoder {
    /// A decoder that refuses images of more than `max_pixels` pixels.
    pub fn new(max_pixels: u64, upright: bool) -> Self {
        Self { decoder: Decoder::default(), max_pixels, upright }
    }

    /// The planes that were decoded last.
    pub fn planes(&self) -> &Planes {
        self.decoder.planes()
    }

    /// The planes of an image, in at least the region that `wanted` gives for its size; with a row index that was found to
    /// be that of these very bytes, the rest is not gone through. One that was not held against them yet is, and used
    /// from the next time on.
    ///
    /// # Errors
    /// The damage: what kind, and what was found. It does not depend on the region.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        rows: Option<&mut Rows<'_>>,
        wanted: impl FnOnce(u32, u32) -> Region,
    ) -> Result<&Planes, Damage> {
        let turned = self.upright && matches!(bytes, [0xFF, 0xD8, ..]) && exif::is_turned(bytes);
        if !turned && let Ok(jpeg) = Jpeg::parse(bytes) {
            let (width, height) = jpeg.size();
            check_size(width.into(), height.into(), self.max_pixels)?;
            let region = wanted(width, height);
            if self.decode_baseline(&jpeg, region, rows).is_ok() {
                return Ok(self.decoder.planes());
            }
            return Ok(self.decoder.set_rgb(&libjpeg::decode(bytes, self.max_pixels)?));
        }
        let decode = if self.upright { decode_upright } else { decode };
        let image = decode(bytes, self.max_pixels)?;
        let _ = wanted(image.width, image.height);
        Ok(self.decoder.set_rgb(&image))
    }

    fn decode_baseline(
        &mut self,
        jpeg: &Jpeg<'_>,
        region: Region,
        rows: Option<&mut Rows<'_>>,
    ) -> Result<(), jpeg::Unknown> {
        let decoder = &mut self.decoder;
        let Some(rows) = rows else { return decoder.decode(jpeg, region).map(drop) };
        let index = RowIndex::from_text(rows.text);
        match (index, rows.check) {
            (Some(index), RowCheck::Right) if decoder.decode_indexed(jpeg, region, &index).is_ok() => Ok(()),
            (Some(index), RowCheck::NotYet) => {
                let right = decoder.decode_checking(jpeg, region, &index)?;
                rows.check = if right { RowCheck::Right } else { RowCheck::Wrong };
                Ok(())
            }
            _ => {
                rows.check = RowCheck::Wrong;
                decoder.decode(jpeg, region).map(drop)
            }
        }
    }
}

/// The damage of a PNG or WebP that its decoder stopped at; the decoders' words tell what was cut off.
fn damage(format: &str, error: &dyn std::fmt::Display, otherwise: DamageReason) -> Damage {
    let detail = format!("{format}: {error}");
    let lower = detail.to_lowercase();
    let cut_off = ["unexpected end", "eof", "failed to fill"].iter().any(|words| lower.contains(words));
    let reason = if cut_off && otherwise == DamageReason::Corrupt { DamageReason::Truncated } else { otherwise };
    Damage::new(reason, detail)
}

/// Pixels of one to four channels as RGB: alpha dropped, gray repeated.
fn to_rgb(channels: usize, pixels: Vec<u8>) -> Vec<u8> {
    match channels {
        1 => pixels.iter().flat_map(|&gray| [gray; 3]).collect(),
        2 => pixels.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect(),
        3 => pixels,
        _ => pixels.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
    }
}

fn rgb(width: u32, height: u32, pixels: Vec<u8>) -> Result<RgbImage, Damage> {
    let wanted = width as usize * height as usize * 3;
    if pixels.len() != wanted {
        let detail = format!("{width}×{height} pixels decoded to {} bytes, {wanted} expected", pixels.len());
        return Err(Damage::new(DamageReason::Corrupt, detail));
    }
    Ok(RgbImage { width, height, pixels })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drawn;

    const MAX: u64 = 1 << 24;

    #[test]
    fn the_content_tells_the_format() {
        let image = drawn::image(1, 0, 0, 24);
        let png = drawn::png(&image);
        assert_eq!(decode(&png, MAX).unwrap(), image);
        let check = |bytes: &[u8], reason: DamageReason, wanted: &str| {
            let damage = decode(bytes, MAX).unwrap_err();
            assert!(damage.reason == reason && damage.detail.contains(wanted), "{damage:?}");
        };
        check(b"", DamageReason::Empty, "no bytes");
        check(b"GIF89a....", DamageReason::Truncated, "GIF");
        check(b"\0\0\0\x1cftypheic", DamageReason::UnknownFormat, "heif-convert");
        check(b"\0\0\0\x1cftypavif", DamageReason::UnknownFormat, "avifdec");
        check(b"<html>", DamageReason::UnknownFormat, "markup");
        check(&png[..png.len() / 2], DamageReason::Truncated, "PNG");
        assert_eq!(decode(&png, 24 * 24 - 1).unwrap_err().reason, DamageReason::Dimensions);
    }

    #[test]
    fn bounded_the_memory_of_decoding_is_known_from_the_header() {
        let (width, height) = (2304u32, 1824u32);
        let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i / 7) as u8).collect();
        let jpeg = |progressive: bool| {
            let mut jpeg = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
            if progressive {
                jpeg.set_progressive_mode();
            } else {
                jpeg.set_fastest_defaults();
            }
            jpeg.set_size(width as usize, height as usize);
            let mut jpeg = jpeg.start_compress(Vec::new()).unwrap();
            jpeg.write_scanlines(&pixels).unwrap();
            jpeg.finish().unwrap()
        };
        let mut webp = Vec::new();
        let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut webp);
        encoder.encode(&pixels, width, height, image::ExtendedColorType::Rgb8).unwrap();
        let area = u64::from(width * height);
        for (file, bytes) in [(jpeg(false), 6), (jpeg(true), 16), (webp, 16)] {
            assert_eq!(decode_bytes(&file), bytes * area);
            // The header is enough.
            assert_eq!(decode_bytes(&file[..file.len() / 2]), bytes * area);
        }
        let png = drawn::png(&drawn::image(1, 0, 0, 24));
        assert_eq!(decode_bytes(&png[..33]), 16 * 24 * 24);
        assert_eq!((decode_bytes(b""), decode_bytes(b"no image at all"), decode_bytes(&png[..20])), (0, 0, 0));
    }

    #[test]
    fn bounded_a_forged_row_index_gives_no_other_pixels() {
        let (side, region) = (160u32, Region { left: 20, top: 96, width: 60, height: 50 });
        let image = drawn::image(5, 3, 1, side);
        let mut jpeg = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
        jpeg.set_fastest_defaults();
        jpeg.set_size(side as usize, side as usize);
        let mut jpeg = jpeg.start_compress(Vec::new()).unwrap();
        jpeg.write_scanlines(&image.pixels).unwrap();
        let bytes = jpeg.finish().unwrap();
        let mut decoder = PlanarDecoder::new(MAX, false);
        let mut luma = |rows: Option<&mut Rows<'_>>| {
            let plane = &decoder.decode(&bytes, rows, |_, _| region).unwrap().planes[0];
            (96..146).flat_map(|y| plane.row(y, 20, 80).to_vec()).collect::<Vec<u8>>()
        };
        let wanted = luma(None);
        let right = Decoder::default().index(&Jpeg::parse(&bytes).unwrap()).unwrap();
        let text = right.to_text();
        let mut rows = Rows { text: &text, check: RowCheck::NotYet };
        for _ in 0..2 {
            assert!(luma(Some(&mut rows)) == wanted);
            assert_eq!(rows.check, RowCheck::Right);
        }
        // Every place a little brighter than it is: consistent in itself, and taken at its word it changes pixels.
        let mut brighter = right.clone();
        brighter.starts.iter_mut().for_each(|start| start.predictions[0] += 9);
        let mut others = right.clone();
        others.starts.iter_mut().skip(2).for_each(|start| start.bit += 8);
        let text = brighter.to_text();
        assert!(luma(Some(&mut Rows { text: &text, check: RowCheck::Right })) != wanted, "this is what is forged");
        for forged in [text, others.to_text(), String::new(), "A".repeat(5000)] {
            let mut rows = Rows { text: &forged, check: RowCheck::NotYet };
            for _ in 0..2 {
                assert!(luma(Some(&mut rows)) == wanted);
                assert_eq!(rows.check, RowCheck::Wrong);
            }
        }
    }

    #[test]
    fn formats_of_older_days_are_decoded() {
        let image = drawn::image(1, 0, 0, 24);
        let buffer = image::RgbImage::from_raw(24, 24, image.pixels.clone()).unwrap();
        for format in [image::ImageFormat::Bmp, image::ImageFormat::Tiff, image::ImageFormat::Gif] {
            let mut bytes = std::io::Cursor::new(Vec::new());
            buffer.write_to(&mut bytes, format).unwrap();
            let found = decode(bytes.get_ref(), MAX).unwrap();
            assert_eq!(decode_bytes(bytes.get_ref()), 16 * 24 * 24, "{format:?}");
            // A GIF has 256 colors.
            let most = if format == image::ImageFormat::Gif { 40 } else { 0 };
            let off = found.pixels.iter().zip(&image.pixels).map(|(a, b)| a.abs_diff(*b)).max();
            assert!((found.width, found.height) == (24, 24) && off <= Some(most), "{format:?}: {off:?}");
            assert_eq!(
                decode(bytes.get_ref(), 24 * 24 - 1).unwrap_err().reason,
                DamageReason::Dimensions,
                "{format:?}"
            );
        }
    }

    #[test]
    fn no_prefix_and_no_flipped_byte_of_a_image_panics() {
        let png = drawn::png(&drawn::image(1, 3, 0, 20));
        // The last twelve bytes say only that the image has ended.
        for end in 0..png.len() {
            let whole = decode(&png[..end], MAX).is_ok();
            assert!(!whole || end + 12 >= png.len(), "the first {end} of {} bytes", png.len());
        }
        for at in 0..png.len() {
            let mut bytes = png.clone();
            bytes[at] ^= 0x55;
            let _ = decode(&bytes, MAX);
        }
    }
}
