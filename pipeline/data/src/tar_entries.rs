//! The entries of a tar, one after the other, in memory that is bounded whatever the tar says: names and extension
//! headers have a largest size, which is checked before they are read. Knows nothing of samples.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};

/// The longest name of an entry; file systems allow 4 KiB.
pub const MAX_NAME_BYTES: u64 = 1 << 16;

/// The largest PAX header, which holds a name and whatever else an archiver knows of a file.
const MAX_PAX_BYTES: u64 = 1 << 20;

/// Headers and contents begin at multiples of this.
const BLOCK_BYTES: usize = 512;

/// How much of a name a message shows.
const SHOWN_CHARACTERS: usize = 200;

/// A name as messages show it: the beginning of it, if it is long.
pub fn shown(name: &str) -> String {
    match name.char_indices().nth(SHOWN_CHARACTERS) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}… ({} bytes)", &name[..end], name.len()),
    }
}

/// Where a tar is read from.
pub trait TarSource: Read {
    /// Goes `bytes` bytes on.
    ///
    /// # Errors
    /// If they can't be read. Whether they are there the next read may tell.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        io::copy(&mut self.take(bytes), &mut io::sink()).map(drop)
    }
}

impl<S: TarSource> TarSource for &mut S {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        (**self).skip(bytes)
    }
}

/// An entry, without its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, of at most [`MAX_NAME_BYTES`] bytes.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryType,
    /// Where its contents begin in the tar.
    pub offset: u64,
    /// How many bytes they are said to have.
    pub size: u64,
    /// Whether its contents are those of a file with holes, which a PAX header describes.
    pub sparse: bool,
}

/// Why an entry with holes is refused.
pub const SPARSE: &str = "a sparse file: its holes are not read; pack it again without `--sparse`";

/// Reads entries one after the other.
pub struct Entries<S> {
    tar: S,
    /// Bytes read or gone over so far.
    position: u64,
    /// Where the next header begins.
    next: u64,
}

impl<S: TarSource> Entries<S> {
    /// The entries of the tar that begins here.
    pub fn new(tar: S) -> Self {
        Self { tar, position: 0, next: 0 }
    }

    /// The next entry; `None` where the archive ends.
    ///
    /// # Errors
    /// If the tar can't be read, is damaged, or has a name or a header that is too large.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let (mut long_name, mut pax) = (None, None);
        loop {
            let Some(header) = self.header()? else {
                return if long_name.is_some() || pax.is_some() {
                    Err(malformed("an extension header describes an entry that is not there"))
                } else {
                    Ok(None)
                };
            };
            let (kind, size) = (header.entry_type(), header.entry_size()?);
            let extends = header.as_gnu().is_some() || header.as_ustar().is_some();
            if extends && kind.is_gnu_longname() {
                set_once(&mut long_name, self.extension(size, MAX_NAME_BYTES, "a long name")?)?;
            } else if extends && kind.is_gnu_longlink() {
                self.extension(size, MAX_NAME_BYTES, "the long name of a link")?;
            } else if extends && kind.is_pax_local_extensions() {
                set_once(&mut pax, self.extension(size, MAX_PAX_BYTES, "a PAX header")?)?;
            } else {
                let pax = pax.unwrap_or_default();
                let value = |key: &str| {
                    let mut pairs = PaxExtensions::new(&pax).filter_map(Result::ok);
                    pairs.find(|pair| pair.key_bytes() == key.as_bytes()).map(|pair| pair.value_bytes())
                };
                let name = match (&long_name, value("path")) {
                    (Some(name), _) => name.strip_suffix(&[0]).unwrap_or(name).to_vec(),
                    (None, Some(name)) => {
                        within(name.len() as u64, MAX_NAME_BYTES, "a long name").map(|()| name.to_vec())?
                    }
                    (None, None) => header.path_bytes().into_owned(),
                };
                // What a PAX header says comes first.
                let said = value("size").and_then(|size| std::str::from_utf8(size).ok()?.parse().ok());
                let size = said.unwrap_or(size);
                let offset = self.contents(size)?;
                let sparse = PaxExtensions::new(&pax)
                    .filter_map(Result::ok)
                    .any(|pair| pair.key_bytes().starts_with(b"GNU.sparse."));
                return Ok(Some(Entry { name, kind, offset, size, sparse }));
            }
        }
    }

    /// The contents of the entry that came last, or what is left of them.
    pub fn contents_of(&mut self, entry: &Entry) -> impl Read + '_ {
        let left = (entry.offset + entry.size).saturating_sub(self.position);
        Counting { position: &mut self.position, inner: (&mut self.tar).take(left) }
    }

    /// The next header that is not of zeros.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let gap = self.next - self.position;
        self.tar.skip(gap)?;
        self.position = self.next;
        let mut header = Header::new_old();
        let block = self.read_up_to(BLOCK_BYTES as u64)?;
        if block.is_empty() || (block.len() == BLOCK_BYTES && block.iter().all(|&byte| byte == 0)) {
            return Ok(None);
        }
        if block.len() < BLOCK_BYTES {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ends within a header"));
        }
        header.as_mut_bytes().copy_from_slice(&block);
        self.next = self.position;
        // The sum is taken with blanks in its own place.
        let sum = block[..148].iter().chain(&block[156..]).map(|&byte| u32::from(byte)).sum::<u32>() + 8 * 32;
        if header.cksum()? != sum {
            return Err(malformed("archive header checksum mismatch"));
        }
        Ok(Some(header))
    }

    /// The contents of an extension header of `size` bytes.
    fn extension(&mut self, size: u64, most: u64, what: &str) -> io::Result<Vec<u8>> {
        within(size, most, what)?;
        self.contents(size)?;
        let bytes = self.read_up_to(size)?;
        if (bytes.len() as u64) < size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the stream ends within {what}")));
        }
        Ok(bytes)
    }

    /// Notes that contents of `size` bytes begin here; where that is.
    fn contents(&mut self, size: u64) -> io::Result<u64> {
        let offset = self.position;
        let end = size.checked_next_multiple_of(BLOCK_BYTES as u64).and_then(|size| offset.checked_add(size));
        self.next = end.ok_or_else(|| malformed(&format!("an entry of {size} bytes, more than a tar can have")))?;
        Ok(offset)
    }

    /// So many bytes, or what is left of the tar.
    fn read_up_to(&mut self, bytes: u64) -> io::Result<Vec<u8>> {
        let mut read = Vec::with_capacity(bytes as usize);
        (&mut self.tar).take(bytes).read_to_end(&mut read)?;
        self.position += read.len() as u64;
        Ok(read)
    }
}

/// Counts what is read.
struct Counting<'a, R> {
    position: &'a mut u64,
    inner: R,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        *self.position += n as u64;
        Ok(n)
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn within(size: u64, most: u64, what: &str) -> io::Result<()> {
    if size <= most { Ok(()) } else { Err(malformed(&format!("{what} of {size} bytes; expected at most {most}"))) }
}

fn set_once(place: &mut Option<Vec<u8>>, value: Vec<u8>) -> io::Result<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed("two extension headers of a kind describe the same entry")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl TarSource for &[u8] {}

    fn header(kind: EntryType, name: &str, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(name).unwrap();
        header.set_size(size);
        header.set_cksum();
        header
    }

    #[test]
    fn bounded_extension_headers_are_refused_by_their_size_before_they_are_read() {
        for (kind, size, wanted) in [
            (EntryType::GNULongName, 3 << 30, "a long name of 3221225472 bytes; expected at most 65536"),
            (EntryType::GNULongLink, 3 << 30, "the long name of a link of 3221225472 bytes"),
            (EntryType::XHeader, 3 << 30, "a PAX header of 3221225472 bytes; expected at most 1048576"),
            (EntryType::Regular, u64::MAX >> 1, ""),
        ] {
            let tar = header(kind, "a", size);
            let found = Entries::new(&tar.as_bytes()[..]).next_entry();
            let message = found.as_ref().err().map_or(String::new(), |error| error.to_string());
            assert!(message.contains(wanted) && found.is_err() != wanted.is_empty(), "{kind:?}: {message}");
        }
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("path", &[b'a'; 70_000][..])]).unwrap();
        builder.append(&header(EntryType::Regular, "b", 0), &b""[..]).unwrap();
        let message = Entries::new(&builder.into_inner().unwrap()[..]).next_entry().unwrap_err().to_string();
        assert!(message.contains("a long name of 70000 bytes"), "{message}");
    }

    #[test]
    fn bounded_no_size_overflows() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("size", u64::MAX.to_string().as_bytes())]).unwrap();
        builder.append(&header(EntryType::Regular, "b", 0), &b""[..]).unwrap();
        let message = Entries::new(&builder.into_inner().unwrap()[..]).next_entry().unwrap_err().to_string();
        assert!(message.contains("more than a tar can have"), "{message}");
    }

    #[test]
    fn entries_are_those_that_tar_reads() {
        let long = "folder/".repeat(40) + "a.jpg";
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in [("a.jpg", &[1; 700][..]), (&long, &[2; 512]), ("d/b.cls", b"7")] {
            builder.append_data(&mut header(EntryType::Regular, "x", data.len() as u64), name, data).unwrap();
        }
        builder.append_pax_extensions([("path", long.as_bytes()), ("size", b"3")]).unwrap();
        builder.append(&header(EntryType::Regular, "short", 3), &b"end"[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let wanted = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            (entry.path_bytes().into_owned(), entry.raw_file_position(), data)
        });
        let mut entries = Entries::new(&tar[..]);
        for (name, offset, data) in wanted {
            let entry = entries.next_entry().unwrap().unwrap();
            let mut found = Vec::new();
            entries.contents_of(&entry).read_to_end(&mut found).unwrap();
            assert_eq!((entry.name, entry.offset, found), (name, offset, data));
        }
        assert_eq!(entries.next_entry().unwrap(), None);
        let message = Entries::new(&tar[..100]).next_entry().unwrap_err().to_string();
        assert!(message.contains("within a header"), "{message}");
    }

    #[test]
    fn messages_show_the_beginning_of_a_name() {
        assert_eq!(shown("a.jpg"), "a.jpg");
        let long = shown(&"ä".repeat(70_000));
        assert!(long.chars().count() < 230 && long.ends_with("… (140000 bytes)"), "{long}");
    }
}
