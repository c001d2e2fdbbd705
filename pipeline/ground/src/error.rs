//! Whose an error is: each error type says so where it is defined, and whoever reports it need not know the type.

use std::borrow::Cow;
use std::fmt::{self, Display};

/// Who can put an error right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The user, by other input: a file, a flag, a configuration. Exit code 2.
    Input,
    /// Nobody by other input: storage, a disk, a peer or a device failed. Exit code 1.
    Runtime,
}

/// An error that says whose it is.
pub trait Classify: std::error::Error + Send + Sync + 'static {
    /// Who can put it right.
    fn class(&self) -> ErrorClass;
}

impl Classify for std::io::Error {
    /// A file that is not there, or may not be touched, is the user's; a disk that fails is not.
    fn class(&self) -> ErrorClass {
        use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
        match self.kind() {
            NotFound | PermissionDenied | IsADirectory | NotADirectory => ErrorClass::Input,
            _ => ErrorClass::Runtime,
        }
    }
}

impl Classify for std::fmt::Error {
    fn class(&self) -> ErrorClass {
        ErrorClass::Runtime
    }
}

/// A value of the configuration that is out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value {found} for {key}: {wanted}")]
pub struct InvalidValue {
    /// The key in the configuration.
    pub key: Cow<'static, str>,
    /// The value found.
    pub found: String,
    /// What would be right.
    pub wanted: String,
}

impl InvalidValue {
    /// The value `found` at `key`, where something else is expected.
    pub fn new(key: impl Into<Cow<'static, str>>, found: impl Display, wanted: impl Into<String>) -> Self {
        Self { key: key.into(), found: found.to_string(), wanted: wanted.into() }
    }
}

impl Classify for InvalidValue {
    fn class(&self) -> ErrorClass {
        ErrorClass::Input
    }
}

/// Any error on its way to the user: its class, the error itself, and what was being done.
pub struct Error {
    class: ErrorClass,
    source: Box<dyn std::error::Error + Send + Sync>,
    /// What was being done, the innermost first.
    context: Vec<String>,
}

/// What a command, or a part of one, comes to.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wrong input that no type stands for.
    pub fn input(message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Input, source: message.into().into(), context: Vec::new() }
    }

    /// A failure that no type stands for.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Runtime, source: message.into().into(), context: Vec::new() }
    }

    /// A failure that a foreign error stands for, which does not say whose it is.
    pub fn from_foreign(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { class: ErrorClass::Runtime, source: Box::new(error), context: Vec::new() }
    }

    /// Whose it is.
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// The same error as somebody else's.
    pub fn with_class(self, class: ErrorClass) -> Self {
        Self { class, ..self }
    }

    /// The same error, and what was being done.
    pub fn context(mut self, what: impl Into<String>) -> Self {
        self.context.push(what.into());
        self
    }

    /// The error of this type, if that is what it is.
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.source.downcast_ref()
    }
}

impl<E: Classify> From<E> for Error {
    fn from(error: E) -> Self {
        Self { class: error.class(), source: Box::new(error), context: Vec::new() }
    }
}

impl Display for Error {
    /// What was being done, the error, and its causes, as far as they are not said already.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in self.context.iter().rev() {
            write!(f, "{what}: ")?;
        }
        let mut said = self.source.to_string();
        f.write_str(&said)?;
        let mut cause = self.source.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?})", self.class)
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// The error with `what` in front.
    ///
    /// # Errors
    /// The same one.
    fn context(self, what: impl Into<String>) -> Result<T>;

    /// As [`Context::context`], made only if there is an error.
    ///
    /// # Errors
    /// The same one.
    fn with_context<C: Into<String>>(self, what: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.into().context(what))
    }

    fn with_context<C: Into<String>>(self, what: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.into().context(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_class_and_says_everything_once() {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = Err::<(), _>(missing()).context("reading a.json").context("opening the set").unwrap_err();
        assert_eq!(error.class(), ErrorClass::Input);
        assert_eq!(error.to_string(), "opening the set: reading a.json: entity not found");
        assert_eq!(Error::from(std::io::Error::other("disk on fire")).class(), ErrorClass::Runtime);
        let value = InvalidValue::new("batch.size", 0, "expected at least 1");
        assert_eq!(Error::from(value).to_string(), "invalid value 0 for batch.size: expected at least 1");
    }
}
