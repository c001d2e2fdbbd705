//! What the entries of a sample say of its class: a number in a `.cls`, a number or a name in a field of a `.json`.

/// Of an entry with a class so many bytes are read: more than any number has.
pub(super) const MAX_CLASS_BYTES: u64 = 1 << 12;

/// Class indices from here on are refused: tables are as long as the largest one.
pub const MAX_CLASSES: u32 = 1 << 20;

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

/// The class index in a `.cls` entry; -1, as the field has it, is none.
pub(super) fn class_index(data: &[u8]) -> Result<Label, String> {
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
pub(super) fn class_field(data: &[u8], field: &str) -> Result<Label, String> {
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
