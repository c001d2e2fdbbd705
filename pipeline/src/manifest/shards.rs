//! Turns what a user writes (paths, globs, brace ranges) into a list of shard files.

use std::path::PathBuf;

use super::ManifestError;

/// A brace range of more shards than this is a slip of the finger.
const MAX_RANGE: u64 = 10_000_000;

/// The shard files that `patterns` name, in the order given; a glob's matches are sorted.
///
/// Brace ranges are WebDataset's: `name-{000000..001281}.tar` counts with the width of its first number, and
/// `{a,b}` lists alternatives. A URL is refused: shards are read from local files.
///
/// # Errors
/// If nothing is named, a pattern matches nothing, a file is missing, or a file is named twice.
pub fn expand(patterns: &[String]) -> Result<Vec<PathBuf>, ManifestError> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for pattern in patterns {
        let none = |why: &str| ManifestError::NoShards { pattern: pattern.clone(), why: why.into() };
        if let Some((scheme, _)) = pattern.split_once("://") {
            return Err(none(&format!(
                "shards on {scheme}:// are not supported by this build; copy them to a local folder"
            )));
        }
        for name in
            braces(pattern).ok_or_else(|| none("unbalanced, empty or endless braces; {000..012} or {a,b} is wanted"))?
        {
            if name.contains(['*', '?', '[']) {
                let matches = glob::glob(&name).map_err(|error| none(&format!("not a glob: {error}")))?;
                let mut matches: Vec<PathBuf> = matches.filter_map(Result::ok).filter(|path| path.is_file()).collect();
                if matches.is_empty() {
                    return Err(none("matches no file"));
                }
                matches.sort();
                paths.extend(matches);
            } else {
                let path = PathBuf::from(&name);
                if !path.is_file() {
                    let found =
                        if path.is_dir() { "is a folder; name its shards, as in FOLDER/*.tar" } else { "no such file" };
                    return Err(none(&if name == *pattern { found.to_owned() } else { format!("{name}: {found}") }));
                }
                paths.push(path);
            }
        }
    }
    if paths.is_empty() {
        return Err(ManifestError::NoShards {
            pattern: "SHARD".into(),
            why: "no shard is named; give a path, a glob or a brace range".into(),
        });
    }
    let mut sorted: Vec<_> =
        paths.iter().map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect();
    sorted.sort();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ManifestError::NoShards { pattern: twice[0].display().to_string(), why: "named twice".into() });
    }
    Ok(paths)
}

/// All names that a pattern with braces stands for, or `None` if its braces make no sense.
fn braces(pattern: &str) -> Option<Vec<String>> {
    let Some(open) = pattern.find('{') else {
        return (!pattern.contains('}')).then(|| vec![pattern.to_owned()]);
    };
    let close = open + pattern[open..].find('}')?;
    let (head, body, tail) = (&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]);
    let choices: Vec<String> = if let Some((first, last)) = body.split_once("..") {
        let (from, to) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        if to.saturating_sub(from) >= MAX_RANGE {
            return None;
        }
        (from..=to).map(|i| format!("{i:0width$}", width = first.len())).collect()
    } else {
        body.split(',').map(str::to_owned).collect()
    };
    let tails = braces(tail)?;
    let names: Vec<String> =
        choices.iter().flat_map(|choice| tails.iter().map(move |tail| format!("{head}{choice}{tail}"))).collect();
    (!names.is_empty()).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_count_with_the_width_of_their_first_number() {
        assert_eq!(braces("a-{008..011}.tar").unwrap(), ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]);
        assert_eq!(braces("{a,b}{0..1}").unwrap(), ["a0", "a1", "b0", "b1"]);
        assert_eq!(braces("plain.tar").unwrap(), ["plain.tar"]);
        for bad in ["a{0..", "a}", "a{5..2}", "a{x..y}"] {
            assert_eq!(braces(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_names_nothing_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for name in ["s-0.tar", "s-1.tar", "s-10.tar"] {
            std::fs::write(at(name), b"").unwrap();
        }
        assert_eq!(expand(&[at("s-?.tar")]).unwrap().len(), 2);
        assert_eq!(expand(&[at("s-{0..1}.tar"), at("s-10.tar")]).unwrap().len(), 3);
        let check = |patterns: &[String], wanted: &str| {
            let message = expand(patterns).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        };
        check(&[], "no shard is named");
        check(&[at("x*.tar")], "matches no file");
        check(&[at("s-{0..2}.tar")], "s-2.tar: no such file");
        check(&[dir.path().display().to_string()], "is a folder");
        check(&[at("s-0.tar"), at("s-?.tar")], "named twice");
        check(&["s3://bucket/s.tar".into()], "s3://");
    }
}
