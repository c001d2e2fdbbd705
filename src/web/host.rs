//! By which names the pages may be asked for what is not for everyone.
//!
//! A page from elsewhere, open in a browser, reads what its own name stands for, and whose name it is can make it stand
//! for this machine. So a name must be one that only this machine's owner gives.

use axum::http::HeaderMap;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use simclr_ground::error::{Error, Result};

/// The names that a machine goes by.
pub struct Names(Vec<String>);

impl Names {
    /// This machine's own, and those that `machine.service.names` lists.
    ///
    /// # Errors
    /// If one of them is no name of a machine.
    pub fn new(configured: &[String]) -> Result<Self> {
        for (i, name) in configured.iter().enumerate() {
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if name.is_empty() || !name.chars().all(is_name) {
                return Err(Error::input(format!(
                    "invalid value {name:?} for machine.service.names.{i}: expected a host name without scheme and port, e.g. node7.example.org"
                )));
            }
        }
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let short = own.split('.').next().unwrap_or_default().to_owned();
        let all = configured.iter().cloned().chain(["localhost".to_owned(), own, short]);
        Ok(Self(all.map(|name| plain(&name)).filter(|name| !name.is_empty()).collect()))
    }

    /// Whether a request with these headers names this machine; if not, why.
    ///
    /// # Errors
    /// What was found and what would be right, as a sentence.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), String> {
        let wanted = "expected an IP address, localhost, this machine's own name or one of machine.service.names";
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(format!("the request does not name one host: {wanted}"));
        };
        let found = String::from_utf8_lossy(host.as_bytes());
        let authority = found.parse::<Authority>().ok().filter(|_| !found.contains('@'));
        match authority.is_some_and(|authority| self.is_ours(authority.host())) {
            true => Ok(()),
            false => Err(format!("{found:?} is not a name of this machine: {wanted}")),
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match address {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.parse::<std::net::Ipv4Addr>().is_ok() || self.0.contains(&plain(host)),
        }
    }
}

/// A name as it is compared.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_not_ours() {
        let names = Names::new(&["Node7.example.org".into()]).unwrap();
        let check = |hosts: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, host.parse().unwrap());
            }
            names.check(&headers)
        };
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        for ours in
            ["127.0.0.1", "10.1.2.3:9464", "[::1]:9464", "LocalHost:1", "localhost.", "node7.example.org:80", &own]
        {
            check(&[ours]).unwrap();
        }
        for theirs in [
            "rebind.example",
            "127.0.0.1.rebind.example",
            "localhost.rebind.example:9464",
            "node7.example.org.rebind.example",
            "localhost@rebind.example",
            "rebind.example@localhost",
            "[rebind.example]",
            "",
        ] {
            let why = check(&[theirs]).unwrap_err();
            assert!(why.contains(theirs) && why.contains("machine.service.names"), "{why}");
        }
        assert!(check(&[]).is_err() && check(&["localhost", "rebind.example"]).is_err());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for wrong in ["", "http://node7", "node7:9464", "*.example.org", "a b"] {
            let why = Names::new(&["node7".into(), wrong.into()]).err().unwrap().to_string();
            assert!(why.contains("machine.service.names.1") && why.contains(&format!("{wrong:?}")), "{why}");
        }
    }
}
