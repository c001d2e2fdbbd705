//! From presets, files and `--set` to one table: what lies over what, and the names of keys that were meant.

use std::path::Path;

use toml::{Table, Value};

use super::{BASE, ConfigError, KeysOf, PRESETS, tables};

/// The table of a preset.
pub(super) fn preset(name: &str) -> Option<Table> {
    let (_, text) = PRESETS.iter().find(|(known, _)| *known == name)?;
    let mut own: Table = text.parse().expect("presets are valid TOML");
    own.remove("schema_version");
    match own.remove("extends") {
        Some(base) => {
            let mut table = preset(base.as_str().expect("presets extend by name")).expect("presets extend presets");
            merge(&mut table, own);
            Some(table)
        }
        None => Some(own),
    }
}

/// The table of a file, over the preset that it extends.
pub(super) fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let place = path.display().to_string();
    let text = simclr_ground::files::read_named_text(path).map_err(|error| {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        let why = format!("config not found: not a file ({error}) and not a preset (available: {})", names.join(", "));
        ConfigError::new(&place, why)
    })?;
    let mut own: Table =
        text.parse().map_err(|error: toml::de::Error| ConfigError::new(&place, error.to_string().trim().to_owned()))?;
    let base = match own.remove("extends") {
        None => BASE.to_owned(),
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(ConfigError::new(place, format!("invalid value {other} for extends: expected a preset name")));
        }
    };
    let mut table = preset(&base)
        .ok_or_else(|| ConfigError::new(&place, format!("invalid value {base:?} for extends: unknown preset")))?;
    let schema = match own.remove("schema_version") {
        None => tables::CONFIG_SCHEMA,
        Some(Value::Integer(version)) if version > 0 => u32::try_from(version).unwrap_or(u32::MAX),
        Some(other) => {
            let wanted = format!(
                "invalid value {other} for schema_version: expected a number from 1 to {}",
                tables::CONFIG_SCHEMA
            );
            return Err(ConfigError::new(place, wanted));
        }
    };
    for (name, keys) in tables::KINDS {
        let kind = own.get(name).and_then(|table| table.get("kind")).and_then(Value::as_str);
        drop_foreign(&mut table, name, keys, kind);
    }
    merge(&mut table, own);
    upgrade(&mut table, schema, &place)?;
    Ok(table)
}

/// Drops the keys of a table that are not of the kind `kind`: what another kind of it left behind.
fn drop_foreign(table: &mut Table, name: &str, keys: KeysOf, kind: Option<&str>) {
    let Some(keys) = kind.and_then(keys) else { return };
    let Some(Value::Table(table)) = table.get_mut(name) else { return };
    table.retain(|key, _| key == "kind" || keys.iter().any(|own| own == key));
}

/// Brings a table that was written in an older form to today's.
pub(super) fn upgrade(table: &mut Table, schema: u32, place: &str) -> Result<(), ConfigError> {
    if schema > tables::CONFIG_SCHEMA {
        let why = format!(
            "schema_version {schema} was written by a newer simclr-pipeline; this one reads up to {}",
            tables::CONFIG_SCHEMA
        );
        return Err(ConfigError::new(place, why));
    }
    if schema < 2 {
        for (name, keys) in tables::KINDS {
            let kind = table.get(name).and_then(|table| table.get("kind")).and_then(Value::as_str).map(str::to_owned);
            drop_foreign(table, name, keys, kind.as_deref());
        }
    }
    Ok(())
}

fn merge(base: &mut Table, own: Table) {
    for (key, value) in own {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(own)) => merge(base, own),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Applies all settings of a command. Where they choose another kind of a table, its other keys are those written here and
/// that kind's defaults.
pub(super) fn set_all(table: &mut Table, settings: &[String]) -> Result<(), ConfigError> {
    for (name, keys) in tables::KINDS {
        let chosen = settings.iter().rev().find_map(|setting| {
            let (path, kind) = setting.split_once('=')?;
            (path.trim() == format!("{name}.kind")).then_some(kind)
        });
        drop_foreign(table, name, keys, chosen.map(|kind| kind.trim().trim_matches('"')));
    }
    settings.iter().try_for_each(|setting| set(table, setting))
}

/// Keys as people write them without their table.
const SHORT: [(&str, &str); 22] = [
    ("arch", "model.encoder"),
    ("batch", "batch.size"),
    ("batch_size", "batch.size"),
    ("data", "data.manifest"),
    ("device", "machine.device"),
    ("encoder", "model.encoder"),
    ("epochs", "schedule.epochs"),
    ("image_size", "recipe.size"),
    ("learning_rate", "optimizer.learning_rate"),
    ("limit", "data.limit"),
    ("lr", "optimizer.learning_rate"),
    ("manifest", "data.manifest"),
    ("num_workers", "machine.threads"),
    ("precision", "machine.precision"),
    ("size", "recipe.size"),
    ("steps", "train.steps"),
    ("temperature", "loss.temperature"),
    ("threads", "machine.threads"),
    ("warmup_epochs", "schedule.warmup_epochs"),
    ("wd", "optimizer.weight_decay"),
    ("weight_decay", "optimizer.weight_decay"),
    ("workers", "machine.threads"),
];

/// The whole of a key that is written without its table.
pub fn full_key(short: &str) -> Option<&'static str> {
    let plain = short.trim().replace('-', "_");
    SHORT.iter().find(|(known, _)| *known == plain).map(|(_, full)| *full)
}

/// Settings with their keys written in full.
pub(super) fn in_full(settings: &[String]) -> Vec<String> {
    let full =
        |setting: &String| setting.split_once('=').and_then(|(key, value)| Some(format!("{}={value}", full_key(key)?)));
    settings.iter().map(|setting| full(setting).unwrap_or_else(|| setting.clone())).collect()
}

/// Applies one `table.key=value`; a number in the path counts into a list.
fn set(table: &mut Table, setting: &str) -> Result<(), ConfigError> {
    let place = format!("--set {setting}");
    let (path, text) = setting.split_once('=').ok_or_else(|| ConfigError::new(&place, "expected TABLE.KEY=VALUE"))?;
    // Anything that is no TOML value is meant as a string, so that paths and names need no quotes.
    let value = format!("x = {text}").parse::<Table>().ok().and_then(|mut parsed| parsed.remove("x"));
    let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
    let keys: Vec<&str> = path.trim().split('.').collect();
    let (last, tables) = keys.split_last().expect("split gives at least one part");
    let known = known_keys(&Value::Table(table.clone()));
    let unknown = |key: &str| ConfigError::new(&place, format!("unknown key {key:?}{}", nearest(path, &known)));
    let table = descend(table, tables).map_err(unknown)?;
    // A whole number where a fraction stands is that fraction.
    let value = match (table.get(*last), value) {
        (Some(Value::Float(_)), Value::Integer(whole)) => Value::Float(whole as f64),
        (_, value) => value,
    };
    table.insert((*last).to_owned(), value);
    Ok(())
}

/// The table that `keys` lead to; a list takes a key and a number. The key that leads nowhere is the error.
fn descend<'a, 'k>(table: &'a mut Table, keys: &[&'k str]) -> Result<&'a mut Table, &'k str> {
    match keys {
        [] => Ok(table),
        [key, rest @ ..] => match (table.get_mut(*key), rest) {
            (Some(Value::Table(next)), _) => descend(next, rest),
            (Some(Value::Array(list)), [number, rest @ ..]) => {
                match number.parse::<usize>().ok().and_then(|i| list.get_mut(i)) {
                    Some(Value::Table(next)) => descend(next, rest),
                    _ => Err(number),
                }
            }
            _ => Err(key),
        },
    }
}

/// All paths of a table.
fn known_keys(value: &Value) -> Vec<String> {
    fn walk(path: &str, value: &Value, keys: &mut Vec<String>) {
        let Value::Table(table) = value else { return keys.push(path.to_owned()) };
        for (key, value) in table {
            walk(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, keys);
        }
    }
    let mut keys = Vec::new();
    walk("", value, &mut keys);
    keys
}

/// That there is no such key, and which may be meant.
pub(super) fn unknown_key(key: &str, all: &Value) -> String {
    format!("unknown key{}", nearest(full_key(key).unwrap_or(key), &known_keys(all)))
}

fn nearest(word: &str, known: &[String]) -> String {
    let likeness = |candidate: &String| strsim::jaro_winkler(word, candidate);
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    best.map_or(String::new(), |best| format!("; did you mean {best}?"))
}

/// Adds the nearest right name to serde's message about an unknown one.
pub(super) fn hint(message: &str) -> String {
    // The first line says it all; toml adds the path, which is said already.
    let message = message.lines().next().unwrap_or_default().trim();
    let names: Vec<String> = message.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    match names.split_first() {
        Some((wrong, known)) if message.starts_with("unknown") && !known.is_empty() => {
            format!("{message}{}", nearest(wrong, known))
        }
        _ => message.to_owned(),
    }
}

/// A warm-up that was meant for more epochs than are asked for becomes a tenth of them, unless it is asked for as well.
pub(super) fn shorten_warmup(table: &mut Table, settings: &[String]) {
    let sets =
        |key: &str| settings.iter().any(|setting| setting.split('=').next().is_some_and(|set| set.trim() == key));
    if !sets("schedule.epochs") || sets("schedule.warmup_epochs") {
        return;
    }
    let Some(Value::Table(schedule)) = table.get_mut("schedule") else { return };
    let number =
        |value: Option<&Value>| value.and_then(|value| value.as_float().or(value.as_integer().map(|n| n as f64)));
    let (epochs, warmup) = (number(schedule.get("epochs")), number(schedule.get("warmup_epochs")));
    if let (Some(epochs), Some(warmup)) = (epochs, warmup)
        && warmup > epochs
    {
        schedule.insert("warmup_epochs".into(), Value::Float(epochs / 10.0));
    }
}
