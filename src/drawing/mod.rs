//! Images that are drawn for people: contact sheets, confusion matrices.

pub mod canvas;
#[cfg(feature = "trainer")]
pub mod confusion;
pub mod contact_sheet;

use simclr_image::decode::RgbImage;

/// What [`signed_png`] leaves in a file, by which it is known for a drawing of ours rather than somebody's image.
pub const SIGNATURE: &str = "Software\0simclr-pipeline";

/// An image as a PNG that says what drew it.
pub fn signed_png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width, image.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let (key, text) = SIGNATURE.split_once('\0').expect("it has both");
    encoder.add_text_chunk(key.to_owned(), text.to_owned()).expect("it is Latin-1");
    let mut writer = encoder.write_header().expect("memory takes any image");
    writer.write_image_data(&image.pixels).expect("memory takes any image");
    writer.finish().expect("memory takes any image");
    bytes
}
