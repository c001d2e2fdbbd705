//! Reads a shard, a tar of samples in WebDataset layout (plain or zstd), once from end to end, and says what is in
//! it and what is wrong with it. Knows nothing of manifests, decoding or order.

mod label;
mod passed_over;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Cursor, Read};
use std::ops::ControlFlow;

use md5::{Digest as _, Md5};
use simclr_ground::digest::Digest;
use simclr_ground::location::Location;
use simclr_ground::sample::{Check, belongs_to_nobody, is_image_extension, split_name};
use simclr_image::decode::jpeg;

pub use label::{Label, MAX_CLASSES};
pub use passed_over::PassedOver;

use label::{MAX_CLASS_BYTES, class_field, class_index};

use crate::compression::Compression;
use crate::frames::{Frames, MAX_TABLE_BYTES};
use crate::objects;
use crate::tar_entries::{Entries, Entry, SPARSE, TarSource, shown};

/// Entries above this size are refused as no image, before they are read into memory.
pub const MAX_ENTRY_BYTES: u64 = 1 << 30;

/// Of an entry with a class in a field of its JSON so many bytes are read.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// What the samples of a shard may take in memory while it is read, names and all: millions of them.
const MAX_KEPT_BYTES: usize = 1 << 30;

/// About what a sample takes beside its names and its row index.
const KEPT_BYTES_PER_SAMPLE: usize = 256;

/// So many problems of a shard are noted: a shard of nothing else must not fill memory.
const MAX_PROBLEMS: usize = 1000;

/// So many unused entries of a key, and so many extensions of a shard, are told apart.
const MAX_UNUSED: usize = 64;

/// So many letters of an extension are told.
const MAX_SHOWN_EXTENSION: usize = 32;

/// So many extensions that may be those of images are told.
const MAX_MAYBE_IMAGES: usize = 8;

/// So many bytes tell what a file is.
const START_BYTES: u64 = 512;

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
    /// How the file is compressed, by its first bytes.
    pub compression: Option<Compression>,
    /// The frames of a zstd shard with a seek table.
    pub frames: Option<Frames>,
    /// The samples, in the order of their images.
    pub samples: Vec<ScannedSample>,
    /// What the shard holds beside its samples.
    pub passed_over: PassedOver,
    /// Whether nothing behind some place could be read.
    pub is_broken_off: bool,
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
    /// The class, if an entry says one: `.cls`, `.cls.txt`, or the field of `.json` that was asked for.
    pub label: Label,
    /// The row index of a sound baseline JPEG as text, if it was asked for; else empty.
    pub rows: String,
}

/// What is worked out beside what a manifest always has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// The extension of the entry that is a sample's image, such as `input.jpg`, where a key has several; without it the one
    /// whose whole extension is that of an image.
    pub image: Option<&'a str>,
    /// The field of a sample's `.json` entry that is its class, by index or by name, where no `.cls` is.
    pub label_field: Option<&'a str>,
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
pub fn scan(place: &Location, extras: Extras<'_>) -> io::Result<ShardScan> {
    let mut reader = objects::reader(place)?;
    let mut start = Vec::new();
    (&mut reader).take(START_BYTES).read_to_end(&mut start)?;
    let found = Compression::of_bytes(&start);
    let mut scan = ShardScan { compression: found.as_ref().ok().copied(), ..ShardScan::default() };
    let mut file = Hashing::new(Cursor::new(start).chain(reader));
    file.md5 = extras.md5.then(Md5::new);
    file.tail = (found == Ok(Compression::Zstd)).then(Vec::new);
    match found {
        Err(why) => scan.problem(None, 0, why),
        Ok(compression) => {
            let buffered = BufReader::with_capacity(1 << 20, &mut file);
            let mut tar = Hashing::new(compression.unpacking(buffered)? as Box<dyn Read + '_>);
            scan_tar(&mut tar, extras, &mut scan);
            scan.tar_bytes = tar.count;
            scan.tar_blake3 = tar.hasher.finalize().into();
        }
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
fn scan_tar(tar: &mut Hashing<Box<dyn Read + '_>>, extras: Extras<'_>, scan: &mut ShardScan) {
    let mut content_end = 0;
    let mut entries = Entries::new(&mut *tar);
    let mut scanner = Scanner::new(scan, extras);
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
    scanner.finish();
    if scan.problems.is_empty() {
        check_end(tar, content_end, scan);
    }
    let _ = io::copy(tar, &mut io::sink());
}

/// Notes what is in the entries of a tar.
struct Scanner<'a> {
    scan: &'a mut ShardScan,
    /// For row indices, if they are asked for.
    decoder: Option<jpeg::Decoder>,
    image: Option<&'a str>,
    label_field: Option<&'a str>,
    group: Group,
    /// Where each key was seen, and whether with an image.
    seen: BTreeMap<String, (u64, bool)>,
    /// How many keys have entries that do not follow each other, and the first of these entries.
    apart: u64,
    first_apart: Option<(String, u64)>,
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
    /// By the entry that says it, the more particular first: `.cls`, `.cls.txt`, `.json`.
    labels: [Option<Label>; 3],
    /// The extensions of entries that say nothing here.
    unused: Vec<String>,
    /// Where the key was seen before, and whether with an image.
    before: Option<(u64, bool)>,
}

/// What an entry is for, by its extension.
enum Use<'a> {
    Image,
    /// It says a class, by its rank among those that do.
    Class(usize, Option<&'a str>),
    None,
}

impl<'a> Scanner<'a> {
    fn new(scan: &'a mut ShardScan, extras: Extras<'a>) -> Self {
        let decoder = extras.rows.then(jpeg::Decoder::default);
        let (group, seen) = (Group::default(), BTreeMap::new());
        let Extras { image, label_field, .. } = extras;
        Self { scan, decoder, image, label_field, group, seen, apart: 0, first_apart: None, kept_bytes: 0 }
    }

    /// Looks at an entry; breaks where the rest can't be.
    fn entry(&mut self, entry: &Entry, contents: impl Read) -> ControlFlow<()> {
        if String::from_utf8_lossy(&entry.name).split('/').any(belongs_to_nobody) {
            self.scan.passed_over.nobodys += 1;
            return ControlFlow::Continue(());
        }
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
        let extension = extension.to_lowercase();
        let used = match extension.as_str() {
            extension if self.image.map_or_else(|| is_image_extension(extension), |image| extension == image) => {
                Use::Image
            }
            "cls" => Use::Class(0, None),
            "cls.txt" => Use::Class(1, None),
            "json" if self.label_field.is_some() => Use::Class(2, self.label_field),
            _ => Use::None,
        };
        // Of what says nothing here only whether it is all there.
        let kept = match used {
            Use::Image => entry.size,
            Use::Class(_, None) => MAX_CLASS_BYTES.min(entry.size),
            Use::Class(_, Some(_)) => MAX_JSON_BYTES.min(entry.size),
            Use::None => 0,
        };
        let data = match read(contents, kept, entry.size) {
            Ok(data) => data,
            Err(what) => {
                self.scan.is_broken_off = true;
                self.scan.problem(Some(name), entry.offset, what);
                return ControlFlow::Break(());
            }
        };
        if key != self.group.key || self.group.first_entry.is_empty() {
            self.begin_group(key, &name, entry.offset)?;
        }
        match used {
            Use::Image => self.image(&name, entry.offset, &data),
            Use::Class(rank, field) => {
                let label = field.map_or_else(|| class_index(&data), |field| class_field(&data, field));
                match label {
                    Ok(label) => {
                        if let Label::Name(name) = &label {
                            self.kept_bytes += name.len();
                        }
                        self.group.labels[rank] = Some(label);
                    }
                    Err(what) => self.scan.problem(Some(name), entry.offset, what),
                }
            }
            Use::None => {
                // What they are called is told, not each of them.
                if self.group.unused.len() < MAX_UNUSED {
                    let short: String = extension.chars().take(MAX_SHOWN_EXTENSION).collect();
                    self.kept_bytes += short.len() + size_of::<String>();
                    self.group.unused.push(short);
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Ends a sample and begins the next one; breaks when there is no room for more of them.
    fn begin_group(&mut self, key: &str, name: &str, offset: u64) -> ControlFlow<()> {
        self.end_group();
        self.kept_bytes += 2 * key.len() + name.len() + KEPT_BYTES_PER_SAMPLE;
        if self.kept_bytes > MAX_KEPT_BYTES {
            let what = format!("{} samples before this one are as many as a shard can have", self.seen.len());
            self.scan.problem(Some(name.to_owned()), offset, what);
            return ControlFlow::Break(());
        }
        let before = self.seen.get(key).copied();
        self.group = Group { key: key.to_owned(), first_entry: name.to_owned(), offset, before, ..Group::default() };
        ControlFlow::Continue(())
    }

    fn image(&mut self, name: &str, offset: u64, data: &[u8]) {
        if let Some(other) = &self.group.image {
            let what = format!(
                "second image for key {:?}, besides {}; choose one by its extension (data.image, or --image)",
                shown(&self.group.key),
                shown(&other.entry)
            );
            self.scan.problem(Some(name.to_owned()), offset, what);
            return;
        }
        let rows = self.decoder.as_mut().map_or(String::new(), |decoder| row_index(decoder, data));
        self.kept_bytes += rows.len();
        let (entry, size, check) = (name.to_owned(), data.len() as u32, Check::of(data));
        self.group.image = Some(ScannedSample { entry, offset, size, check, label: Label::None, rows });
    }

    fn end_group(&mut self) {
        let group = std::mem::take(&mut self.group);
        if group.first_entry.is_empty() {
            return;
        }
        let has_image = group.image.is_some();
        match group.before {
            Some((first, true)) if has_image => {
                let what = format!("duplicate key {:?}, first seen at byte {first}", shown(&group.key));
                self.scan.problem(Some(group.first_entry.clone()), group.offset, what);
            }
            Some(_) => {
                self.apart += 1;
                self.first_apart.get_or_insert_with(|| (group.first_entry.clone(), group.offset));
            }
            None => {}
        }
        let had_image = group.before.is_some_and(|(_, image)| image);
        self.seen.insert(group.key, (group.offset, has_image || had_image));
        match group.image {
            Some(mut sample) => {
                sample.label = group.labels.into_iter().flatten().next().unwrap_or_default();
                for extension in group.unused {
                    let unused = &mut self.scan.passed_over.unused;
                    let name = if unused.len() < MAX_UNUSED { shown(&extension) } else { "…".into() };
                    *unused.entry(name).or_default() += 1;
                }
                self.scan.samples.push(sample);
            }
            None if group.before.is_none() => {
                self.scan.passed_over.without_image += 1;
                self.scan.passed_over.first_without_image.get_or_insert_with(|| shown(&group.first_entry));
                let is_image = |extension: &&String| extension.rsplit('.').next().is_some_and(is_image_extension);
                let some = MAX_MAYBE_IMAGES.saturating_sub(self.scan.passed_over.maybe_images.len());
                let maybe = group.unused.iter().filter(is_image).take(some).map(|extension| shown(extension));
                self.scan.passed_over.maybe_images.extend(maybe);
            }
            None => {}
        }
    }

    fn finish(&mut self) {
        self.end_group();
        if let Some((entry, offset)) = self.first_apart.take() {
            let what = format!(
                "the entries of {} keys do not follow each other; pack them again with `tar --sort=name -cf FILE FOLDER`",
                self.apart
            );
            self.scan.problem(Some(entry), offset, what);
        }
    }

    /// Notes that there is no next entry to be read after `offset`.
    fn stopped(&mut self, offset: u64, error: &io::Error) {
        self.scan.is_broken_off = true;
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

/// Where the data of a sound baseline JPEG may be entered, as text; nothing for all others.
pub(crate) fn row_index(decoder: &mut jpeg::Decoder, bytes: &[u8]) -> String {
    let index = jpeg::Jpeg::parse(bytes).and_then(|jpeg| decoder.index(&jpeg));
    index.map_or(String::new(), |index| index.to_text())
}

/// The entry's name as a relative path of plain parts, or its raw name and why it is refused.
fn entry_name(entry: &Entry) -> Result<String, (String, String)> {
    let refused = |what: &str| (String::from_utf8_lossy(&entry.name).into_owned(), what.to_owned());
    let kind = entry.kind;
    if !(kind.is_file() || kind.is_dir()) {
        let what = match kind {
            tar::EntryType::Link => "a hard link".to_owned(),
            tar::EntryType::Symlink => "a symbolic link".to_owned(),
            tar::EntryType::Char | tar::EntryType::Block => "a device".to_owned(),
            tar::EntryType::Fifo => "a pipe".to_owned(),
            tar::EntryType::GNUSparse => "a sparse file".to_owned(),
            other if other.as_byte() == b'V' => "a volume label".to_owned(),
            other => format!("an entry of type {:?}", other.as_byte() as char),
        };
        let cure = "a shard contains regular files only; pack it again with `tar --dereference --hard-dereference`";
        return Err(refused(&format!("{what}: {cure}")));
    }
    if entry.sparse {
        return Err(refused(SPARSE));
    }
    let name = std::str::from_utf8(&entry.name).map_err(|_| refused("the name is not UTF-8"))?;
    let name = name.strip_prefix("./").unwrap_or(name);
    let sound = kind.is_dir() || (!name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | "..")));
    match sound && !name.contains('\0') {
        true => Ok(name.to_owned()),
        false => Err(refused("the name is not a relative path of plain parts")),
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
mod tests;
