//! The orientation that a camera wrote beside the image.

use image::metadata::Orientation;

use super::RgbImage;

/// The orientation in a JPEG's EXIF segment; upright if there is none that makes sense.
pub(super) fn jpeg_orientation(bytes: &[u8]) -> Orientation {
    let mut at = 2;
    // Segments up to the first scan: a marker, and a length that counts itself.
    while let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4).and_then(|head| head.first_chunk()) {
        if marker == 0xDA {
            break;
        }
        if marker == 0xFF {
            at += 1;
            continue;
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some(segment) = bytes.get(at + 4..at + 2 + length) else { break };
        if marker == 0xE1
            && let Some(exif) = segment.strip_prefix(b"Exif\0\0")
        {
            return orientation(Some(exif));
        }
        at += 2 + length;
    }
    Orientation::NoTransforms
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
