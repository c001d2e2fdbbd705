//! What a sample is: an image entry of a shard, its key and its label. WebDataset's naming rules live here.

/// The image formats' file extensions that make an entry a sample's image.
pub const IMAGE_EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// A sample by its place in the data set: shard, and index in that shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleRef {
    /// Index of the shard in the manifest.
    pub shard: u32,
    /// Index of the sample in the shard.
    pub index: u32,
}

/// The XXH3-64 of a sample's bytes, written as 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Check(pub u64);

impl Check {
    /// The check of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(bytes))
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl serde::Serialize for Check {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Check {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16)
            .map(Check)
            .map_err(|_| serde::de::Error::custom(format!("a check is 16 hex digits, found {text:?}")))
    }
}

/// Splits an entry's name into WebDataset's key and extension, at the first dot of its last component.
///
/// `dir/a.seg.png` has the key `dir/a` and the extension `seg.png`; a name without a dot has an empty extension.
pub fn split_name(name: &str) -> (&str, &str) {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[base..].find('.') {
        Some(dot) => (&name[..base + dot], &name[base + dot + 1..]),
        None => (name, ""),
    }
}

/// Whether an extension (as `split_name` gives it) is that of an image, in any case.
pub fn is_image_extension(extension: &str) -> bool {
    IMAGE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Whether a file or folder of this name (one component of a path) is nobody's: hidden, or put there by an operating system
/// beside what people keep. Such files are passed over in folders, tars and shards alike.
pub fn belongs_to_nobody(name: &str) -> bool {
    const SYSTEMS: [&str; 9] = [
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "Thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    ];
    // `.` and `..` are no names.
    let hidden = name.starts_with('.') && !matches!(name, "." | "..");
    hidden || SYSTEMS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_ends_at_the_first_dot_of_the_last_component() {
        assert_eq!(split_name("000001.jpg"), ("000001", "jpg"));
        assert_eq!(split_name("a.b/c.seg.png"), ("a.b/c", "seg.png"));
        assert_eq!(split_name("plain"), ("plain", ""));
        assert!(is_image_extension("JPEG") && !is_image_extension("seg.png"));
    }

    #[test]
    fn hidden_and_system_files_are_nobodys() {
        for name in [
            "._a.jpg",
            ".DS_Store",
            ".ipynb_checkpoints",
            "__MACOSX",
            "@eaDir",
            "lost+found",
            "Thumbs.db",
            "Desktop.ini",
        ] {
            assert!(belongs_to_nobody(name), "{name}");
        }
        for name in ["a.jpg", "_a.jpg", "__a__.jpg", "..", "MACOSX", "thumbs"] {
            assert!(!belongs_to_nobody(name), "{name}");
        }
    }
}
