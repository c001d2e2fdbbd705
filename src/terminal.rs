//! Text as terminals may get it.

use std::borrow::Cow;

/// Text as a terminal may get it. Names in it are whatever someone put into a tar, a manifest or an answer: what would
/// move the cursor, change colors, or turn the order in which text reads is shown as an escape. Lines and tabs stay.
pub fn plain(text: &str) -> Cow<'_, str> {
    let may_stay = |c: char| matches!(c, '\n' | '\t') || !steers(c);
    if text.chars().all(may_stay) {
        return text.into();
    }
    let escaped = |c: char| if may_stay(c) { c.to_string() } else { c.escape_default().to_string() };
    text.chars().map(escaped).collect::<String>().into()
}

/// [`plain`] text of which no line but the first begins where ours do, so that a name can't look like a message.
pub fn paragraph(text: &str) -> String {
    let mut lines = text.split('\n');
    let mut set_in = lines.next().unwrap_or_default().to_owned();
    for line in lines {
        set_in.push_str(if line.starts_with("  ") || line.is_empty() { "\n" } else { "\n  " });
        set_in.push_str(line);
    }
    plain(&set_in).into_owned()
}

/// A message without its middle if it is very long: it may quote a line of a file that is no list, however long that is.
pub fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= 2 * SHOWN {
        return text.into();
    }
    let (start, end) = (text.floor_char_boundary(SHOWN), text.ceil_char_boundary(text.len() - SHOWN));
    format!("{} […{} bytes…] {}", &text[..start], end - start, &text[end..]).into()
}

/// So many bytes of a very long message are shown at its start and at its end.
const SHOWN: usize = 2000;

/// [`plain`] text in one line, for a row of a table.
pub fn row(text: &str) -> String {
    plain(&text.replace('\n', "\\n")).into_owned()
}

/// Whether a terminal takes a character for an order rather than for text.
fn steers(c: char) -> bool {
    let turns_the_order =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns_the_order || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_very_long_message_keeps_its_ends() {
        let text = format!("a.csv: line 1: {}: no class", "ü".repeat(1_000_000));
        let short = shortened(&text);
        assert!(short.len() < 4100 && short.starts_with("a.csv: line 1: ü") && short.ends_with("ü: no class"));
        assert_eq!(shortened("a"), "a");
    }

    #[test]
    fn names_cannot_steer_a_terminal_or_forge_a_line() {
        assert!(matches!(plain("façade, 図, 🦀\tand\nmore"), Cow::Borrowed(_)), "text stays as it is");
        assert_eq!(plain("a\u{1b}[2Kb\rc\u{7f}\u{9b}d"), "a\\u{1b}[2Kb\\rc\\u{7f}\\u{9b}d");
        assert_eq!(plain("photo_\u{202e}gpj.exe\u{2066}"), "photo_\\u{202e}gpj.exe\\u{2066}");
        assert_eq!(paragraph("lost: a\nerror: forged\n  set in"), "lost: a\n  error: forged\n  set in");
        assert_eq!(row("a\nall  0123"), "a\\nall  0123");
        for c in (0..=0x9f).chain(0x2000..=0x206f).filter_map(char::from_u32) {
            assert!(row(&c.to_string()).chars().all(|c| c == '\t' || !steers(c)), "{c:?}");
        }
    }
}
