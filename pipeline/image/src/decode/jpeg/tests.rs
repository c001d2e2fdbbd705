//! The fast decoder against libjpeg: the same bytes, or nothing.

use simclr_ground::rng::{Draws, Purpose};

use super::*;
use crate::decode::libjpeg;
use crate::drawn;

const MAX: u64 = 1 << 26;

/// A drawn image with some noise in it, as a JPEG.
fn jpeg(
    side: (u32, u32),
    quality: u8,
    sampling: (u8, u8),
    gray: bool,
    change: impl Fn(&mut mozjpeg::Compress),
) -> Vec<u8> {
    let image = drawn::image(5, 3, u64::from(quality), 64);
    let mut draws = Draws::new(1, Purpose::Image, &[u64::from(quality)]);
    let space = if gray { mozjpeg::ColorSpace::JCS_GRAYSCALE } else { mozjpeg::ColorSpace::JCS_RGB };
    let channels = if gray { 1 } else { 3 };
    let pixels: Vec<u8> = (0..side.1 as usize)
        .flat_map(|y| (0..side.0 as usize).map(move |x| (x, y)))
        .flat_map(|(x, y)| {
            let at = ((y % 64) * 64 + x % 64) * 3;
            image.pixels[at..at + channels].to_vec()
        })
        .map(|value| value.saturating_add(draws.below(40) as u8))
        .collect();
    let mut jpeg = mozjpeg::Compress::new(space);
    jpeg.set_fastest_defaults();
    jpeg.set_size(side.0 as usize, side.1 as usize);
    jpeg.set_quality(quality.into());
    if !gray {
        jpeg.set_chroma_sampling_pixel_sizes(sampling, sampling);
    }
    change(&mut jpeg);
    let mut jpeg = jpeg.start_compress(Vec::new()).unwrap();
    jpeg.write_scanlines(&pixels).unwrap();
    jpeg.finish().unwrap()
}

fn whole(jpeg: &Jpeg<'_>) -> Region {
    let (width, height) = jpeg.size();
    Region { left: 0, top: 0, width, height }
}

fn decode_fast(bytes: &[u8]) -> Result<RgbImage, Unknown> {
    let jpeg = Jpeg::parse(bytes)?;
    Ok(Decoder::default().decode(&jpeg, whole(&jpeg))?.to_rgb())
}

#[test]
fn images_equal_libjpegs_to_the_bit() {
    let samplings = [(1, 1), (2, 1), (1, 2), (2, 2)];
    for side in [(1, 1), (2, 3), (5, 4), (8, 8), (17, 16), (33, 47), (64, 65), (130, 97)] {
        for quality in [15, 60, 90, 100] {
            for (sampling, gray) in samplings.map(|s| (s, false)).into_iter().chain([((1, 1), true)]) {
                for optimized in [false, true] {
                    let bytes = jpeg(side, quality, sampling, gray, |jpeg| jpeg.set_optimize_coding(optimized));
                    let found = decode_fast(&bytes)
                        .unwrap_or_else(|_| panic!("{side:?} {quality} {sampling:?} {gray} {optimized}"));
                    let wanted = libjpeg::decode(&bytes, MAX).unwrap();
                    assert!(found == wanted, "{side:?}, quality {quality}, sampling {sampling:?}, gray {gray}");
                }
            }
        }
    }
}

#[test]
fn restart_markers_are_followed() {
    for interval in [1, 3, 7] {
        let image = libjpeg::decode(&jpeg((100, 70), 85, (2, 2), false, |_| {}), MAX).unwrap();
        let bytes = with_restarts(&image, interval);
        assert!(bytes.windows(2).any(|pair| pair == [0xFF, 0xD1]));
        assert!(decode_fast(&bytes).unwrap() == libjpeg::decode(&bytes, MAX).unwrap(), "every {interval} units");
    }
}

/// The image with restart markers.
fn with_restarts(image: &RgbImage, interval: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 80);
    encoder.set_restart_interval(interval);
    let (width, height) = (image.width as u16, image.height as u16);
    encoder.encode(&image.pixels, width, height, jpeg_encoder::ColorType::Rgb).unwrap();
    bytes
}

#[test]
fn a_region_is_the_whole_images_and_an_index_changes_nothing() {
    let mut draws = Draws::new(1, Purpose::Image, &[9]);
    for sampling in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        let bytes = jpeg((150, 110), 80, sampling, false, |_| {});
        let jpeg = Jpeg::parse(&bytes).unwrap();
        let whole = Decoder::default().decode(&jpeg, whole(&jpeg)).unwrap().clone();
        let mut decoder = Decoder::default();
        let index = decoder.index(&jpeg).unwrap();
        for _ in 0..30 {
            let (width, height) = (1 + draws.below(150) as u32, 1 + draws.below(110) as u32);
            let (left, top) = (draws.below(151 - u64::from(width)) as u32, draws.below(111 - u64::from(height)) as u32);
            let region = Region { left, top, width, height };
            let part = decoder.decode(&jpeg, region).unwrap().clone();
            let indexed = decoder.decode_indexed(&jpeg, region, &index).unwrap();
            for (i, (part, whole)) in part.planes.iter().zip(&whole.planes).enumerate() {
                let (h, v) = if i == 0 { (1, 1) } else { (sampling.0 as usize, sampling.1 as usize) };
                let columns = (left as usize / h, ((left + width) as usize).div_ceil(h));
                for y in top as usize / v..((top + height) as usize).div_ceil(v) {
                    assert_eq!(part.row(y, columns.0, columns.1), whole.row(y, columns.0, columns.1));
                    assert_eq!(indexed.planes[i].row(y, columns.0, columns.1), whole.row(y, columns.0, columns.1));
                }
            }
        }
    }
}

#[test]
fn vector_code_equals_plain_code() {
    let mut draws = Draws::new(1, Purpose::Image, &[3]);
    for round in 0..20_000u64 {
        // Few and small coefficients as in images, and such as only a damaged file has.
        let large = round % 4 == 0;
        let mut block = Block::new();
        block.last = draws.below(64) as usize;
        for _ in 0..=draws.below(64) {
            let value = if large { draws.below(65_536) as u16 as i16 } else { draws.below(400) as i16 - 200 };
            let place = header::ZIGZAG[draws.below(block.last as u64 + 1) as usize];
            block.coefficients[usize::from(place)] = value;
        }
        let quantization = idct::Quantization::new(std::array::from_fn(|_| 1 + draws.below(255) as i16));
        let (mut plain, mut fast) = ([0; 64], [0; 64]);
        let plain_fits = idct::Transform::Scalar.apply(&block, &quantization, &mut plain, 8);
        let fast_fits = idct::Transform::choose().apply(&block, &quantization, &mut fast, 8);
        assert_eq!((plain, plain_fits), (fast, fast_fits), "{:?} × {quantization:?}", block.coefficients);
    }
}

/// Damaged files: whatever the fast decoder takes, libjpeg takes without a word and gives the same pixels.
#[test]
fn a_damaged_file_is_refused_or_equals_libjpegs() {
    let mut draws = Draws::new(1, Purpose::Image, &[7]);
    let samplings = [(1, 1), (2, 1), (2, 2)];
    let (mut taken, rounds) = (0, 3000);
    for round in 0..rounds {
        let mut bytes = jpeg((40, 33), 50 + (round % 50) as u8, samplings[round % 3], round % 7 == 0, |_| {});
        match round % 3 {
            0 => bytes.truncate(draws.below(bytes.len() as u64) as usize),
            _ => {
                for _ in 0..1 + draws.below(3) {
                    let at = draws.below(bytes.len() as u64) as usize;
                    bytes[at] = draws.below(256) as u8;
                }
            }
        }
        let Ok(jpeg) = Jpeg::parse(&bytes) else { continue };
        let mut decoder = Decoder::default();
        let Ok(planes) = decoder.decode(&jpeg, whole(&jpeg)) else { continue };
        taken += 1;
        let wanted = libjpeg::decode(&bytes, MAX).unwrap_or_else(|damage| panic!("{damage}: {bytes:?}"));
        assert!(planes.to_rgb() == wanted, "round {round}: {bytes:?}");
    }
    assert!(taken > rounds / 20, "{taken} of {rounds} taken");
}

/// `JPEG_FOLDER=… cargo test --release -p simclr-image -- --ignored --nocapture a_folder_of_images`: each file, and
/// `JPEG_MUTATIONS` damaged copies of it (0 unless told), give libjpeg's pixels or go to the general path.
#[test]
#[ignore = "wants a folder of real photographs in JPEG_FOLDER"]
fn a_folder_of_images_equals_libjpegs_and_so_do_its_damaged_copies() {
    let folder = std::env::var("JPEG_FOLDER").expect("JPEG_FOLDER names a folder");
    let mutations: u64 = std::env::var("JPEG_MUTATIONS").map_or(0, |n| n.parse().expect("a number"));
    let (mut files, mut taken, mut damaged, mut damaged_taken) = (0, 0, 0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(bytes) = std::fs::read(&path).ok().filter(|bytes| !bytes.is_empty()) else { continue };
        files += 1;
        if let Ok(found) = decode_fast(&bytes) {
            taken += 1;
            assert!(found == libjpeg::decode(&bytes, MAX).unwrap(), "{path:?}");
        }
        for mutation in 0..mutations {
            let mut draws = Draws::new(mutation, Purpose::Image, &[files]);
            let mut bytes = bytes.clone();
            for _ in 0..=draws.below(3) {
                let at = draws.below(bytes.len() as u64) as usize;
                match draws.below(3) {
                    0 => bytes[at] = draws.bits() as u8,
                    1 => bytes[at] ^= 1 << draws.below(8),
                    _ => bytes.truncate(at.max(2)),
                }
            }
            damaged += 1;
            if let Ok(found) = decode_fast(&bytes) {
                damaged_taken += 1;
                let wanted = libjpeg::decode(&bytes, MAX)
                    .unwrap_or_else(|damage| panic!("{path:?}, mutation {mutation}: {damage}"));
                let off = found.pixels.iter().zip(&wanted.pixels).filter(|(a, b)| a != b).count();
                assert_eq!(off, 0, "{path:?}, mutation {mutation}: pixels differ");
            }
        }
    }
    println!("{taken} of {files} files and {damaged_taken} of {damaged} damaged copies: equal");
    assert!(taken > 0, "no file was taken");
}
