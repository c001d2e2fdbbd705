//! How much memory there is: the machine's, or what a control group leaves this process of it.

/// All memory, in bytes; `None` where the system does not say.
pub fn total() -> Option<u64> {
    limited("MemTotal:")
}

/// What is free or can be freed, in bytes; `None` where the system does not say.
pub fn available() -> Option<u64> {
    limited("MemAvailable:")
}

/// What the control group of this process may use, in bytes; `None` without a limit.
pub fn group_limit() -> Option<u64> {
    std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()
}

fn limited(key: &str) -> Option<u64> {
    let system = kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, key)?;
    Some(group_limit().map_or(system, |limit| limit.min(system)))
}

/// The value of a line of `/proc/meminfo`, in bytes.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_kilobytes() {
        let text = "MemTotal:       24576000 kB\nMemAvailable:   20480000 kB\n";
        assert_eq!(kilobytes(text, "MemAvailable:"), Some(20_480_000 << 10));
        assert_eq!(kilobytes(text, "SwapFree:"), None);
    }
}
