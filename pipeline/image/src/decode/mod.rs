//! Decodes JPEG, PNG, WebP, BMP, GIF (its first frame) and TIFF to RGB. The format is told from the content, never from the
//! name.
//!
//! Anything that is not a whole, sound image is [`Damage`] with a reason, never an empty or half image. Alpha is
//! dropped, gray is repeated, palettes are looked up, 16 bits are cut to 8, CMYK is multiplied out, as the field's
//! loaders do. Images are turned upright by their EXIF orientation only on request.

mod exif;
pub mod jpeg;
mod libjpeg;

use std::cell::RefCell;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::tiff::TiffDecoder;
pub use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError};

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

/// About how many bytes of memory decoding these bytes takes, by what their header says; 0 if it says nothing that makes sense.
pub fn memory_needed(bytes: &[u8]) -> u64 {
    // Planes and what is made of them, or pixels of four channels and the decoder's own copy.
    const BYTES_PER_PIXEL: u64 = 8;
    let (width, height) = match sniff(bytes) {
        Ok(Format::Jpeg) => jpeg_size(bytes),
        Ok(Format::Png) => png(bytes).ok().map(|decoder| decoder.dimensions()),
        Ok(Format::WebP) => webp(bytes).ok().map(|decoder| decoder.dimensions()),
        Ok(Format::Bmp) => BmpDecoder::new(Cursor::new(bytes)).ok().map(|decoder| decoder.dimensions()),
        Ok(Format::Gif) => GifDecoder::new(Cursor::new(bytes)).ok().map(|decoder| decoder.dimensions()),
        Ok(Format::Tiff) => tiff(bytes).ok().map(|decoder| decoder.dimensions()),
        Err(_) => None,
    }
    .unwrap_or((0, 0));
    (u64::from(width) * u64::from(height)).saturating_mul(BYTES_PER_PIXEL)
}

/// Columns and rows that the frame header of a JPEG of any kind says.
fn jpeg_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut at = 2;
    // Segments up to the frame's: a marker, and a length that counts itself.
    while let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4).and_then(|head| head.first_chunk()) {
        match marker {
            0xFF => at += 1,
            0xC4 | 0xC8 | 0xCC => at += 2 + usize::from(u16::from_be_bytes([high, low])),
            0xC0..=0xCF => {
                let &[top, bottom, left, right] = bytes.get(at + 5..at + 9)?.first_chunk()?;
                let number = |high, low| u32::from(u16::from_be_bytes([high, low]));
                return Some((number(left, right), number(top, bottom)));
            }
            0xDA => return None,
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    None
}

/// Decodes an image of at most `max_pixels` pixels, and turns it as its EXIF orientation says.
///
/// # Errors
/// The damage: what kind, and what was found.
pub fn decode_upright(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    let image = decode(bytes, max_pixels)?;
    Ok(exif::upright(image, orientation(bytes)))
}

/// How the image that these bytes hold is to be turned, as a camera wrote beside it; not at all if it says nothing that
/// makes sense.
pub fn orientation(bytes: &[u8]) -> Orientation {
    let exif = match sniff(bytes) {
        Ok(Format::Jpeg) => return exif::jpeg_orientation(bytes),
        Ok(Format::Png) => png(bytes).ok().and_then(|mut png| png.exif_metadata().ok().flatten()),
        Ok(Format::WebP) => webp(bytes).ok().and_then(|mut webp| webp.exif_metadata().ok().flatten()),
        Ok(Format::Tiff) => {
            return tiff(bytes).and_then(|mut tiff| tiff.orientation()).unwrap_or(Orientation::NoTransforms);
        }
        Ok(Format::Bmp | Format::Gif) | Err(_) => None,
    };
    exif::orientation(exif)
}

/// Decodes an image of at most `max_pixels` pixels.
///
/// # Errors
/// The damage: what kind, and what was found.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    let format = sniff(bytes)?;
    let decoded = catch_unwind(AssertUnwindSafe(|| match format {
        Format::Jpeg => decode_jpeg(bytes, max_pixels),
        Format::Png => decode_png(bytes, max_pixels),
        Format::WebP => decode_webp(bytes, max_pixels),
        Format::Bmp => decode_other("BMP", BmpDecoder::new(Cursor::new(bytes)), max_pixels),
        Format::Gif => decode_other("GIF", GifDecoder::new(Cursor::new(bytes)), max_pixels),
        Format::Tiff => decode_other("TIFF", tiff(bytes), max_pixels),
    }));
    decoded.unwrap_or_else(|_| Err(Damage::new(DamageReason::Corrupt, "the decoder gave up on it")))
}

/// No side may be longer, whatever the format: JPEG's own limit, and a bound on the buffers of a resize.
const MAX_SIDE: u64 = 65_535;

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

    /// The planes of an image, in at least the region that `wanted` gives for its size; with the index that was made of
    /// these very bytes, the rest is not gone through.
    ///
    /// # Errors
    /// The damage: what kind, and what was found. It does not depend on the region.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        index: Option<&RowIndex>,
        wanted: impl FnOnce(u32, u32) -> Region,
    ) -> Result<&Planes, Damage> {
        let turned = self.upright && matches!(bytes, [0xFF, 0xD8, ..]) && exif::is_turned(bytes);
        if !turned && let Ok(jpeg) = Jpeg::parse(bytes) {
            let (width, height) = jpeg.size();
            check_size(width.into(), height.into(), self.max_pixels)?;
            let region = wanted(width, height);
            if index.is_some_and(|index| self.decoder.decode_indexed(&jpeg, region, index).is_ok()) {
                return Ok(self.decoder.planes());
            }
            if self.decoder.decode(&jpeg, region).is_ok() {
                return Ok(self.decoder.planes());
            }
            return Ok(self.decoder.set_rgb(&libjpeg::decode(bytes, self.max_pixels)?));
        }
        let decode = if self.upright { decode_upright } else { decode };
        let image = decode(bytes, self.max_pixels)?;
        let _ = wanted(image.width, image.height);
        Ok(self.decoder.set_rgb(&image))
    }
}

fn decode_png(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    let damage = |error: ImageError| image_damage("PNG", &error);
    let mut decoder = png(bytes).map_err(damage)?;
    limit(&mut decoder, max_pixels)?;
    to_rgb(DynamicImage::from_decoder(decoder).map_err(damage)?)
}

fn decode_webp(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    let damage = |error: ImageError| image_damage("WebP", &error);
    let mut decoder = webp(bytes).map_err(damage)?;
    limit(&mut decoder, max_pixels)?;
    to_rgb(DynamicImage::from_decoder(decoder).map_err(damage)?)
}

/// Decodes a format that needs nothing of its own.
fn decode_other(
    format: &str,
    decoder: Result<impl ImageDecoder, ImageError>,
    max_pixels: u64,
) -> Result<RgbImage, Damage> {
    let damage = |error: ImageError| image_damage(format, &error);
    let mut decoder = decoder.map_err(damage)?;
    limit(&mut decoder, max_pixels)?;
    to_rgb(DynamicImage::from_decoder(decoder).map_err(damage)?)
}

fn tiff(bytes: &[u8]) -> Result<TiffDecoder<Cursor<&[u8]>>, ImageError> {
    TiffDecoder::new(Cursor::new(bytes))
}

/// What is beside the pixels of a PNG, such as a color profile, is unpacked to no more than this.
const MAX_METADATA_BYTES: u64 = 32 << 20;

fn png(bytes: &[u8]) -> Result<image::codecs::png::PngDecoder<Cursor<&[u8]>>, ImageError> {
    // Limits that are set later come too late: opening it unpacks the profile.
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(MAX_METADATA_BYTES);
    image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), limits)
}

fn webp(bytes: &[u8]) -> Result<image::codecs::webp::WebPDecoder<Cursor<&[u8]>>, ImageError> {
    image::codecs::webp::WebPDecoder::new(Cursor::new(bytes))
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

fn image_damage(format: &str, error: &ImageError) -> Damage {
    let detail = format!("{format}: {error}");
    let lower = detail.to_lowercase();
    let reason = match error {
        ImageError::Unsupported(_) => DamageReason::Unsupported,
        ImageError::Limits(_) => DamageReason::Dimensions,
        _ if lower.contains("unexpected end") || lower.contains("eof") || lower.contains("failed to fill") => {
            DamageReason::Truncated
        }
        _ => DamageReason::Corrupt,
    };
    Damage::new(reason, detail)
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
        let image = drawn::picture(1, 0, 0, 24);
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

    /// What is beside the pixels does not decide how much memory they take.
    #[test]
    fn a_color_profile_that_unpacks_to_gigabytes_is_not_unpacked() {
        let png = drawn::png(&drawn::picture(1, 0, 0, 24));
        // After the signature and the header chunk: a profile of 256 MiB of zeros.
        let mut chunk = b"iCCPx\0\0".to_vec();
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        for _ in 0..256 {
            std::io::Write::write_all(&mut packed, &vec![0; 1 << 20]).unwrap();
        }
        chunk.extend(packed.finish().unwrap());
        let mut bomb = png[..33].to_vec();
        bomb.extend((chunk.len() as u32 - 4).to_be_bytes());
        bomb.extend(&chunk);
        let mut crc = flate2::Crc::new();
        crc.update(&chunk);
        bomb.extend(crc.sum().to_be_bytes());
        bomb.extend(&png[33..]);
        let peak = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = peak();
        assert_eq!(decode(&bomb, MAX).unwrap(), decode(&png, MAX).unwrap());
        assert!(peak() - before < 200 << 10, "{} kB more", peak() - before);
    }

    #[test]
    fn the_memory_that_decoding_takes_is_told_by_the_header() {
        let picture = drawn::picture(1, 0, 0, 24);
        let buffer = image::RgbImage::from_raw(24, 24, picture.pixels.clone()).unwrap();
        for format in ["png", "bmp", "gif", "tiff", "webp"] {
            let mut bytes = Cursor::new(Vec::new());
            buffer.write_to(&mut bytes, image::ImageFormat::from_extension(format).unwrap()).unwrap();
            assert_eq!(memory_needed(bytes.get_ref()), 24 * 24 * 8, "{format}");
        }
        let jpeg = [&[0xFF, 0xD8, 0xFF, 0xE0, 0, 3, 0, 0xFF, 0xC2, 0, 17, 8, 0, 10, 0, 20][..], &[0; 20]].concat();
        assert_eq!(memory_needed(&jpeg), 10 * 20 * 8);
        assert_eq!(memory_needed(b"no picture at all"), 0);
    }

    #[test]
    fn formats_of_older_days_are_decoded() {
        let picture = drawn::picture(1, 0, 0, 24);
        let buffer = image::RgbImage::from_raw(24, 24, picture.pixels.clone()).unwrap();
        for format in [image::ImageFormat::Bmp, image::ImageFormat::Tiff, image::ImageFormat::Gif] {
            let mut bytes = Cursor::new(Vec::new());
            buffer.write_to(&mut bytes, format).unwrap();
            let found = decode(bytes.get_ref(), MAX).unwrap();
            // A GIF has 256 colors.
            let most = if format == image::ImageFormat::Gif { 40 } else { 0 };
            let off = found.pixels.iter().zip(&picture.pixels).map(|(a, b)| a.abs_diff(*b)).max();
            assert!((found.width, found.height) == (24, 24) && off <= Some(most), "{format:?}: {off:?}");
            assert_eq!(
                decode(bytes.get_ref(), 24 * 24 - 1).unwrap_err().reason,
                DamageReason::Dimensions,
                "{format:?}"
            );
        }
    }

    #[test]
    fn no_prefix_and_no_flipped_byte_of_a_picture_panics() {
        let png = drawn::png(&drawn::picture(1, 3, 0, 20));
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
