//! Where a shard or a manifest is: a local path or a URL.

use std::path::{Path, PathBuf};

use url::Url;

/// The schemes of the URLs that can be read.
pub const SCHEMES: [&str; 5] = ["s3", "gs", "az", "https", "http"];

/// A place that bytes can be read from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// A local file.
    File(PathBuf),
    /// An object: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`, `https://host/path`.
    Url(Url),
}

/// A text that is no location; says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadLocation(String);

impl Location {
    /// The location that `text` names: a URL if it has a scheme, else a path.
    ///
    /// # Errors
    /// If it is a URL of an unknown scheme, without a host, or with a query.
    pub fn parse(text: &str) -> Result<Self, BadLocation> {
        let Some((scheme, _)) = text.split_once("://") else { return Ok(Self::File(text.into())) };
        let bad = |why: String| BadLocation(format!("{text}: {why}"));
        if scheme == "file" {
            let url = Url::parse(text).map_err(|error| bad(format!("not a URL: {error}")))?;
            return url.to_file_path().map(Self::File).map_err(|()| bad("not a local file URL".into()));
        }
        if !SCHEMES.contains(&scheme) && scheme != "memory" {
            return Err(bad(format!("unknown scheme; expected a path or one of {}://", SCHEMES.join("://, "))));
        }
        let url = Url::parse(text).map_err(|error| bad(format!("not a URL: {error}")))?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err(bad(format!("no bucket or host; expected {scheme}://NAME/…")));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("has a query; signed URLs are not supported, pass credentials in the environment".into()));
        }
        Ok(Self::Url(url))
    }

    /// The place that `name` stands for in the folder `self`: `name` itself if it is a URL or an absolute path.
    ///
    /// # Errors
    /// As [`Location::parse`].
    pub fn join(&self, name: &str) -> Result<Self, BadLocation> {
        if name.contains("://") || Path::new(name).is_absolute() {
            return Self::parse(name);
        }
        match self {
            Self::File(folder) => Ok(Self::File(folder.join(name))),
            Self::Url(folder) => Self::parse(&format!("{}/{name}", folder.as_str().trim_end_matches('/'))),
        }
    }

    /// The folder that this is in.
    pub fn folder(&self) -> Self {
        match self {
            Self::File(path) => Self::File(path.parent().unwrap_or(Path::new("")).to_owned()),
            Self::Url(url) => {
                let mut url = url.clone();
                if let Ok(mut parts) = url.path_segments_mut() {
                    parts.pop();
                }
                Self::Url(url)
            }
        }
    }

    /// Whether this is in `folder`, or in a folder of it.
    pub fn is_below(&self, folder: &Self) -> bool {
        match (self, folder) {
            (Self::File(path), Self::File(folder)) => {
                !path.components().any(|part| part.as_os_str() == "..") && path != folder && path.starts_with(folder)
            }
            // URLs are plain: `..` and its ways to be written are gone when they are parsed.
            (Self::Url(url), Self::Url(folder)) => {
                let folder = format!("{}/", folder.as_str().trim_end_matches('/'));
                url.as_str().strip_prefix(&folder).is_some_and(|rest| !rest.is_empty())
            }
            _ => false,
        }
    }

    /// The name of this below `folder`, or all of it if it is not below.
    pub fn relative_to(&self, folder: &Self) -> String {
        match (self, folder) {
            (Self::File(path), Self::File(folder)) => {
                let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
                let (path, folder) = (absolute(path), absolute(folder));
                path.strip_prefix(&folder).unwrap_or(&path).display().to_string()
            }
            (Self::Url(url), Self::Url(folder)) => {
                let folder = format!("{}/", folder.as_str().trim_end_matches('/'));
                url.as_str().strip_prefix(&folder).unwrap_or(url.as_str()).to_owned()
            }
            (Self::File(path), Self::Url(_)) => {
                std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string()
            }
            (Self::Url(url), Self::File(_)) => url.to_string(),
        }
    }

    /// The scheme, `file` for a path; a label of metrics.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Url(url) => SCHEMES.iter().find(|known| **known == url.scheme()).unwrap_or(&"memory"),
        }
    }
}

/// A path as a configuration has it, from the root on, so that it means the same in every folder; a URL does anyway.
///
/// # Errors
/// If the path is empty, or there is no current folder.
pub fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    match path.to_str() {
        Some(text) if text.contains("://") => Ok(path.to_owned()),
        _ => std::path::absolute(path),
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => write!(f, "{url}"),
        }
    }
}

impl Default for Location {
    fn default() -> Self {
        Self::File(PathBuf::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_and_taken_apart() {
        for (folder, name, whole) in [
            ("a/b", "c.tar", "a/b/c.tar"),
            ("a/b", "/c.tar", "/c.tar"),
            ("s3://bucket/set", "x/c.tar.zst", "s3://bucket/set/x/c.tar.zst"),
            ("a", "https://host/c.tar", "https://host/c.tar"),
        ] {
            let (folder, whole) = (Location::parse(folder).unwrap(), Location::parse(whole).unwrap());
            assert_eq!(folder.join(name).unwrap(), whole);
            if !name.starts_with('/') {
                assert_eq!(whole.relative_to(&folder), name);
            }
        }
        let manifest = Location::parse("s3://bucket/set/manifest.json").unwrap();
        assert_eq!(manifest.folder().join("s.tar").unwrap().to_string(), "s3://bucket/set/s.tar");
    }

    #[test]
    fn what_is_below_a_folder_does_not_leave_it() {
        let below = |folder: &str, name: &str| {
            let folder = Location::parse(folder).unwrap();
            folder.join(name).unwrap().is_below(&folder)
        };
        for folder in ["https://host/set", "s3://bucket/set", "/data/set"] {
            for (name, is) in [("a.tar", true), ("deep/a.tar", true), ("../a.tar", false), ("deep/../../a.tar", false)]
            {
                assert_eq!(below(folder, name), is, "{folder} {name}");
            }
            for name in ["/etc/a.tar", "https://other/set/a.tar", "file:///etc/a.tar", "s3://other/set/a.tar"] {
                assert!(!below(folder, name), "{folder} {name}");
            }
        }
        for name in
            ["%2e%2e/a.tar", ".%2E/a.tar", "..\\a.tar", "https://host/set2/a.tar", "https://host@evil/set/a.tar"]
        {
            assert!(!below("https://host/set", name), "{name}");
        }
        assert!(below("https://host/set", "https://host/set/a.tar"), "by its whole name");
    }

    #[test]
    fn a_path_is_made_absolute_and_a_url_stays() {
        for url in ["https://host/set/manifest.json", "s3://bucket/manifest.json", "file:///set/manifest.json"] {
            assert_eq!(absolute(Path::new(url)).unwrap(), Path::new(url));
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("set/manifest.json")).unwrap(), here.join("set/manifest.json"));
    }

    #[test]
    fn what_is_no_location_is_refused() {
        for (text, wanted) in [
            ("ftp://host/a.tar", "unknown scheme"),
            ("s3://", "no bucket"),
            ("https://host/a.tar?X-Amz-Signature=1", "signed URLs"),
        ] {
            let message = Location::parse(text).unwrap_err().to_string();
            assert!(message.contains(wanted) && message.contains(text), "{message}");
        }
    }
}
