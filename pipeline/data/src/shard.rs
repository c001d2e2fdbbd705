//! Reads a shard, a tar of samples in WebDataset layout (plain or zstd), once from end to end, and says what is in
//! it and what is wrong with it. Knows nothing of manifests, decoding or order.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Cursor, Read};
use std::ops::ControlFlow;

use md5::{Digest as _, Md5};
use simclr_ground::digest::Digest;
use simclr_ground::location::Location;
use simclr_ground::sample::{Check, belongs_to_nobody, is_image_extension, split_name};
use simclr_image::decode::jpeg;

use crate::compression::Compression;
use crate::frames::{Frames, MAX_TABLE_BYTES};
use crate::objects;
use crate::tar_entries::{Entries, Entry, SPARSE, TarSource, shown};

/// Entries above this size are refused as no image, before they are read into memory.
pub const MAX_ENTRY_BYTES: u64 = 1 << 30;

/// Of an entry with a class so many bytes are read: more than any number has.
const MAX_CLASS_BYTES: u64 = 1 << 12;

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

/// Class indices from here on are refused: tables are as long as the largest one.
pub const MAX_CLASSES: u32 = 1 << 20;

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

/// What a shard holds beside its samples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PassedOver {
    /// Entries that are nobody's: hidden ones, and what systems put beside files.
    pub nobodys: u64,
    /// Keys without an image, such as a README or a caption whose image is missing.
    pub without_image: u64,
    /// The first of them.
    pub first_without_image: Option<String>,
    /// How many entries of samples were not used, by extension.
    pub unused: BTreeMap<String, u64>,
    /// Extensions in keys without an image that may be those of images, such as `input.jpg`.
    pub maybe_images: BTreeSet<String>,
}

impl PassedOver {
    /// Adds what another shard holds beside its samples.
    pub fn add(&mut self, other: &Self) {
        self.nobodys += other.nobodys;
        self.without_image += other.without_image;
        self.first_without_image = self.first_without_image.take().or_else(|| other.first_without_image.clone());
        self.maybe_images.extend(other.maybe_images.iter().cloned());
        for (extension, count) in &other.unused {
            *self.unused.entry(extension.clone()).or_default() += count;
        }
    }

    /// It in words for people, a line each.
    pub fn told(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.nobodys > 0 {
            lines.push(format!("passed over {} hidden or system files", self.nobodys));
        }
        if let Some(first) = &self.first_without_image {
            lines.push(format!("passed over {} keys without an image, e.g. {first}", self.without_image));
        }
        if !self.unused.is_empty() {
            let counts: Vec<String> = self.unused.iter().map(|(name, count)| format!(".{name} ({count})")).collect();
            lines.push(format!("passed over entries beside images: {}", counts.join(", ")));
        }
        lines
    }
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

/// What the entries of a sample say of its class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Label {
    /// Nothing, or that it has none.
    #[default]
    None,
    /// Its number.
    Index(u32),
    /// Its name.
    Name(String),
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

/// The class index in a `.cls` entry; -1, as the field has it, is none.
fn class_index(data: &[u8]) -> Result<Label, String> {
    let text = std::str::from_utf8(data).unwrap_or_default().trim();
    match text.parse::<i64>() {
        Ok(-1) => Ok(Label::None),
        Ok(label) => checked_class(label),
        Err(_) => {
            let found = String::from_utf8_lossy(&data[..data.len().min(40)]).into_owned();
            Err(format!("invalid class index {found:?}: expected ASCII digits, or -1 for no class"))
        }
    }
}

/// The class in a field of a `.json` entry, by index or by name; none if the field is missing, null, empty or -1.
fn class_field(data: &[u8], field: &str) -> Result<Label, String> {
    let object: serde_json::Value = serde_json::from_slice(data).map_err(|error| format!("not JSON: {error}"))?;
    match object.get(field) {
        None | Some(serde_json::Value::Null) => Ok(Label::None),
        Some(serde_json::Value::String(name)) => match name.trim() {
            "" => Ok(Label::None),
            name if name.len() as u64 > MAX_CLASS_BYTES || name.contains(['\n', '\r']) => Err(format!(
                "invalid class name in field {field:?}: expected one line of at most {MAX_CLASS_BYTES} bytes"
            )),
            name => Ok(Label::Name(name.to_owned())),
        },
        Some(value) => match value.as_i64() {
            Some(-1) => Ok(Label::None),
            Some(label) => checked_class(label),
            None => Err(format!("invalid class {value} in field {field:?}: expected a number or a name")),
        },
    }
}

fn checked_class(label: i64) -> Result<Label, String> {
    match u32::try_from(label) {
        Ok(label) if label < MAX_CLASSES => Ok(Label::Index(label)),
        _ => Err(format!("invalid class index {label}: expected a number below {MAX_CLASSES}, or -1 for no class")),
    }
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
            (b.entry.as_str(), &b.label, &tar[b.offset as usize..][..b.size as usize]),
            ("d/b.PNG", &Label::Index(0), &b"BB"[..])
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
        check(&tar_of(&[("a.jpg", b"A"), ("a.cls", b"cat")]), "ASCII digits");
        check(&tar_of(&[("a.jpg", b"A"), ("b.jpg", b"A"), ("a.cls", b"1")]), "tar --sort=name");
        check(b"BZh91AY&SY", "bzip2");
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

    #[test]
    fn what_is_no_sample_is_passed_over_and_counted() {
        let json = br#"{"label": 2}"#;
        let tar = tar_of(&[
            ("._a.jpg", b"\0\x05"),
            ("a.jpg", b"A"),
            ("a.json", json),
            ("b.txt", b"a caption"),
            ("c.cls", b"1"),
            ("c.jpg", b"C"),
            ("d.JPG", b"D"),
            ("d.CLS", b" -1\n"),
            ("__e__.jpg", b"E"),
            ("__e__.cls.txt", b"3"),
            ("README.md", b"what this is"),
            ("__index__.json", b"{}"),
        ]);
        let scan = scan_bytes("s.tar", &tar);
        assert_eq!(scan.problems, []);
        let seen = |scan: &ShardScan| -> Vec<(String, Label)> {
            scan.samples.iter().map(|sample| (sample.entry.clone(), sample.label.clone())).collect()
        };
        let all =
            |a| [("a.jpg", a), ("c.jpg", Label::Index(1)), ("d.JPG", Label::None), ("__e__.jpg", Label::Index(3))];
        let owned = |all: [(&str, Label); 4]| all.map(|(name, label)| (name.to_owned(), label)).to_vec();
        assert_eq!(seen(&scan), owned(all(Label::None)));
        let passed = &scan.passed_over;
        assert_eq!(
            (passed.nobodys, passed.without_image, passed.first_without_image.as_deref()),
            (1, 3, Some("b.txt"))
        );
        assert_eq!(passed.unused, BTreeMap::from([("json".to_owned(), 1)]));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("s.tar"), &tar).unwrap();
        let extras = Extras { label_field: Some("label"), ..Extras::default() };
        let with_field = super::scan(&Location::File(dir.path().join("s.tar")), extras).unwrap();
        assert_eq!((seen(&with_field), with_field.problems), (owned(all(Label::Index(2))), vec![]));
    }

    #[test]
    fn bounded_a_key_of_many_entries_is_told_in_few_words() {
        let names: Vec<String> = (0..3000).map(|i| format!("a.{}{i}", "x".repeat(50))).collect();
        let entries = [("a.jpg", &b"A"[..])].into_iter().chain(names.iter().map(|name| (name.as_str(), &b"x"[..])));
        let scan = scan_bytes("s.tar", &tar_of(&entries.collect::<Vec<_>>()));
        assert_eq!((scan.samples.len(), &scan.problems), (1, &vec![]));
        let unused = &scan.passed_over.unused;
        assert!(
            unused.len() <= MAX_UNUSED + 1 && unused.keys().all(|name| name.len() <= MAX_SHOWN_EXTENSION),
            "{unused:?}"
        );
    }

    #[test]
    fn compression_is_told_by_the_first_bytes() {
        use std::io::Write;
        let tar = tar_of(GOOD);
        let plain = scan_bytes("s.tar", &tar);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        for (name, bytes) in [("s.tgz", gzip.finish().unwrap()), ("s.tar", zstd::encode_all(&tar[..], 3).unwrap())] {
            let packed = scan_bytes(name, &bytes);
            assert_eq!(
                (&packed.samples, &packed.tar_blake3, &packed.problems),
                (&plain.samples, &plain.tar_blake3, &vec![])
            );
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
}
