//! Brace ranges, as WebDataset has them: `name-{000000..001281}.tar`, `{a,b}`.

/// A brace range of more shards than this is a slip of the finger.
const MAX_RANGE: u64 = 10_000_000;

/// All names that a pattern with braces stands for, or `None` if its braces make no sense.
pub(super) fn braces(pattern: &str) -> Option<Vec<String>> {
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
}
