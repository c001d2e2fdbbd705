//! The words that users and readers meet: American spelling and the field's terms. What was replaced must not come back.

use std::path::{Path, PathBuf};

use crate::world::text;

/// Where the words are looked for.
const PLACES: &[&str] = &["README.md", "config", "dashboards", "pipeline", "src", "trainer"];

/// Files that hold words, by the ends of their names.
const EXTENSIONS: &[&str] = &["html", "json", "md", "py", "rs", "service", "toml", "yaml", "yml"];

/// Not looked at: values from other libraries, what is built, and the binding, which follows libtorch's own texts.
const LEFT_OUT: &[&str] = &["golden", "target", "torch"];

/// British spellings, as beginnings of words.
const BRITISH: &[&str] = &[
    "behaviour",
    "colour",
    "neighbour",
    "normalis",
    "optimisation",
    "optimise",
    "optimising",
    "recognis",
    "synchronis",
];

/// British spellings that are the beginning of other words too.
const BRITISH_WORDS: &[&str] = &["centre", "centred", "centres", "labelled", "learnt", "unlabelled"];

/// A value is invalid and another one is expected.
const PHRASES: &[&str] = &["is wanted", "are wanted"];

/// What may stay: the file, and the text of its piece. The key is part of `manifest show --json`.
const ALLOWED: &[(&str, &str)] = &[("src/commands/manifest.rs", "\"labelled\"")];

/// A comment, a string literal, or a line of a file that is not Rust.
struct Piece {
    line: usize,
    is_comment: bool,
    text: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files in `place` that hold words.
fn files(place: &Path, found: &mut Vec<PathBuf>) {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    if place.is_dir() {
        if !LEFT_OUT.contains(&&*name) {
            let mut inside: Vec<PathBuf> = place.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            inside.sort();
            inside.iter().for_each(|path| files(path, found));
        }
    } else if place.extension().is_some_and(|end| EXTENSIONS.iter().any(|known| end == *known)) {
        found.push(place.to_owned());
    }
}

/// The comments and string literals of a Rust source.
fn of_rust(source: &str) -> Vec<Piece> {
    let bytes = source.as_bytes();
    let (mut at, mut line, mut found) = (0, 1, Vec::new());
    while at < bytes.len() {
        let rest = &bytes[at..];
        let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let (length, is_comment) = match rest {
            [b'/', b'/', ..] => (rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()), Some(true)),
            // A quote as a character begins no string.
            [b'\'', b'"', b'\'', ..] => (3, None),
            [b'\'', b'\\', ..] => (4, None),
            [b'"', ..] => (quoted(rest), Some(false)),
            [b'r', b'"' | b'#', ..] if !in_word => raw(rest).map_or((1, None), |length| (length, Some(false))),
            _ => (1, None),
        };
        let part = &rest[..length.min(rest.len())];
        if let Some(is_comment) = is_comment {
            found.push(Piece { line, is_comment, text: String::from_utf8_lossy(part).into_owned() });
        }
        line += part.iter().filter(|&&byte| byte == b'\n').count();
        at += part.len();
    }
    found
}

/// The length of the string literal that `rest` begins with.
fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of the raw string literal that `rest` begins with, if it does.
fn raw(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|&&byte| byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let inside = &rest[2 + hashes..];
    let length = inside.windows(end.len()).position(|window| window == end)?;
    Some(2 + hashes + length + end.len())
}

fn of_lines(source: &str) -> Vec<Piece> {
    let piece = |(i, text): (usize, &str)| Piece { line: i + 1, is_comment: false, text: text.to_owned() };
    source.lines().enumerate().map(piece).collect()
}

/// A text without the values that are put into it, in one line.
fn plain(text: &str) -> String {
    let mut depth = 0usize;
    let outside = text.chars().filter(|&c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => return depth == 0,
        }
        false
    });
    let text: String = outside.collect();
    text.split([' ', '\n', '\\']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What is wrong with a piece of `file`.
fn wrong(file: &str, piece: &Piece) -> Vec<String> {
    let is_rust = file.ends_with(".rs");
    // Objects of JSON have braces of their own.
    let text = if is_rust && !piece.is_comment { plain(&piece.text) } else { piece.text.clone() };
    let lower = text.to_lowercase();
    let mut found = Vec::new();
    for word in lower.split(|c: char| !(c.is_ascii_alphabetic() || c == '_')) {
        if BRITISH_WORDS.contains(&word) || BRITISH.iter().any(|start| word.starts_with(start)) {
            found.push(word.to_owned());
        }
    }
    if !piece.is_comment {
        found.extend(PHRASES.iter().filter(|phrase| lower.contains(**phrase)).map(|phrase| (*phrase).to_owned()));
    }
    let is_shown = match file {
        "README.md" => true,
        _ if file.starts_with("src/commands/") => !piece.is_comment || text.starts_with("///"),
        _ => false,
    };
    if is_shown && lower.contains("picture") {
        found.push("picture".to_owned());
    }
    found
}

#[test]
fn words_that_were_replaced_do_not_come_back() {
    let mut all = Vec::new();
    PLACES.iter().for_each(|place| files(&root().join(place), &mut all));
    assert!(all.len() > 200, "{} files", all.len());
    let mut found = Vec::new();
    for path in all {
        let file = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let source = text(&path);
        let pieces = if file.ends_with(".rs") { of_rust(&source) } else { of_lines(&source) };
        for piece in pieces {
            if !ALLOWED.contains(&(file.as_str(), piece.text.as_str())) {
                found.extend(wrong(&file, &piece).iter().map(|word| format!("{file}:{}: {word}", piece.line)));
            }
        }
    }
    assert!(found.is_empty(), "words that are spelled or said otherwise here:\n{}", found.join("\n"));
}

#[test]
fn wrong_words_are_found_where_they_are() {
    let check = |file: &str, source: &str, expected: &[(usize, &str)]| {
        let pieces = if file.ends_with(".rs") { of_rust(source) } else { of_lines(source) };
        let found: Vec<(usize, String)> =
            pieces.iter().flat_map(|piece| wrong(file, piece).into_iter().map(|word| (piece.line, word))).collect();
        let expected: Vec<(usize, String)> = expected.iter().map(|(line, word)| (*line, (*word).to_owned())).collect();
        assert_eq!(found, expected, "{source}");
    };
    check("a.rs", "let colour = '\"'; // Colour\n", &[(1, "colour")]);
    check("a.rs", "f('\\'');\nf(r#\"a \"centre\" \"#);\n", &[(2, "centre")]);
    check(
        "a.rs",
        "f(\"{neighbours} of {colour:?} at least 1 \\\n    is wanted\") // what is wanted\n",
        &[(1, "is wanted")],
    );
    check("a.rs", "// centrefold, `is_labelled`, color, learned\n", &[]);
    check("a.md", "one\nunlabelled pictures\n", &[(2, "unlabelled")]);
    check("README.md", "Pictures\n", &[(1, "picture")]);
    check("src/commands/a.rs", "// a picture\n/// A picture.\n", &[(2, "picture")]);
}
