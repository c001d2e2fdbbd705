//! Classes from a file beside the images: a name and a class on each line.

use std::collections::BTreeMap;
use std::path::Path;

use simclr_ground::sample::{is_image_extension, split_name};

use super::list::{CLASS_COLUMNS, PATH_COLUMNS};
use super::{ListingError, input};

/// Names that a header gives to the column of names, and to that of classes, beside those of a list.
const NAME_COLUMNS: [&str; 4] = ["image_id", "id", "key", "name"];
const CLASSES_COLUMN: &str = "labels";

/// The classes that a file gives to images.
pub struct LabelFile {
    rows: Vec<Row>,
    /// The rows by the parts of their names from the last to the first, the last without the extension of an image.
    by_parts: BTreeMap<Vec<String>, usize>,
}

struct Row {
    line: u64,
    name: String,
    class: String,
}

impl LabelFile {
    /// Reads a CSV, tab-separated or blank-separated file, with or without a header.
    ///
    /// # Errors
    /// If it can't be read, a line has no class, or a name has two.
    pub fn read(path: &Path) -> Result<Self, ListingError> {
        let bytes =
            simclr_ground::files::read_named(path).map_err(|error| input(path, format!("cannot read: {error}")))?;
        let text = String::from_utf8(bytes).map_err(|_| input(path, "not UTF-8 text"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return Err(input(path, "lists no labels; expected a name and a class on each line"));
        }
        let all = |mark: char| lines.iter().all(|line| line.contains(mark));
        let mut records: Vec<(u64, Vec<String>)> = Vec::with_capacity(lines.len());
        if all('\t') || all(',') {
            let delimiter = if all('\t') { b'\t' } else { b',' };
            let mut reader = csv::ReaderBuilder::new();
            let mut reader = reader.delimiter(delimiter).has_headers(false).flexible(true).from_reader(text.as_bytes());
            for record in reader.records() {
                let record = record.map_err(|error| input(path, error.to_string()))?;
                let line = record.position().map_or(0, csv::Position::line);
                records.push((line, record.iter().map(|field| field.trim().to_owned()).collect()));
            }
        } else {
            for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let parts = line.trim().rsplit_once(char::is_whitespace);
                let (name, class) =
                    parts.ok_or_else(|| input(path, format!("line {}: expected a name and a class", i + 1)))?;
                records.push((i as u64 + 1, vec![name.trim().to_owned(), class.to_owned()]));
            }
        }
        let (name_at, class_at, has_header) = columns(&records[0].1).map_err(|why| input(path, why))?;
        let mut file = Self { rows: Vec::with_capacity(records.len()), by_parts: BTreeMap::new() };
        for (line, fields) in records.into_iter().skip(usize::from(has_header)) {
            let field = |at: usize| fields.get(at).filter(|field| !field.is_empty()).cloned();
            let Some(name) = field(name_at) else {
                return Err(input(path, format!("line {line}: no name")));
            };
            // A name without a class is an image without a label.
            let Some(class) = field(class_at).filter(|class| class != "-1") else { continue };
            let parts = parts_of(&name);
            if parts.is_empty() {
                return Err(input(path, format!("line {line}: {name:?} is not a name")));
            }
            if let Some(&other) = file.by_parts.get(&parts) {
                let other = &file.rows[other];
                if other.class != class {
                    let why = format!(
                        "line {line}: {name} is of class {class:?}, but of {:?} on line {}",
                        other.class, other.line
                    );
                    return Err(input(path, why));
                }
                continue;
            }
            file.by_parts.insert(parts, file.rows.len());
            file.rows.push(Row { line, name, class });
        }
        Ok(file)
    }

    /// The row that names this entry: the one with most folders in common, of those that contradict none. The error is two
    /// that could be meant.
    fn row(&self, entry: &str) -> Result<Option<usize>, [usize; 2]> {
        let by = |name: &str| {
            let parts = parts_of(name);
            if let Some(&row) = self.by_parts.get(&parts) {
                return Some(Ok(row));
            }
            // Rows that name more folders than the entry has: of those with fewest there may be one.
            let with_more = self.by_parts.range(parts.clone()..).take_while(|(row, _)| row.starts_with(&parts));
            let mut nearest: Vec<usize> = Vec::new();
            let mut fewest = usize::MAX;
            for (row, &at) in with_more.filter(|_| !parts.is_empty()) {
                if row.len() < fewest {
                    (fewest, nearest) = (row.len(), Vec::new());
                }
                if row.len() == fewest {
                    nearest.push(at);
                }
            }
            nearest.sort_unstable();
            match nearest[..] {
                [first, second, ..] => return Some(Err([first, second])),
                [row] => return Some(Ok(row)),
                [] => {}
            }
            // Rows that name fewer: the one with most.
            (1..parts.len()).rev().find_map(|n| self.by_parts.get(&parts[..n])).map(|&row| Ok(row))
        };
        by(entry).or_else(|| by(split_name(entry).0)).transpose()
    }

    /// The classes of images with these names, and what a person should know of them.
    ///
    /// # Errors
    /// If a line could mean several images, or none means any.
    pub fn classes_of(
        &self,
        path: &Path,
        names: impl Iterator<Item = impl AsRef<str>>,
    ) -> Result<(Vec<Option<&str>>, Vec<String>), ListingError> {
        let mut used: BTreeMap<usize, String> = BTreeMap::new();
        let (mut classes, mut first) = (Vec::new(), None);
        for image in names {
            let image = image.as_ref();
            first.get_or_insert_with(|| image.to_owned());
            let row = self.row(image).map_err(|could_be| {
                let [first, second] = could_be.map(|row| &self.rows[row]);
                let (first_line, second_line) = (first.line, second.line);
                let why = format!(
                    "{image} could be {} (line {first_line}) or {} (line {second_line})",
                    first.name, second.name
                );
                input(path, why)
            })?;
            if let Some(row) = row
                && let Some(other) = used.insert(row, image.to_owned())
            {
                let Row { line, name, .. } = &self.rows[row];
                let why = format!("line {line}: {name} could be {other} or {image}; name the folders it lies in too");
                return Err(input(path, why));
            }
            classes.push(row.map(|row| self.rows[row].class.as_str()));
        }
        if used.is_empty() {
            let named = self.rows.first().map_or("nothing", |row| &row.name);
            let there = first.unwrap_or_default();
            let why = format!("names no image of the data set: it names {named}, the data set has {there}");
            return Err(input(path, why));
        }
        let mut notes = Vec::new();
        if used.len() < classes.len() {
            let (named, all) = (used.len(), classes.len());
            notes.push(format!("{}: names {named} of {all} images; the others have no label", path.display()));
        }
        let idle = self.rows.len() - used.len();
        if idle > 0 {
            let first = (0..self.rows.len()).find(|row| !used.contains_key(row)).map_or("", |row| &self.rows[row].name);
            notes.push(format!("{}: {idle} of its names are no image of the data set, e.g. {first}", path.display()));
        }
        Ok((classes, notes))
    }
}

/// Which columns hold names and classes, and whether the first line is a header.
fn columns(first: &[String]) -> Result<(usize, usize, bool), String> {
    let at = |is: &dyn Fn(&str) -> bool| first.iter().position(|field| is(&field.to_lowercase()));
    let name = at(&|field| PATH_COLUMNS.contains(&field) || NAME_COLUMNS.contains(&field));
    let class = at(&|field| CLASS_COLUMNS.contains(&field) || field == CLASSES_COLUMN);
    match (name, class) {
        (Some(name), Some(class)) => Ok((name, class, true)),
        // Of two columns the other one is the class, whatever it is called: `id,breed`.
        (Some(name), None) if first.len() == 2 => Ok((name, 1 - name, true)),
        (None, Some(class)) if first.len() == 2 => Ok((1 - class, class, true)),
        (Some(_), None) => Err(format!(
            "line 1: none of the columns {} is one of classes; expected one of {}",
            first.join(", "),
            CLASS_COLUMNS.join(", ")
        )),
        _ if first.len() < 2 => Err(format!("line 1: {:?} has no class; expected a name and a class", first.join(","))),
        _ => Ok((0, 1, false)),
    }
}

/// The parts of a path from the last to the first, the last one without the extension of an image.
fn parts_of(name: &str) -> Vec<String> {
    let mut parts: Vec<String> =
        name.split('/').filter(|part| !matches!(*part, "" | "." | "..")).map(str::to_owned).collect();
    if let Some(last) = parts.last_mut()
        && let Some((stem, extension)) = last.rsplit_once('.')
        && is_image_extension(extension)
    {
        *last = stem.to_owned();
    }
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<LabelFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.csv");
        std::fs::write(&path, text).unwrap();
        LabelFile::read(&path).map_err(|error| error.to_string())
    }

    fn classes(file: &LabelFile, entries: &[&str]) -> Vec<Option<String>> {
        entries.iter().map(|entry| file.row(entry).unwrap().map(|row| file.rows[row].class.clone())).collect()
    }

    #[test]
    fn names_are_found_with_and_without_folders_and_extensions() {
        let wanted = [Some("cat".to_owned()), Some("dog".to_owned()), None];
        for text in [
            "id,breed\n1,cat\n2,dog\n",
            "\u{feff}label,filename\r\ncat,1.jpg\r\ndog,2.JPG\r\n",
            "photos/a/1.jpg\tcat\nphotos/b/2.jpg\tdog\n",
            "1 cat\n\n2 dog\n",
            "a/1.jpg,\"cat\"\nb/2.jpg,dog\n3.jpg,-1\n3b,\n",
        ] {
            let file = read(text).unwrap();
            assert_eq!(classes(&file, &["a/1.jpg", "b/2.jpg", "b/3.jpg"]), wanted, "{text}");
        }
        // A key of a shard, whatever entry of it is the image; and the folders decide between equal names.
        let file = read("k,x\nb/k,y\nc/k,z\n").unwrap();
        let found = classes(&file, &["k.input.jpg", "b/k.png", "c/k.jpg", "d/k.jpg"]);
        assert_eq!(found.iter().map(|class| class.as_deref().unwrap_or("")).collect::<Vec<_>>(), ["x", "y", "z", "x"]);
        let file = read("b/k,y\nc/k,z\n").unwrap();
        assert_eq!((file.row("k.jpg"), file.row("b/k.jpg"), file.row("l.jpg")), (Err([0, 1]), Ok(Some(0)), Ok(None)));
    }

    #[test]
    fn many_names_that_end_alike_are_found_without_looking_at_all() {
        // So many that to compare each with all would take hours.
        let text: String = (0..200_000).map(|i| format!("{i}/image.jpg,{}\n", i % 7)).collect();
        let file = read(&text).unwrap();
        let names: Vec<String> = (0..200_000).map(|i| format!("photos/{i}/image.jpg")).collect();
        let (classes, notes) = file.classes_of(Path::new("labels.csv"), names.iter()).unwrap();
        assert!(classes.iter().enumerate().all(|(i, class)| *class == Some((i % 7).to_string().as_str())));
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn what_is_no_list_of_labels_is_told() {
        for (text, wanted) in [
            ("", "lists no labels"),
            ("a.jpg\n", "line 1"),
            ("a.jpg,cat\nphotos/b.jpg,cat\na.jpg,dog\n", "line 3: a.jpg is of class \"dog\", but of \"cat\" on line 1"),
            ("id,width,height\n1,2,3\n", "none of the columns"),
        ] {
            let error = read(text).err().expect(text);
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }
}
