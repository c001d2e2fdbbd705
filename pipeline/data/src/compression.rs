//! How a file is compressed: by its first bytes where they are read, by its name where they are not.

use std::io::{self, BufReader, Read};

use simclr_ground::location::Location;

/// How a shard's file holds its tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As it is.
    None,
    /// zstd, in one frame or many.
    Zstd,
    /// gzip, in one member or many.
    Gzip,
}

impl Compression {
    /// How the file at `place` is compressed, by its name.
    pub fn by_name(place: &Location) -> Self {
        let name = match place {
            Location::File(path) => path.to_string_lossy(),
            Location::Url(url) => url.path().into(),
        };
        match name.rsplit('.').next().unwrap_or_default().to_lowercase().as_str() {
            "zst" | "zstd" => Self::Zstd,
            "gz" | "tgz" => Self::Gzip,
            _ => Self::None,
        }
    }

    /// How a file that begins with these bytes (512 are enough) is compressed.
    ///
    /// # Errors
    /// If it is something else than a tar, plain or compressed: what it is, and what would be right.
    pub fn of_bytes(start: &[u8]) -> Result<Self, String> {
        let not = |what: &str, cure: &str| Err(format!("is {what}, not a tar; {cure}"));
        let text = String::from_utf8_lossy(&start[..start.len().min(64)]).trim_start().to_lowercase();
        match start {
            [] => not("an empty file", "download or pack it again"),
            // A frame, or what may be skipped before one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => not("a bzip2 file", "unpack it with `bzip2 -d`"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => not("an xz file", "unpack it with `xz -d`"),
            [b'P', b'K', 3, 4, ..] => not("a zip file", "unpack it with `unzip`"),
            [0xff, 0xd8, 0xff, ..] => not("a JPEG image", "name the folder that it is in"),
            [0x89, b'P', b'N', b'G', ..] => not("a PNG image", "name the folder that it is in"),
            [b'7', b'z', 0xbc, 0xaf, ..] => not("a 7-Zip file", "unpack it"),
            _ if text.starts_with("version https://git-lfs") => {
                not("a Git LFS pointer", "fetch the file itself with `git lfs pull`")
            }
            _ if text.starts_with("<!doctype html") || text.starts_with("<html") || text.starts_with("<?xml") => {
                not("an HTML or XML page, such as a server's error message", "download it again")
            }
            _ => Ok(Self::None),
        }
    }

    /// The tar stream in what `source` reads.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn unpacking<'a>(self, source: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::None => Box::new(source),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(BufReader::with_capacity(1 << 20, source))?),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 20, source))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tar_is_called_by_its_name() {
        for (bytes, what) in [
            (&b""[..], "an empty file"),
            (b"BZh91AY&SY", "bzip2 -d"),
            (b"\xfd7zXZ\0", "xz -d"),
            (b"PK\x03\x04", "a zip file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa", "git lfs pull"),
            (b"\n<!DOCTYPE HTML><html>", "HTML"),
            (b"<html><body>404", "HTML"),
        ] {
            let why = Compression::of_bytes(bytes).unwrap_err();
            assert!(why.contains(what), "{why}");
        }
        assert_eq!(Compression::of_bytes(b"a.jpg\0\0"), Ok(Compression::None));
        assert_eq!(Compression::of_bytes(b"\x1f\x8b\x08"), Ok(Compression::Gzip));
        assert_eq!(Compression::of_bytes(b"\x28\xb5\x2f\xfd"), Ok(Compression::Zstd));
    }
}
