//! Reads a shard, a tar of samples in WebDataset layout (plain or zstd), once from end to end, and says what is in
//! it and what is wrong with it. Knows nothing of manifests, decoding or order.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;

use md5::{Digest as _, Md5};
use simclr_ground::digest::Digest;
use simclr_ground::location::Location;
use simclr_ground::sample::{Check, is_image_extension, split_name};
use simclr_image::decode::jpeg;

use crate::frames::{Frames, MAX_TABLE_BYTES};
use crate::objects;
use crate::tar_entries::{Entries, Entry, TarSource, shown};

/// Entries above this size are refused as no image, before they are read into memory.
pub const MAX_ENTRY_BYTES: u64 = 1 << 30;

/// Of an entry with a class so many bytes are read: more than any number has.
const MAX_CLASS_BYTES: u64 = 1 << 12;

/// What the samples of a shard may take in memory while it is read, names and all: millions of them.
const MAX_KEPT_BYTES: usize = 1 << 30;

/// About what a sample takes beside its names and its row index.
const KEPT_BYTES_PER_SAMPLE: usize = 256;

/// So many problems of a shard are noted: a shard of nothing else must not fill memory.
const MAX_PROBLEMS: usize = 1000;

/// Class indices from here on are refused: tables are as long as the largest one.
pub const MAX_CLASSES: u32 = 1 << 20;

/// What one pass over a shard found.
#[derive(Debug, Clone, Default)]
pub struct ShardScan {
    /// Size of the file as stored.
    pub bytes: u64,
    /// BLAKE3 of the file as stored.
    pub blake3: Digest,
    /// Size of the tar stream (differs from `bytes` for a zstd shard).
    pub tar_bytes: u64,
    /// BLAKE3 of the tar stream.
    pub tar_blake3: Digest,
    /// MD5 of the file as stored, in hex, if it was asked for.
    pub md5: Option<String>,
    /// The frames of a zstd shard with a seek table.
    pub frames: Option<Frames>,
    /// The samples, in the order of their images.
    pub samples: Vec<ScannedSample>,
    /// Everything that is not as it should be; empty for a sound shard.
    pub problems: Vec<ShardProblem>,
}

/// One sample of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedSample {
    /// The name of the image's entry.
    pub entry: String,
    /// Where the image's bytes begin in the tar stream.
    pub offset: u64,
    /// How many bytes the image has.
    pub size: u32,
    /// The check of the image's bytes.
    pub check: Check,
    /// The class index of the `.cls` entry, if there is one.
    pub label: Option<u32>,
    /// The row index of a sound baseline JPEG as text, if it was asked for; else empty.
    pub rows: String,
}

/// What is worked out beside what a manifest always has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras {
    /// The MD5 of the file, for indexes that have one.
    pub md5: bool,
    /// The row index of each JPEG, which takes about half as long as decoding it.
    pub rows: bool,
}

/// Something wrong with a shard: where, and what was found against what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardProblem {
    /// The entry, where one can be named.
    pub entry: Option<String>,
    /// The byte offset in the tar stream.
    pub offset: u64,
    /// What was found and what would be right.
    pub what: String,
}

/// Reads the shard at `place` from end to end.
///
/// # Errors
/// Only if the file can't be opened or read; whatever is wrong inside it is in `problems`.
pub fn scan(place: &Location, extras: Extras) -> io::Result<ShardScan> {
    let mut file = Hashing::new(objects::reader(place)?);
    file.md5 = extras.md5.then(Md5::new);
    file.tail = place.is_zstd().then(Vec::new);
    let mut scan = ShardScan::default();
    {
        let buffered = BufReader::with_capacity(1 << 20, &mut file);
        let mut tar = if place.is_zstd() {
            Hashing::new(Box::new(zstd::Decoder::with_buffer(buffered)?) as Box<dyn Read + '_>)
        } else {
            Hashing::new(Box::new(buffered) as Box<dyn Read + '_>)
        };
        scan_tar(&mut tar, extras.rows, &mut scan);
        scan.tar_bytes = tar.count;
        scan.tar_blake3 = tar.hasher.finalize().into();
    }
    // What a broken stream left unread still belongs to the file's digest.
    io::copy(&mut file, &mut io::sink())?;
    scan.bytes = file.count;
    scan.blake3 = file.hasher.finalize().into();
    scan.md5 = file.md5.map(|md5| md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
    scan.frames = file.tail.and_then(|tail| Frames::from_end(&tail, scan.bytes, scan.tar_bytes));
    Ok(scan)
}

/// Goes through a tar, and notes its samples and problems.
fn scan_tar(tar: &mut Hashing<Box<dyn Read + '_>>, rows: bool, scan: &mut ShardScan) {
    let mut content_end = 0;
    let mut entries = Entries::new(&mut *tar);
    let mut scanner = Scanner::new(scan, rows);
    loop {
        match entries.next_entry() {
            Ok(None) => break,
            Ok(Some(entry)) => {
                content_end = entry.offset + entry.size.next_multiple_of(512);
                if scanner.entry(&entry, entries.contents_of(&entry)).is_break() {
                    break;
                }
            }
            Err(error) => {
                scanner.stopped(content_end, &error);
                break;
            }
        }
    }
    scanner.finish_group();
    if scan.problems.is_empty() {
        check_end(tar, content_end, scan);
    }
    let _ = io::copy(tar, &mut io::sink());
    check_labels(scan);
}

/// Notes what is in the entries of a tar.
struct Scanner<'a> {
    scan: &'a mut ShardScan,
    /// For row indices, if they are asked for.
    decoder: Option<jpeg::Decoder>,
    group: Group,
    /// Where each key was first seen.
    seen: BTreeMap<String, u64>,
    /// About how much memory all that is kept takes.
    kept_bytes: usize,
}

/// A sample whose entries have not all been seen yet.
#[derive(Default)]
struct Group {
    key: String,
    first_entry: String,
    offset: u64,
    image: Option<ScannedSample>,
    label: Option<u32>,
}

impl<'a> Scanner<'a> {
    fn new(scan: &'a mut ShardScan, rows: bool) -> Self {
        let decoder = rows.then(jpeg::Decoder::default);
        Self { scan, decoder, group: Group::default(), seen: BTreeMap::new(), kept_bytes: 0 }
    }

    /// Looks at an entry; breaks where the rest can't be.
    fn entry(&mut self, entry: &Entry, contents: impl Read) -> ControlFlow<()> {
        let name = match entry_name(entry) {
            Ok(name) => name,
            Err((name, what)) => {
                self.scan.problem(Some(name), entry.offset, what);
                return ControlFlow::Continue(());
            }
        };
        if entry.kind.is_dir() {
            return ControlFlow::Continue(());
        }
        if entry.size > MAX_ENTRY_BYTES {
            let what = format!("{} bytes; an entry can have at most {MAX_ENTRY_BYTES}", entry.size);
            self.scan.problem(Some(name), entry.offset, what);
            return ControlFlow::Continue(());
        }
        let (key, extension) = split_name(&name);
        // Of what is neither image nor class only whether it is all there.
        let kept = if is_image_extension(extension) {
            entry.size
        } else if extension == "cls" {
            MAX_CLASS_BYTES.min(entry.size)
        } else {
            0
        };
        let data = match read(contents, kept, entry.size) {
            Ok(data) => data,
            Err(what) => {
                self.scan.problem(Some(name), entry.offset, what);
                return ControlFlow::Break(());
            }
        };
        // WebDataset's metadata, such as `__index__.json`.
        if !key.contains('/') && key.starts_with("__") && key.ends_with("__") {
            return ControlFlow::Continue(());
        }
        if key != self.group.key {
            self.begin_group(key, &name, entry.offset)?;
        }
        if is_image_extension(extension) {
            self.image(&name, entry.offset, &data);
        } else if extension == "cls" {
            self.class(&name, entry.offset, &data);
        }
        ControlFlow::Continue(())
    }

    /// Ends a sample and begins the next one; breaks when there is no room for more of them.
    fn begin_group(&mut self, key: &str, name: &str, offset: u64) -> ControlFlow<()> {
        self.finish_group();
        self.kept_bytes += 2 * key.len() + name.len() + KEPT_BYTES_PER_SAMPLE;
        if self.kept_bytes > MAX_KEPT_BYTES {
            let what = format!("{} samples before this one are as many as a shard can have", self.seen.len());
            self.scan.problem(Some(name.to_owned()), offset, what);
            return ControlFlow::Break(());
        }
        if let Some(first) = self.seen.insert(key.to_owned(), offset) {
            let what = format!("duplicate key {:?}, first seen at byte {first}", shown(key));
            self.scan.problem(Some(name.to_owned()), offset, what);
        }
        self.group = Group { key: key.to_owned(), first_entry: name.to_owned(), offset, ..Group::default() };
        ControlFlow::Continue(())
    }

    fn image(&mut self, name: &str, offset: u64, data: &[u8]) {
        if let Some(other) = &self.group.image {
            let what = format!("second image for key {:?}, besides {}", shown(&self.group.key), shown(&other.entry));
            self.scan.problem(Some(name.to_owned()), offset, what);
            return;
        }
        let rows = self.decoder.as_mut().map_or(String::new(), |decoder| row_index(decoder, data));
        self.kept_bytes += rows.len();
        let (entry, size, check) = (name.to_owned(), data.len() as u32, Check::of(data));
        self.group.image = Some(ScannedSample { entry, offset, size, check, label: None, rows });
    }

    fn class(&mut self, name: &str, offset: u64, data: &[u8]) {
        let what = match std::str::from_utf8(data).ok().and_then(|text| text.trim().parse::<u32>().ok()) {
            Some(label) if label < MAX_CLASSES => {
                self.group.label = Some(label);
                return;
            }
            Some(label) => format!("invalid class index {label}: expected a number below {MAX_CLASSES}"),
            None => {
                let found = String::from_utf8_lossy(&data[..data.len().min(40)]).into_owned();
                format!("invalid class index {found:?}: expected ASCII digits")
            }
        };
        self.scan.problem(Some(name.to_owned()), offset, what);
    }

    fn finish_group(&mut self) {
        let group = std::mem::take(&mut self.group);
        match group.image {
            Some(mut sample) => {
                sample.label = group.label;
                self.scan.samples.push(sample);
            }
            None if !group.key.is_empty() => {
                let what = format!(
                    "key {:?} has no image; expected one of .{}",
                    shown(&group.key),
                    simclr_ground::sample::IMAGE_EXTENSIONS.join(" .")
                );
                self.scan.problem(Some(group.first_entry), group.offset, what);
            }
            None => {}
        }
    }

    /// Notes that there is no next entry to be read after `offset`.
    fn stopped(&mut self, offset: u64, error: &io::Error) {
        let how = if error.kind() == io::ErrorKind::InvalidData { "malformed" } else { "truncated" };
        let after = match self.group.first_entry.as_str() {
            "" => String::new(),
            name => format!(" (after entry {})", shown(name)),
        };
        self.scan.problem(None, offset, format!("the tar stream is {how} here{after}: {}", root(error)));
    }
}

/// The first `kept` of an entry's `size` bytes, all of which are read.
fn read(mut contents: impl Read, kept: u64, size: u64) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    data.try_reserve_exact(kept as usize).map_err(|_| format!("no memory for its {kept} bytes"))?;
    let broken = |error: io::Error| format!("the data is truncated: {}", root(&error));
    contents.by_ref().take(kept).read_to_end(&mut data).map_err(broken)?;
    let found = data.len() as u64 + io::copy(&mut contents, &mut io::sink()).map_err(broken)?;
    if found < size { Err(format!("truncated: only {found} of {size} bytes")) } else { Ok(data) }
}

/// Notes the samples without a label, if others have one.
fn check_labels(scan: &mut ShardScan) {
    let of = scan.samples.len();
    let missing: Vec<usize> = (0..of).filter(|&i| scan.samples[i].label.is_none()).collect();
    if missing.is_empty() || missing.len() == of {
        return;
    }
    let labelled = of - missing.len();
    for i in missing {
        let ScannedSample { entry, offset, .. } = scan.samples[i].clone();
        let key = shown(split_name(&entry).0);
        let what = format!("label file {key}.cls is missing, but {labelled} of {of} samples have one");
        scan.problem(Some(entry), offset, what);
    }
}

/// Where the data of a sound baseline JPEG may be entered, as text; nothing for all others.
fn row_index(decoder: &mut jpeg::Decoder, bytes: &[u8]) -> String {
    let index = jpeg::Jpeg::parse(bytes).and_then(|jpeg| decoder.index(&jpeg));
    index.map_or(String::new(), |index| index.to_text())
}

/// The entry's name as a relative path of plain parts, or its raw name and why it is refused.
fn entry_name(entry: &Entry) -> Result<String, (String, String)> {
    let raw = || String::from_utf8_lossy(&entry.name).into_owned();
    let kind = entry.kind;
    if !(kind.is_file() || kind.is_dir()) {
        let byte = kind.as_byte() as char;
        return Err((raw(), format!("unsupported tar entry type {byte:?}; a shard contains regular files only")));
    }
    let Ok(name) = std::str::from_utf8(&entry.name) else {
        return Err((raw(), "the name is not UTF-8".into()));
    };
    let name = name.strip_prefix("./").unwrap_or(name);
    let sound = kind.is_dir() || (!name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | "..")));
    if sound && !name.contains('\0') {
        Ok(name.to_owned())
    } else {
        Err((raw(), "the name is not a relative path of plain parts".into()))
    }
}

/// After the last entry: two blocks of zeros and nothing else.
fn check_end(tar: &mut Hashing<Box<dyn Read + '_>>, content_end: u64, scan: &mut ShardScan) {
    if tar.count < content_end + 512 {
        let what = "the stream ends without the end-of-archive blocks: truncated between two entries";
        scan.problem(None, tar.count, what.into());
        return;
    }
    let mut position = tar.count;
    let mut block = [0u8; 1 << 16];
    loop {
        match tar.read(&mut block) {
            Ok(0) => break,
            Ok(n) => {
                if let Some(at) = block[..n].iter().position(|byte| *byte != 0) {
                    let what = "data after the end of the archive: trailing garbage or a second archive";
                    scan.problem(None, position + at as u64, what.into());
                    break;
                }
                position += n as u64;
            }
            Err(error) => {
                scan.problem(None, position, format!("the stream is truncated after the last entry: {}", root(&error)));
                break;
            }
        }
    }
}

/// The innermost message of an I/O error; tar wraps the same fact several times.
fn root(error: &io::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(inner) = source.source() {
        source = inner;
    }
    source.to_string()
}

impl ShardScan {
    /// Notes a problem, as long as somebody may want to read of it.
    fn problem(&mut self, entry: Option<String>, offset: u64, what: String) {
        match self.problems.len() {
            ..MAX_PROBLEMS => self.problems.push(ShardProblem { entry, offset, what }),
            MAX_PROBLEMS => {
                let what = format!("more than {MAX_PROBLEMS} problems; the others are not listed");
                self.problems.push(ShardProblem { entry: None, offset, what });
            }
            _ => {}
        }
    }
}

/// Passes bytes on, counting and hashing them.
struct Hashing<R> {
    inner: R,
    hasher: blake3::Hasher,
    count: u64,
    md5: Option<Md5>,
    /// The last bytes, at least [`MAX_TABLE_BYTES`] of them, where a seek table may be.
    tail: Option<Vec<u8>>,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), count: 0, md5: None, tail: None }
    }
}

impl<R: Read> TarSource for Hashing<R> {}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let bytes = &buffer[..n];
        self.hasher.update(bytes);
        self.count += n as u64;
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
        if let Some(tail) = &mut self.tail {
            tail.extend_from_slice(bytes);
            if tail.len() > 4 * MAX_TABLE_BYTES {
                tail.drain(..tail.len() - MAX_TABLE_BYTES);
            }
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{ManifestError, Problem};

    fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn scan_bytes(name: &str, bytes: &[u8]) -> ShardScan {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        scan(&Location::File(path), Extras::default()).unwrap()
    }

    const GOOD: &[(&str, &[u8])] = &[("a.jpg", b"AAAA"), ("a.cls", b"3\n"), ("d/b.PNG", b"BB"), ("d/b.cls", b"0")];

    #[test]
    fn samples_have_offset_size_and_label() {
        let tar = tar_of(GOOD);
        let scan = scan_bytes("s.tar", &tar);
        assert_eq!(scan.problems, []);
        assert_eq!(scan.samples.len(), 2);
        let b = &scan.samples[1];
        assert_eq!(
            (b.entry.as_str(), b.label, &tar[b.offset as usize..][..b.size as usize]),
            ("d/b.PNG", Some(0), &b"BB"[..])
        );
        assert_eq!(scan.blake3, blake3::hash(&tar).into());
    }

    #[test]
    fn a_zstd_shard_has_the_same_samples() {
        let tar = tar_of(GOOD);
        let plain = scan_bytes("s.tar", &tar);
        let zstd = scan_bytes("s.tar.zst", &zstd::encode_all(&tar[..], 3).unwrap());
        assert_eq!((&plain.samples, &plain.tar_blake3), (&zstd.samples, &zstd.tar_blake3));
        assert_ne!(plain.blake3, zstd.blake3);
    }

    #[test]
    fn damage_is_named() {
        let check = |bytes: &[u8], wanted: &str| {
            let problems = scan_bytes("s.tar", bytes).problems;
            let text = format!("{problems:?}");
            assert!(text.contains(wanted), "{wanted:?} not in {text}");
        };
        let tar = tar_of(GOOD);
        check(&tar[..tar.len() - 1024], "without the end-of-archive");
        check(&tar[..515], "a.jpg");
        check(&[&tar[..], b"junk"].concat(), "data after the end");
        check(&[&tar[..], &tar[..]].concat(), "second archive");
        check(&tar_of(&[("a.jpg", b"A"), ("a.cls", b"1"), ("b.jpg", b"B")]), "label file b.cls is missing");
        check(&tar_of(&[("a.jpg", b"A"), ("a.cls", b"cat")]), "ASCII digits");
        check(&tar_of(&[("a.cls", b"1"), ("b.jpg", b"A"), ("b.cls", b"1")]), "has no image");
        check(&tar_of(&[("a.jpg", b"A"), ("b.jpg", b"A"), ("a.jpg", b"A")]), "duplicate key");
        check(&tar_of(&[("a.jpg", b"A"), ("a.png", b"A")]), "second image");
        let mut broken = tar.clone();
        broken[1024] ^= 1;
        check(&broken, "checksum");
    }

    #[test]
    fn long_names_are_read_in_both_ways_that_tars_have() {
        let long = format!("{}/a.jpg", "folder".repeat(40));
        let gnu = scan_bytes("s.tar", &tar_of(&[(&long, b"A")]));
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("path", long.as_bytes())]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("short.jpg").unwrap();
        header.set_size(1);
        header.set_cksum();
        builder.append(&header, &b"A"[..]).unwrap();
        let pax = scan_bytes("s.tar", &builder.into_inner().unwrap());
        for scan in [gnu, pax] {
            assert_eq!((scan.samples[0].entry.as_str(), &scan.problems), (long.as_str(), &vec![]));
        }
    }

    /// The packed shard's tar, unpacked: a header that announces `size` bytes, so many of them, and a sample.
    fn zstd_bomb(kind: tar::EntryType, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("././@LongLink").unwrap();
        header.set_size(size);
        header.set_cksum();
        let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
        io::copy(&mut header.as_bytes().chain(io::repeat(b'a').take(size)), &mut packed).unwrap();
        io::copy(&mut &tar_of(GOOD)[..], &mut packed).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn bounded_a_long_name_or_header_is_refused_before_it_is_read() {
        for (kind, wanted) in [
            (tar::EntryType::GNULongName, "a long name of 67108864 bytes; expected at most 65536"),
            (tar::EntryType::XHeader, "a PAX header of 67108864 bytes; expected at most 1048576"),
        ] {
            let scan = scan_bytes("s.tar.zst", &zstd_bomb(kind, 64 << 20));
            let text = format!("{:?}", scan.problems);
            assert!(scan.problems.len() == 1 && text.contains(wanted) && text.len() < 500, "{text}");
        }
    }

    #[test]
    fn bounded_messages_show_the_beginning_of_a_name() {
        let long = "a".repeat(60_000);
        let (image, other) = (format!("{long}.jpg"), format!("{long}.png"));
        let scan = scan_bytes("s.tar", &tar_of(&[(&image, b"A"), (&other, b"A"), ("b.cls", b"x")]));
        assert_eq!(scan.samples[0].entry, image);
        assert!(scan.problems.iter().all(|problem| problem.what.len() < 600), "{} problems", scan.problems.len());
        let message = ManifestError::Unsound {
            problems: scan
                .problems
                .into_iter()
                .map(|ShardProblem { entry, offset, what }| Problem { shard: "s.tar".into(), entry, offset, what })
                .collect(),
        }
        .to_string();
        assert!(message.len() < 3000, "{} bytes", message.len());
    }

    #[test]
    fn bounded_the_problems_of_a_shard_are_so_many() {
        let mut builder = tar::Builder::new(Vec::new());
        for _ in 0..2 * MAX_PROBLEMS {
            let mut header = tar::Header::new_ustar();
            header.set_path("a/../b.jpg").unwrap_or(());
            header.set_entry_type(tar::EntryType::Char);
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, &b""[..]).unwrap();
        }
        let problems = scan_bytes("s.tar", &builder.into_inner().unwrap()).problems;
        assert_eq!(problems.len(), MAX_PROBLEMS + 1);
        assert!(problems[MAX_PROBLEMS].what.contains("more than 1000 problems"), "{:?}", problems[MAX_PROBLEMS]);
    }

    #[test]
    fn links_devices_and_paths_upwards_are_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Char);
        header.set_path("device.jpg").unwrap();
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        builder.append_link(&mut header, "a.jpg", "/etc/passwd").unwrap();
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..9].copy_from_slice(b"../up.jpg");
        header.set_size(1);
        header.set_cksum();
        builder.append(&header, &b"A"[..]).unwrap();
        let text = format!("{:?}", scan_bytes("s.tar", &builder.into_inner().unwrap()).problems);
        assert!(
            text.matches("regular files only").count() == 2 && text.contains("relative path of plain parts"),
            "{text}"
        );
    }
}
