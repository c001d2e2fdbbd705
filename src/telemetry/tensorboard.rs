//! TensorBoard's event files: a run's curves for those who look at all their runs there.
//!
//! A file is a row of records, each its length, a check of the length, the bytes, and a check of them; the bytes are an
//! `Event` of TensorFlow's `event.proto`, of which a few fields are used.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that is open for a run's scalars.
pub struct Events {
    file: File,
}

impl Events {
    /// A new file in `folder`, for what comes after `step`: what older files say of later steps is taken back.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn create(folder: &Path, step: u64) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        // The seconds stand first since readers take files in the order of their names.
        let name = format!("events.out.tfevents.{:010}.{host}.{}", now() as u64, std::process::id());
        let mut events = Self { file: File::options().create(true).append(true).open(folder.join(name))? };
        events.write(0, |event| text(event, 3, "brain.Event:2"))?;
        if step > 0 {
            // A session that starts at a step: a reader forgets what it knew of this step and later ones.
            let start = [0x08, 1];
            events.write(step + 1, |event| bytes(event, 7, &start))?;
        }
        Ok(events)
    }

    /// Writes values of a step, each under its tag.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn scalars<'a>(&mut self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> std::io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut one = Vec::new();
            text(&mut one, 1, tag);
            key(&mut one, 2, FOUR_BYTES);
            one.extend((value as f32).to_le_bytes());
            bytes(&mut summary, 1, &one);
        }
        self.write(step, |event| bytes(event, 5, &summary))
    }

    fn write(&mut self, step: u64, what: impl FnOnce(&mut Vec<u8>)) -> std::io::Result<()> {
        let mut event = Vec::new();
        key(&mut event, 1, EIGHT_BYTES);
        event.extend(now().to_le_bytes());
        key(&mut event, 2, VARINT);
        varint(&mut event, step);
        what(&mut event);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend(length);
        record.extend(masked_check(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_check(&event).to_le_bytes());
        self.file.write_all(&record)
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// CRC-32C, turned and shifted so that a check of bytes that hold checks is no trap.
fn masked_check(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

// How Protocol Buffers mark a field's kind.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH: u64 = 2;
const FOUR_BYTES: u64 = 5;

fn key(into: &mut Vec<u8>, field: u64, kind: u64) {
    varint(into, field << 3 | kind);
}

fn varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn bytes(into: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(into, field, LENGTH);
    varint(into, value.len() as u64);
    into.extend(value);
}

fn text(into: &mut Vec<u8>, field: u64, value: &str) {
    bytes(into, field, value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tensorboard 2.20 says:
    /// `hex(tensorboard.compat.tensorflow_stub.pywrap_tensorflow.masked_crc32c(b"123456789"))`
    #[test]
    fn checks_are_tensorboards() {
        assert_eq!(masked_check(b"123456789"), 0xC78A_B0E5);
    }
}
