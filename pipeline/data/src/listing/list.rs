//! Text files that name images: a path on each line, and perhaps a class.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use icu_normalizer::DecomposingNormalizerBorrowed;

use super::{Bytes, Found, Image, LeftOut, ListingError, classes, expected_extensions, input, is_image};

/// How the columns of a list are told apart; one way for a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Columns {
    /// A path alone.
    One,
    Tab,
    /// Commas, and quotes around what holds some.
    Comma,
    /// The last blank.
    Blank,
}

/// The names that a header may give to the column of paths, and to that of classes.
pub(super) const PATH_COLUMNS: [&str; 7] = ["path", "file", "filename", "file_name", "filepath", "image", "image_path"];
pub(super) const CLASS_COLUMNS: [&str; 6] = ["class", "label", "cls", "category", "target", "class_name"];

/// One line: its number, path and class.
type Row = (usize, String, Option<String>);

/// The images that the list at `path` names, by paths that start at its folder.
pub(super) fn found(path: &Path) -> Result<Found, ListingError> {
    let bytes = simclr_ground::files::read_named(path).map_err(|error| input(path, format!("cannot read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| input(path, "not UTF-8 text"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let folder = path.parent().unwrap_or(Path::new(""));
    let lines: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim()))
        .filter(|(_, line)| is_line(folder, line))
        .collect();
    if lines.is_empty() {
        return Err(input(path, "lists no images; expected a path, and perhaps a class, on each line"));
    }
    let columns = columns(path, folder, &lines);
    let mut images = Vec::with_capacity(lines.len());
    let mut notes = Vec::new();
    let mut seen: BTreeMap<PathBuf, (usize, Option<String>)> = BTreeMap::new();
    let mut twice = 0;
    for (number, name, class) in rows(path, columns, &lines, &mut notes)? {
        let wrong = |why: String| input(path, format!("line {number}: {why}"));
        let name = name.trim();
        if !is_image(Path::new(name)) {
            return Err(wrong(format!("{name:?} is not an image; {}", expected_extensions())));
        }
        let file = file(folder, name).map_err(wrong)?;
        // -1 is what the field writes for no class.
        let class = class.map(|class| class.trim().to_owned()).filter(|class| !class.is_empty() && class != "-1");
        match seen.get(&file) {
            Some((first, known)) if *known != class => {
                let told = |class: &Option<String>| class.clone().unwrap_or_else(|| "no class".into());
                let (here, there) = (told(&class), told(known));
                return Err(wrong(format!("{name} is of {here:?} here and of {there:?} on line {first}")));
            }
            Some(_) => twice += 1,
            None => _ = seen.insert(file.clone(), (number, class.clone())),
        }
        let by_class = class.is_some();
        images.push(Image { path: relative(name), class, by_class, bytes: Bytes::File(file) });
    }
    if twice > 0 {
        notes.push(format!("{twice} lines name images that other lines name too; each counts"));
    }
    Ok(Found { images, left_out: LeftOut::default(), notes, no_labels: None, origin: "a list" })
}

/// Whether a line is one of the list: blank ones and comments are not.
fn is_line(folder: &Path, line: &str) -> bool {
    !line.is_empty() && (!line.starts_with('#') || folder.join(line).is_file())
}

/// The path in a key, which starts at no root.
fn relative(name: &str) -> PathBuf {
    use std::path::Component;
    Path::new(name).components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// The regular file that a name stands for; as another system composes letters, if not as it is written.
fn file(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let as_written = folder.join(name);
    let as_other_systems = || {
        let composed = classes::composed(name);
        [DecomposingNormalizerBorrowed::new_nfd().normalize(&composed).into_owned(), composed]
    };
    let known = |path: PathBuf| std::fs::metadata(&path).ok().map(|known| (path, known));
    let found =
        known(as_written.clone()).or_else(|| as_other_systems().iter().find_map(|form| known(folder.join(form))));
    match found {
        Some((path, known)) if known.is_file() => Ok(path),
        Some((path, _)) => Err(format!("{}: not a regular file", path.display())),
        None => Err(format!("{}: no such file (paths start at the folder of the list)", as_written.display())),
    }
}

/// How the columns of these lines are told apart.
fn columns(path: &Path, folder: &Path, lines: &[(usize, &str)]) -> Columns {
    let all = |mark: char| lines.iter().all(|(_, line)| line.contains(mark));
    let is_path = |line: &str| is_image(Path::new(line)) && folder.join(line).is_file();
    let extension = super::extension(path);
    if extension == "csv" || extension == "tsv" {
        return if all('\t') { Columns::Tab } else { Columns::Comma };
    }
    // A name may hold any mark, and a class may end like an image; what is there decides.
    if lines.iter().all(|(_, line)| is_image(Path::new(line))) && lines.iter().any(|(_, line)| is_path(line)) {
        Columns::One
    } else if all('\t') {
        Columns::Tab
    } else if all(',') {
        Columns::Comma
    } else if lines.iter().all(|(_, line)| is_image(Path::new(line))) {
        Columns::One
    } else {
        Columns::Blank
    }
}

/// The rows of a list, without its header.
fn rows(
    path: &Path,
    columns: Columns,
    lines: &[(usize, &str)],
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, ListingError> {
    let wrong = |number: usize, why: String| input(path, format!("line {number}: {why}"));
    let mut separated = |mark: u8| -> Result<Vec<Row>, ListingError> {
        let mut rows = Vec::with_capacity(lines.len());
        let (mut path_at, mut class_at) = (0, 1);
        for (i, &(number, line)) in lines.iter().enumerate() {
            let mut reader = csv::ReaderBuilder::new();
            let mut reader = reader.delimiter(mark).has_headers(false).flexible(true).from_reader(line.as_bytes());
            let record = reader.records().next().and_then(Result::ok);
            let record = record.ok_or_else(|| wrong(number, "quotes that do not match".into()))?;
            let field = |at: usize| record.get(at).map(str::trim).map(str::to_owned);
            if i == 0 && !record.iter().any(|field| is_image(Path::new(field.trim()))) {
                let at = |names: &[&str]| {
                    record.iter().position(|field| names.contains(&field.trim().to_lowercase().as_str()))
                };
                path_at = at(&PATH_COLUMNS).ok_or_else(|| {
                    let why = format!("no column of paths: expected one of {}", PATH_COLUMNS.join(", "));
                    wrong(number, format!("{line:?} names no image, and {why}"))
                })?;
                // Of two columns the other one is the class, whatever it is called.
                let other = (record.len() == 2).then_some(1 - path_at.min(1));
                class_at = at(&CLASS_COLUMNS).or(other).unwrap_or(usize::MAX);
                if class_at == usize::MAX && record.len() > 1 {
                    let columns: Vec<&str> = record.iter().collect();
                    notes.push(format!(
                        "none of the columns {} is one of classes ({})",
                        columns.join(", "),
                        CLASS_COLUMNS.join(", ")
                    ));
                }
                continue;
            }
            let name = field(path_at).ok_or_else(|| wrong(number, format!("no column {}", path_at + 1)))?;
            rows.push((number, name, field(class_at)));
        }
        Ok(rows)
    };
    match columns {
        Columns::One => Ok(lines.iter().map(|&(number, line)| (number, line.to_owned(), None)).collect()),
        Columns::Tab => separated(b'\t'),
        Columns::Comma => separated(b','),
        Columns::Blank => lines
            .iter()
            .map(|&(number, line)| {
                if is_image(Path::new(line)) {
                    return Ok((number, line.to_owned(), None));
                }
                match line.rsplit_once(char::is_whitespace) {
                    Some((name, class)) if is_image(Path::new(name.trim())) => {
                        Ok((number, name.trim().to_owned(), Some(class.to_owned())))
                    }
                    _ => Err(wrong(
                        number,
                        format!(
                            "{line:?} is not an image, nor an image and a class behind a tab, comma or blank; {}",
                            expected_extensions()
                        ),
                    )),
                }
            })
            .collect(),
    }
}
