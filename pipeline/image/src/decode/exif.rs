//! The orientation that a camera wrote beside the image.

use image::metadata::Orientation;

use super::RgbImage;

/// The orientation in a JPEG's EXIF segment; upright if there is none that makes sense.
pub(super) fn jpeg_orientation(bytes: &[u8]) -> Orientation {
    let mut segments = segments(bytes).filter(|(marker, _)| *marker == 0xE1);
    orientation(segments.find_map(|(_, segment)| segment.strip_prefix(b"Exif\0\0")))
}

/// Columns and rows of a JPEG of any kind, by its first frame header.
pub(super) fn jpeg_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let is_frame = |marker: u8| matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC);
    let (_, frame) = segments(bytes).find(|(marker, _)| is_frame(*marker))?;
    let &[_, h1, h2, w1, w2] = frame.first_chunk()?;
    Some((u16::from_be_bytes([w1, w2]).into(), u16::from_be_bytes([h1, h2]).into()))
}

/// Columns and rows of a JPEG whose segments say them once, up to a scan; `None` of any other, which a decoder may read
/// in another way.
pub(super) fn only_jpeg_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let is_frame = |marker: u8| matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC);
    let (mut frames, mut end) = (0, 2);
    for (marker, segment) in segments(bytes) {
        frames += usize::from(is_frame(marker));
        end = segment.as_ptr() as usize - bytes.as_ptr() as usize + segment.len();
    }
    let is_scan = bytes.get(end..)?.iter().find(|&&byte| byte != 0xFF) == Some(&0xDA);
    jpeg_size(bytes).filter(|_| frames == 1 && is_scan)
}

/// A JPEG's segments up to the first scan: markers, and what comes with them.
fn segments(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut at = 2;
    std::iter::from_fn(move || {
        loop {
            // A length counts itself.
            let &[0xFF, marker, high, low] = bytes.get(at..at + 4)?.first_chunk()? else { return None };
            if marker == 0xDA {
                return None;
            }
            if marker == 0xFF {
                at += 1;
                continue;
            }
            let length = usize::from(u16::from_be_bytes([high, low]));
            let segment = bytes.get(at + 4..at + 2 + length)?;
            at += 2 + length;
            return Some((marker, segment));
        }
    })
}

/// Whether a JPEG's EXIF segment says that the image is not upright.
pub(super) fn is_turned(bytes: &[u8]) -> bool {
    jpeg_orientation(bytes) != Orientation::NoTransforms
}

/// The orientation in EXIF data.
pub(super) fn orientation(exif: Option<&[u8]>) -> Orientation {
    exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

/// The image turned upright.
pub(super) fn upright(image: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let RgbImage { width, height, pixels } = image;
    let buffer = image::RgbImage::from_raw(width, height, pixels).expect("a decoded image has all its pixels");
    let mut turned = image::DynamicImage::ImageRgb8(buffer);
    turned.apply_orientation(orientation);
    let (width, height) = (turned.width(), turned.height());
    RgbImage { width, height, pixels: turned.into_rgb8().into_raw() }
}
