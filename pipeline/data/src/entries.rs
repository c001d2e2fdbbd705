//! What the extension headers of a tar say of the entry after them, within bounds: names of GNU's and of POSIX's (PAX) kind.
//!
//! The `tar` crate would read such headers whole, and whoever made the tar says how long they are; so they are read here.

use std::io::Read;

use tar::{EntryType, PaxExtensions};

/// Names of more bytes than this are no names: Linux has paths of 4,096.
const MAX_NAME_BYTES: u64 = 64 << 10;
/// Extension headers of more bytes than this are not read.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// So many characters of a name are shown.
const SHOWN: usize = 200;

/// Takes the extension headers out of a raw stream of entries (`tar::Entries::raw`).
#[derive(Debug, Default)]
pub struct Extensions {
    name: Option<Vec<u8>>,
    sparse: bool,
}

/// An entry that stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its name, of whatever bytes.
    pub name: Vec<u8>,
    /// Whether it is a file with holes, which PAX headers describe.
    pub sparse: bool,
}

impl Named {
    /// The name as text for people, not too much of it.
    pub fn shown(&self) -> String {
        shown(&String::from_utf8_lossy(&self.name))
    }
}

/// A name for people: not more of it than fits a line or two.
pub fn shown(name: &str) -> String {
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}… ({} bytes)", &name[..end], name.len()),
        None => name.to_owned(),
    }
}

impl Extensions {
    /// The entry with what was said of it; `None` if it only says something of the next one.
    ///
    /// # Errors
    /// If it is longer than any such header should be, or can't be read.
    pub fn take<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<Option<Named>, String> {
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut name = bounded(entry, MAX_NAME_BYTES, "a name")?;
                while name.last() == Some(&0) {
                    name.pop();
                }
                self.name = Some(name);
            }
            EntryType::XHeader => {
                let data = bounded(entry, MAX_HEADER_BYTES, "a PAX header")?;
                for extension in PaxExtensions::new(&data) {
                    let extension = extension.map_err(|error| format!("malformed PAX header: {error}"))?;
                    match extension.key_bytes() {
                        b"path" if extension.value_bytes().len() as u64 > MAX_NAME_BYTES => {
                            return Err(too_long("a name", extension.value_bytes().len() as u64, MAX_NAME_BYTES));
                        }
                        b"path" => self.name = Some(extension.value_bytes().to_vec()),
                        key => self.sparse |= key.starts_with(b"GNU.sparse."),
                    }
                }
            }
            EntryType::GNULongLink | EntryType::XGlobalHeader => {}
            _ => {
                let name = self.name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                return Ok(Some(Named { name, sparse: std::mem::take(&mut self.sparse) }));
            }
        }
        Ok(None)
    }
}

fn bounded<R: Read>(entry: &mut tar::Entry<'_, R>, most: u64, what: &str) -> Result<Vec<u8>, String> {
    let size = entry.size();
    if size > most {
        return Err(too_long(what, size, most));
    }
    let mut data = Vec::with_capacity(size as usize);
    entry.read_to_end(&mut data).map_err(|error| format!("{what} breaks off: {error}"))?;
    Ok(data)
}

fn too_long(what: &str, bytes: u64, most: u64) -> String {
    format!("{what} of {bytes} bytes: expected at most {most}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_of_a_name_is_not_shown() {
        assert_eq!(shown("a.jpg"), "a.jpg");
        let long = shown(&"é".repeat(100_000));
        assert!(long.chars().count() < 230 && long.ends_with("(200000 bytes)"), "{long}");
    }
}
