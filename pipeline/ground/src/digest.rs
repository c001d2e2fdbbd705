//! BLAKE3 digests as text, where they come from files and from other machines.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// A BLAKE3 digest: 64 lowercase hexadecimal digits. Nothing else is read as one, so that it may become a file's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest that `text` writes.
    ///
    /// # Errors
    /// Says what was found, if it writes none.
    pub fn parse(text: &str) -> Result<Self, String> {
        if is_digest(text) {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(80).collect();
        Err(format!("invalid digest {shown:?}: expected 64 lowercase hexadecimal digits"))
    }
}

/// Whether `text` writes a digest.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.to_hex().to_string())
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl Deref for Digest {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_digest_is_read_as_one() {
        let sound = blake3::hash(b"x").to_hex().to_string();
        assert_eq!(Digest::parse(&sound).unwrap(), blake3::hash(b"x").into());
        for other in ["", "../victim/backup", &sound[1..], &sound.to_uppercase(), &format!("{sound}0")] {
            let message = Digest::parse(other).unwrap_err();
            assert!(message.contains("64 lowercase hexadecimal digits"), "{message}");
        }
        assert!(serde_json::from_str::<Digest>("\"../../etc\"").is_err());
    }
}
