//! Formats of which there are few among photographs, by one library: BMP, GIF and TIFF.

use std::borrow::Cow;
use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError};
use tiff::decoder::ChunkType;
use tiff::tags::Tag;

use super::{Format, RgbImage, check_size, damage, exif, rgb};
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
        Format::Tiff => {
            check_chunks(bytes, max_pixels)?;
            with("TIFF", tiff(bytes), max_pixels)
        }
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

/// How many pixels are held while it is decoded, by the header: those of the image, and of a strip or tile.
pub(super) fn pixels_held(format: Format, bytes: &[u8]) -> u64 {
    let pixels = |(width, height): (u32, u32)| u64::from(width) * u64::from(height);
    let image = size(format, bytes).map_or(0, pixels);
    let chunk = if format == Format::Tiff { chunks(bytes).map_or(0, |chunks| pixels(chunks.size)) } else { 0 };
    image.max(chunk)
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

/// Whether what a TIFF's strips or tiles unpack to is bounded by its size. The decoder believes the sizes of JPEGs in them,
/// and any number of them may share their bytes.
fn check_chunks(bytes: &[u8], max_pixels: u64) -> Result<(), Damage> {
    let wrong = |detail: String| Err(Damage::new(DamageReason::Corrupt, format!("TIFF: {detail}")));
    let Some(chunks) = chunks(bytes) else { return Ok(()) };
    let (width, height) = chunks.size;
    check_size(width.into(), height.into(), max_pixels)?;
    let all = chunks.places.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
    if all > bytes.len() as u64 {
        return wrong(format!("its strips have {all} bytes in a file of {}", bytes.len()));
    }
    if chunks.compression != JPEG_COMPRESSION {
        return Ok(());
    }
    for (offset, count) in chunks.places {
        let place = usize::try_from(offset).ok().zip(usize::try_from(offset.saturating_add(count)).ok());
        let Some(jpeg) = place.and_then(|(from, to)| bytes.get(from..to)) else {
            return wrong("a strip lies beyond its end".into());
        };
        // Tables that all strips share come before the rest of each.
        let shared = chunks.tables.len().saturating_sub(2);
        let whole = match shared {
            0 => Cow::Borrowed(jpeg),
            _ => [&chunks.tables[..shared], jpeg.get(2..).unwrap_or_default()].concat().into(),
        };
        match exif::only_jpeg_size(&whole) {
            Some((w, h)) if w <= width && h <= height => {}
            found => {
                let found = found.map_or("no size that is known".into(), |(w, h)| format!("{w}×{h} pixels"));
                return wrong(format!("a JPEG of {found} in a strip of {width}×{height}"));
            }
        }
    }
    Ok(())
}

/// JPEG as TIFF's technical note 2 has it.
const JPEG_COMPRESSION: u16 = 7;

/// Strips or tiles.
struct Chunks {
    /// Columns and rows of each.
    size: (u32, u32),
    compression: u16,
    /// Where each begins, and how many bytes it has.
    places: Vec<(u64, u64)>,
    /// The start of a JPEG that all have in common.
    tables: Vec<u8>,
}

/// The strips or tiles of a compressed TIFF; `None` if they are not compressed or it is no TIFF.
fn chunks(bytes: &[u8]) -> Option<Chunks> {
    let mut tiff = tiff::decoder::Decoder::new(Cursor::new(bytes)).ok()?;
    let compression = tiff.find_tag_unsigned(Tag::Compression).ok()?.unwrap_or(1u16);
    if compression == 1 {
        return None;
    }
    let (offsets, counts) = match tiff.get_chunk_type() {
        ChunkType::Strip => (Tag::StripOffsets, Tag::StripByteCounts),
        ChunkType::Tile => (Tag::TileOffsets, Tag::TileByteCounts),
    };
    let mut all = |tag| tiff.find_tag_unsigned_vec::<u64>(tag).ok().flatten();
    let places = all(offsets)?.into_iter().zip(all(counts)?).collect();
    let tables = tiff.find_tag(Tag::JPEGTables).ok().flatten().and_then(|tables| tables.into_u8_vec().ok());
    Some(Chunks { size: tiff.chunk_dimensions(), compression, places, tables: tables.unwrap_or_default() })
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

    /// A TIFF of strips of 8 rows of gray that are JPEGs.
    fn tiff_of(strips: &[&[u8]], side: u32) -> Vec<u8> {
        let mut file = b"II*\0\0\0\0\0".to_vec();
        let mut offsets = Vec::new();
        for strip in strips {
            offsets.push(file.len() as u32);
            file.extend(*strip);
        }
        let counts: Vec<u32> = strips.iter().map(|strip| strip.len() as u32).collect();
        tiff_at(file, (&offsets, &counts), side)
    }

    /// Adds the directory of a gray TIFF with JPEG strips of 8 rows to what comes before it.
    fn tiff_at(mut file: Vec<u8>, (offsets, counts): (&[u32], &[u32]), side: u32) -> Vec<u8> {
        let lists = file.len() as u32;
        offsets.iter().chain(counts).for_each(|value| file.extend(value.to_le_bytes()));
        let n = offsets.len() as u32;
        let list = |first: u32, value: u32| if n == 1 { value } else { first };
        let entries = [
            (256u16, 1, side),
            (257, 1, side),
            (258, 1, 8),
            (259, 1, 7),
            (262, 1, 1),
            (273, n, list(lists, offsets[0])),
            (277, 1, 1),
            (278, 1, 8),
            (279, n, list(lists + 4 * n, counts[0])),
        ];
        let directory = file.len() as u32;
        file[4..8].copy_from_slice(&directory.to_le_bytes());
        file.extend((entries.len() as u16).to_le_bytes());
        for (tag, count, value) in entries {
            file.extend([&tag.to_le_bytes()[..], &4u16.to_le_bytes()].concat());
            file.extend([count.to_le_bytes(), value.to_le_bytes()].concat());
        }
        file.extend([0; 4]);
        file
    }

    fn gray_jpeg(width: u16, height: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let pixels = vec![100; usize::from(width) * usize::from(height)];
        let encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
        encoder.encode(&pixels, width, height, jpeg_encoder::ColorType::Luma).unwrap();
        bytes
    }

    #[test]
    fn bounded_jpegs_in_a_tiff_are_no_larger_than_their_strips() {
        let fits = gray_jpeg(16, 8);
        let image = decode(Format::Tiff, &tiff_of(&[&fits, &fits], 16), 1 << 20).unwrap();
        assert!((image.width, image.height) == (16, 16) && image.pixels.iter().all(|value| value.abs_diff(100) < 3));
        // One frame after another: decoders differ in which of them they take.
        let large = gray_jpeg(4000, 4000);
        let header = large.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        let length = 2 + usize::from(u16::from_be_bytes([large[header + 2], large[header + 3]]));
        let at = fits.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        let twice = [&fits[..at], &large[header..header + length], &fits[at..]].concat();
        for (strip, why) in [(&large, "4000×4000"), (&twice, "no size")] {
            let damage = decode(Format::Tiff, &tiff_of(&[&fits, strip], 16), 1 << 20).unwrap_err();
            assert!(damage.to_string().contains(why), "{damage}");
        }
        // Many strips of the same bytes.
        let file = [b"II*\0\0\0\0\0", &fits[..]].concat();
        let n = 1000;
        let damage = decode(Format::Tiff, &tiff_at(file, (&vec![8; n], &vec![fits.len() as u32; n]), 8000), 1 << 30);
        let damage = damage.unwrap_err().to_string();
        assert!(damage.contains("its strips have"), "{damage}");
    }

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
