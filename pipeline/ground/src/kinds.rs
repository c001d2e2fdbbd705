//! Tables of configuration whose `kind` decides which keys they have, beside those that all kinds share.
//!
//! A table is read as a struct of the shared keys and an enum of the kinds, whose variants hold structs of their own keys
//! ([`crate::kinds!`]). A key of another kind is refused, with the keys that would be right; one that was inherited from a preset
//! of another kind is dropped before, by [`known_keys`].

use serde::de::{DeserializeOwned, Deserializer, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A table's own keys and values.
pub type Table = Map<String, Value>;

/// The kinds of a table.
pub trait Kinds: Sized {
    /// Their names, in the configuration.
    const NAMES: &'static [&'static str];

    /// The keys of a kind; `None` if there is none of that name.
    fn keys(name: &str) -> Option<Vec<String>>;

    /// The kind of this name with these values; keys that are missing have their defaults.
    ///
    /// # Errors
    /// Names the key and what would be right.
    fn read(name: &str, table: Table) -> Result<Self, String>;
}

/// The keys of a struct.
pub fn keys_of<T: Serialize + Default>() -> Vec<String> {
    match serde_json::to_value(T::default()) {
        Ok(Value::Object(table)) => table.into_iter().map(|(key, _)| key).collect(),
        other => panic!("a table of configuration is a struct, not {other:?}"),
    }
}

/// A struct from a table, by its keys.
///
/// # Errors
/// Names the key and what would be right.
pub fn read_struct<T: DeserializeOwned>(table: Table) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Object(table)).map_err(|error| match error.path().to_string().as_str() {
        "." => error.inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    })
}

/// Reads a table: the keys that all kinds share, and those of the kind that it names.
///
/// # Errors
/// If the kind is missing or unknown, or a key is: names it and what would be right.
pub fn deserialize<'de, D, C, K>(deserializer: D) -> Result<(C, K), D::Error>
where
    D: Deserializer<'de>,
    C: Serialize + DeserializeOwned + Default,
    K: Kinds,
{
    let mut table = Table::deserialize(deserializer)?;
    let name = match table.remove("kind") {
        Some(Value::String(name)) => name,
        Some(other) => return Err(D::Error::custom(format!("kind: invalid type: {other}, expected a string"))),
        None => return Err(D::Error::missing_field("kind")),
    };
    let own = K::keys(&name).ok_or_else(|| D::Error::unknown_variant(&name, K::NAMES))?;
    let shared = keys_of::<C>();
    let (mut of_all, mut of_kind) = (Table::new(), Table::new());
    for (key, value) in table {
        if shared.contains(&key) {
            of_all.insert(key, value);
        } else if own.contains(&key) {
            of_kind.insert(key, value);
        } else {
            let known: Vec<String> = shared.iter().chain(&own).map(|key| format!("`{key}`")).collect();
            let known = known.join(", ");
            return Err(D::Error::custom(format!("unknown field `{key}` of kind {name}, expected one of {known}")));
        }
    }
    let kind = K::read(&name, of_kind).map_err(D::Error::custom)?;
    Ok((read_struct(of_all).map_err(D::Error::custom)?, kind))
}

/// The keys that a table of the kind `name` may have beside `kind`: those that all kinds share and its own; `None` if there
/// is no such kind.
pub fn known_keys<C: Serialize + Default, K: Kinds>(name: &str) -> Option<Vec<String>> {
    let mut keys = keys_of::<C>();
    keys.extend(K::keys(name)?);
    Some(keys)
}

/// Declares an enum of kinds that share a trait, a row each: variant, struct of its keys, name in the configuration.
#[macro_export]
macro_rules! kinds {
    ($(#[$meta:meta])* $enum:ident: $trait:ident { $($(#[$doc:meta])* $variant:ident($keys:ty) = $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize)]
        #[serde(tag = "kind")]
        pub enum $enum {
            $($(#[$doc])* #[serde(rename = $name)] $variant($keys),)*
        }

        impl $enum {
            /// What the kind does.
            fn get(&self) -> &dyn $trait {
                match self {
                    $(Self::$variant(own) => own,)*
                }
            }
        }

        impl $crate::kinds::Kinds for $enum {
            const NAMES: &'static [&'static str] = &[$($name,)*];

            fn keys(name: &str) -> Option<Vec<String>> {
                match name {
                    $($name => Some($crate::kinds::keys_of::<$keys>()),)*
                    _ => None,
                }
            }

            fn read(name: &str, table: $crate::kinds::Table) -> Result<Self, String> {
                match name {
                    $($name => $crate::kinds::read_struct(table).map($enum::$variant),)*
                    other => Err(format!("unknown variant `{other}`")),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Round {
        radius: f64,
    }

    impl Default for Round {
        fn default() -> Self {
            Self { radius: 1.0 }
        }
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Square {
        side: f64,
        turned: bool,
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Shared {
        color: String,
    }

    kinds! {
        /// Shapes.
        Shape: Area {
            /// Round.
            Round(Round) = "round",
            /// Square.
            Square(Square) = "square",
        }
    }

    trait Area {
        fn area(&self) -> f64;
    }

    impl Area for Round {
        fn area(&self) -> f64 {
            std::f64::consts::PI * self.radius * self.radius
        }
    }

    impl Area for Square {
        fn area(&self) -> f64 {
            self.side * self.side
        }
    }

    fn read(text: &str) -> Result<(Shared, Shape), String> {
        deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_belong_to_all_or_to_a_kind_and_no_other_is_taken() {
        let (shared, shape) = read(r#"{"kind": "square", "side": 2, "color": "red"}"#).unwrap();
        assert_eq!((shared.color.as_str(), shape.get().area()), ("red", 4.0));
        assert_eq!(shape, Shape::Square(Square { side: 2.0, turned: false }));
        assert_eq!(read(r#"{"kind": "round"}"#).unwrap().1, Shape::Round(Round { radius: 1.0 }));
        let fails = |text: &str, wanted: &str| {
            let message = read(text).unwrap_err();
            assert!(message.contains(wanted), "{message}");
        };
        fails(
            r#"{"kind": "round", "side": 2}"#,
            "unknown field `side` of kind round, expected one of `color`, `radius`",
        );
        fails(r#"{"kind": "oval"}"#, "unknown variant `oval`, expected `round` or `square`");
        fails(r#"{"kind": "round", "radius": "far"}"#, "radius: invalid type: string \"far\"");
        fails("{}", "missing field `kind`");
        assert_eq!(known_keys::<Shared, Shape>("square").unwrap(), ["color", "side", "turned"]);
        assert_eq!(known_keys::<Shared, Shape>("oval"), None);
    }
}
