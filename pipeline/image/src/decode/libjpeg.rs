//! JPEG files of every kind, by libjpeg: the general path, for what the fast one does not know.
//!
//! libjpeg repairs what it can and only warns; here a warning that touches pixels is damage. The `unsafe` lines hand
//! it our own error handlers.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::os::raw::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mozjpeg::{ColorSpace, Decompress};
use mozjpeg_sys::{
    JERR_ARITH_NOTIMPL, JERR_BAD_PRECISION, JERR_EMPTY_IMAGE, JERR_INPUT_EMPTY, JERR_INPUT_EOF, JERR_SOF_UNSUPPORTED,
    JWRN_ADOBE_XFORM, JWRN_BOGUS_ICC, JWRN_EXTRANEOUS_DATA, JWRN_JFIF_MAJOR, JWRN_JPEG_EOF, jpeg_common_struct,
    jpeg_error_mgr, jpeg_std_error,
};

use super::{RgbImage, check_size, rgb};
use crate::damage::{Damage, DamageReason};

/// A progressive file may make the decoder go over the image this often for the largest image allowed, and more
/// often for smaller ones; without a bound a small file could keep it busy for minutes.
const PASSES: u64 = 20;

thread_local! {
    /// The first warning about the pixels of the image being decoded.
    static WARNING: Cell<Option<c_int>> = const { Cell::new(None) };
}

/// What libjpeg stopped with.
struct Stopped(c_int);

/// Decodes a JPEG of at most `max_pixels` pixels.
pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Damage> {
    WARNING.set(None);
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_with_warnings(bytes, max_pixels)));
    let image = match decoded {
        Ok(Ok(image)) => image?,
        Ok(Err(error)) => return Err(Damage::new(DamageReason::Corrupt, format!("JPEG: {error}"))),
        Err(payload) => match payload.downcast::<Stopped>() {
            Ok(stopped) => return Err(damage(stopped.0)),
            Err(other) => resume_unwind(other),
        },
    };
    WARNING.take().map_or(Ok(image), |code| Err(damage(code)))
}

fn decode_with_warnings(bytes: &[u8], max_pixels: u64) -> std::io::Result<Result<RgbImage, Damage>> {
    let decoder = Decompress::with_err(handlers()).from_mem(bytes)?;
    let (width, height) = decoder.size();
    if let Err(damage) = check_size(width as u64, height as u64, max_pixels) {
        return Ok(Err(damage));
    }
    let scans = bytes.windows(2).filter(|pair| pair == &[0xFF, 0xDA]).count() as u64;
    if scans.saturating_mul((width * height) as u64) > PASSES.saturating_mul(max_pixels) {
        let detail = format!("JPEG: {scans} scans over {width}×{height} pixels, too many to go through");
        return Ok(Err(Damage::new(DamageReason::Corrupt, detail)));
    }
    let cmyk = matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    let mut started = decoder.to_colorspace(if cmyk { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB })?;
    let pixels = if cmyk {
        // As Adobe writes it and Pillow reads it: inverted, so that each ink multiplies.
        let inks: Vec<[u8; 4]> = started.read_scanlines()?;
        inks.iter().flat_map(|&[c, m, y, k]| [c, m, y].map(|ink| over_255(u32::from(ink) * u32::from(k)))).collect()
    } else {
        started.read_scanlines::<u8>()?
    };
    started.finish()?;
    Ok(rgb(width as u32, height as u32, pixels))
}

/// A product of two values in [0, 255], brought back to that range and rounded.
fn over_255(product: u32) -> u8 {
    ((product + 128 + ((product + 128) >> 8)) >> 8) as u8
}

fn handlers() -> jpeg_error_mgr {
    // SAFETY: an error manager of zeros is what `jpeg_std_error` fills in; all its fields may be zero.
    let mut handlers: jpeg_error_mgr = unsafe { std::mem::zeroed() };
    // SAFETY: it writes the fields of the struct that it is given, and keeps no pointer to it.
    unsafe { jpeg_std_error(&mut handlers) };
    handlers.error_exit = Some(stop);
    handlers.emit_message = Some(note);
    handlers
}

unsafe extern "C-unwind" fn stop(decoder: &mut jpeg_common_struct) {
    // SAFETY: libjpeg calls this with the error manager that it was given, which lives as long as the decoder.
    let code = unsafe { (*decoder.err).msg_code };
    resume_unwind(Box::new(Stopped(code)));
}

unsafe extern "C-unwind" fn note(decoder: &mut jpeg_common_struct, level: c_int) {
    // SAFETY: as above.
    let code = unsafe { (*decoder.err).msg_code };
    let harmless = [JWRN_EXTRANEOUS_DATA, JWRN_ADOBE_XFORM, JWRN_JFIF_MAJOR, JWRN_BOGUS_ICC].contains(&code);
    if level < 0 && !harmless && WARNING.get().is_none() {
        WARNING.set(Some(code));
    }
}

fn damage(code: c_int) -> Damage {
    let reason = match code {
        JERR_INPUT_EOF | JERR_INPUT_EMPTY | JWRN_JPEG_EOF => DamageReason::Truncated,
        JERR_ARITH_NOTIMPL | JERR_BAD_PRECISION | JERR_SOF_UNSUPPORTED => DamageReason::Unsupported,
        JERR_EMPTY_IMAGE => DamageReason::Dimensions,
        _ => DamageReason::Corrupt,
    };
    let what = match code {
        JWRN_JPEG_EOF => "the data ends before the image does".to_owned(),
        JERR_BAD_PRECISION => "not 8 bits a sample".to_owned(),
        JERR_SOF_UNSUPPORTED => "a coding process that is not decoded (lossless or hierarchical)".to_owned(),
        mozjpeg_sys::JWRN_HIT_MARKER => "a marker where image data should be".to_owned(),
        mozjpeg_sys::JWRN_HUFF_BAD_CODE => "a code that its Huffman table does not have".to_owned(),
        mozjpeg_sys::JWRN_MUST_RESYNC => "a restart marker is missing or out of order".to_owned(),
        code => format!("libjpeg's message {code}"),
    };
    Damage::new(reason, format!("JPEG: {what}"))
}
