//! Redirects, as far as they may be followed: a server that is asked for a shard names another place for it.
//!
//! What was meant for the first server alone, credentials above all, stays with its origin; signed URLs of a delivery
//! network need none. A server out in the world does not get to choose what is asked for inside a private network.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    ACCEPT, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LOCATION, RANGE, USER_AGENT,
};
use http::{HeaderName, Method};
use object_store::ClientConfigKey;
use object_store::client::{
    ClientOptions, HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Redirects in a row.
const MOST: usize = 10;

/// What any server may be told.
const HARMLESS: [HeaderName; 7] =
    [ACCEPT, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, RANGE, USER_AGENT];

/// Why a redirect is not followed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

/// A client that follows redirects where it may.
#[derive(Debug)]
pub(super) struct Following {
    /// Goes where the user sends it.
    own: HttpClient,
    /// Goes where a stranger sends it: to no private address.
    outward: HttpClient,
    is_private: IsPrivate,
}

type IsPrivate = fn(IpAddr) -> bool;

impl Following {
    /// A client with these options.
    pub fn connect(options: &ClientOptions) -> object_store::Result<Self> {
        Self::with(options, is_private)
    }

    fn with(options: &ClientOptions, is_private: IsPrivate) -> object_store::Result<Self> {
        let client = |refused: Option<IsPrivate>| {
            let built = build(options)?.dns_resolver(Arc::new(Resolver { refused })).build();
            let failed = |error| object_store::Error::Generic { store: "HTTP client", source: Box::new(error) };
            built.map(HttpClient::new).map_err(failed)
        };
        Ok(Self { own: client(None)?, outward: client(Some(is_private))?, is_private })
    }

    /// The answer to a request, from wherever it leads.
    pub async fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let refused = |why: String| HttpError::new(HttpErrorKind::Unknown, Refused(why));
        let method = request.method().clone();
        let mut at = match request.uri().to_string().parse::<Url>() {
            Ok(url) if method == Method::GET || method == Method::HEAD => url,
            _ => return self.own.execute(request).await,
        };
        let mut headers = request.headers().clone();
        let (mut response, mut client) = (self.own.execute(request).await?, &self.own);
        for _ in 0..MOST {
            let Some(location) = target(&response) else { return Ok(response) };
            let next = step(&at, location).map_err(refused)?;
            let (from, to) = (origin(&at), origin(&next));
            if next.origin() != at.origin() {
                for name in headers.keys().cloned().collect::<Vec<_>>() {
                    if !HARMLESS.contains(&name) {
                        headers.remove(name);
                    }
                }
                if self.is_public(&at).await {
                    client = &self.outward;
                }
                let named = match next.host() {
                    Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
                    Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
                    _ => None,
                };
                if std::ptr::eq(client, &self.outward) && named.is_some_and(self.is_private) {
                    return Err(refused(format!("{from} redirects to {to}, a private address: not followed")));
                }
            }
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            *request.method_mut() = method.clone();
            *request.uri_mut() =
                next.as_str().parse().map_err(|_| refused(format!("{from} redirects to what is no URL at {to}")))?;
            *request.headers_mut() = headers.clone();
            response = client.execute(request).await?;
            at = next;
        }
        match target(&response) {
            None => Ok(response),
            Some(_) => Err(refused(format!("{MOST} redirects in a row, the last one of {}", origin(&at)))),
        }
    }

    /// Whether a URL's server is out in the world; so is one whose address is not known here, but to a proxy.
    async fn is_public(&self, url: &Url) -> bool {
        match url.host() {
            Some(Host::Ipv4(address)) => !(self.is_private)(address.into()),
            Some(Host::Ipv6(address)) => !(self.is_private)(address.into()),
            Some(Host::Domain(name)) => match tokio::net::lookup_host((name, 0)).await {
                Ok(mut found) => !found.all(|address| (self.is_private)(address.ip())),
                Err(_) => true,
            },
            None => true,
        }
    }
}

/// Where an answer sends us.
fn target(response: &HttpResponse) -> Option<&str> {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
        .then(|| response.headers().get(LOCATION))
        .flatten()
        .and_then(|location| location.to_str().ok())
}

/// The URL that `location` stands for at `at`, if it is one to go to.
fn step(at: &Url, location: &str) -> Result<Url, String> {
    let from = origin(at);
    let next = at.join(location).ok().filter(|next| matches!(next.scheme(), "http" | "https"));
    let next = next.ok_or_else(|| format!("{from} redirects to what is no http:// or https:// URL: not followed"))?;
    if at.scheme() == "https" && next.scheme() == "http" {
        let to = origin(&next);
        return Err(format!("{from} redirects to {to}, where nothing is encrypted: not followed"));
    }
    Ok(next)
}

/// A URL without its path, which may be signed.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// What `object_store` would build, without its redirects.
fn build(options: &ClientOptions) -> object_store::Result<reqwest::ClientBuilder> {
    use ClientConfigKey as Key;
    let text = |key: Key| options.get_config_value(&key);
    let is_set = |key: Key| text(key).as_deref() == Some("true");
    let time = |key: Key| text(key).as_deref().and_then(duration);
    let wrong = |error: reqwest::Error| object_store::Error::Generic { store: "HTTP client", source: Box::new(error) };
    let agent = text(Key::UserAgent).unwrap_or_else(|| concat!("simclr-pipeline/", env!("CARGO_PKG_VERSION")).into());
    let mut builder = reqwest::ClientBuilder::new()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(agent)
        .https_only(!is_set(Key::AllowHttp))
        .tls_danger_accept_invalid_certs(is_set(Key::AllowInvalidCertificates))
        .http2_keep_alive_while_idle(is_set(Key::Http2KeepAliveWhileIdle))
        .http2_keep_alive_interval(time(Key::Http2KeepAliveInterval));
    if let Some(url) = text(Key::ProxyUrl) {
        let excluded = text(Key::ProxyExcludes).and_then(|text| reqwest::NoProxy::from_string(&text));
        builder = builder.proxy(reqwest::Proxy::all(url).map_err(wrong)?.no_proxy(excluded));
    }
    if let Some(certificate) = text(Key::ProxyCaCertificate) {
        let certificate = reqwest::tls::Certificate::from_pem(certificate.as_bytes()).map_err(wrong)?;
        builder = builder.tls_certs_merge([certificate]);
    }
    if is_set(Key::NoSystemCertificates) {
        builder = builder.tls_certs_only([]);
    }
    if is_set(Key::Http1Only) {
        builder = builder.http1_only();
    }
    if is_set(Key::Http2Only) {
        builder = builder.http2_prior_knowledge();
    }
    for (key, set) in [
        (Key::Timeout, reqwest::ClientBuilder::timeout as fn(_, _) -> _),
        (Key::ConnectTimeout, reqwest::ClientBuilder::connect_timeout),
        (Key::ReadTimeout, reqwest::ClientBuilder::read_timeout),
        (Key::PoolIdleTimeout, reqwest::ClientBuilder::pool_idle_timeout),
        (Key::Http2KeepAliveTimeout, reqwest::ClientBuilder::http2_keep_alive_timeout),
    ] {
        if let Some(time) = time(key) {
            builder = set(builder, time);
        }
    }
    if let Some(most) = text(Key::PoolMaxIdlePerHost).and_then(|text| text.parse().ok()) {
        builder = builder.pool_max_idle_per_host(most);
    }
    if let Some(bytes) = text(Key::Http2MaxFrameSize).and_then(|text| text.parse::<u32>().ok()) {
        builder = builder.http2_max_frame_size(bytes);
    }
    Ok(builder)
}

/// A time as options tell it: `5s`, `1m 30s`, `30 seconds`.
fn duration(text: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (number, more) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let more = more.trim_start();
        let (unit, more) = more.split_at(more.find(|c: char| !c.is_alphabetic()).unwrap_or(more.len()));
        let each = match unit {
            "ns" => Duration::from_nanos(1),
            "us" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" | "second" | "seconds" => Duration::from_secs(1),
            "m" | "minute" | "minutes" => Duration::from_secs(60),
            "h" | "hour" | "hours" => Duration::from_secs(3600),
            "day" | "days" => Duration::from_secs(86_400),
            _ => return None,
        };
        sum += each.checked_mul(number.parse().ok()?)?;
        rest = more.trim_start();
    }
    Some(sum)
}

/// Looks names up, in an order that spreads requests over a server's addresses.
struct Resolver {
    /// Names that stand for any of these are refused. The connection goes to the addresses that were looked at here.
    refused: Option<IsPrivate>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let refused = self.refused;
        let resolved = async move {
            let mut found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if let Some(address) = found.iter().find(|address| refused.is_some_and(|refused| refused(address.ip()))) {
                let (name, address) = (name.as_str(), address.ip());
                let why = format!("a redirect leads to {name}, which is {address}, a private address: not followed");
                return Err(Refused(why).into());
            }
            if !found.is_empty() {
                let first = (super::remote::jitter() * found.len() as f64) as usize;
                found.rotate_left(first);
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        };
        Box::pin(resolved) as Pin<Box<_>>
    }
}

/// Whether an address is of this machine or a private network, rather than of the world.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_multicast()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b))
                || (a, b, c) == (192, 0, 0)
        }
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, high, low] = v6.segments();
            // Addresses that translators make an IPv4 address of.
            let inside =
                |high: u16, low: u16| is_private(IpAddr::from((u32::from(high) << 16 | u32::from(low)).to_be_bytes()));
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || (a, b, c, d, e, f) == (0, 0, 0, 0, 0, 0)
                || ((a, b, c, d, e, f) == (0x64, 0xff9b, 0, 0, 0, 0) && inside(high, low))
                || (a == 0x2002 && inside(b, c))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::Mutex;

    use super::*;

    /// A server that answers each path once told how, and what it was asked.
    struct Server {
        address: SocketAddr,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        fn at(address: &str, answer: impl Fn(&str) -> String + Send + 'static) -> Self {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            let asked = Arc::new(Mutex::new(Vec::new()));
            let notes = asked.clone();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8(head).unwrap().to_lowercase();
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    notes.lock().unwrap().push(head);
                    let _ = stream.write_all(answer(&path).as_bytes());
                }
            });
            Self { address, asked }
        }

        fn here(address: &str) -> Self {
            Self::at(address, |_| "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nbytes".into())
        }

        fn to(address: &str, location: String) -> Self {
            Self::at(address, move |_| {
                format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            })
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    /// Asks a server, for whom 127.0.0.1 is private and the rest of 127.0.0.0/8 the world.
    fn ask(server: &Server) -> Result<u16, String> {
        let options = ClientOptions::new().with_allow_http(true);
        let following =
            Following::with(&options, |address| address.to_canonical() == IpAddr::from([127, 0, 0, 1])).unwrap();
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = format!("http://{}/set/a.tar", server.address).parse().unwrap();
        for (name, value) in [
            ("authorization", "AWS4-HMAC-SHA256 secret"),
            ("x-amz-security-token", "secret"),
            ("x-ms-version", "2026"),
            ("cookie", "secret"),
            ("range", "bytes=0-4"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let told = |error: HttpError| {
            let mut error: &(dyn std::error::Error + 'static) = &error;
            while error.downcast_ref::<Refused>().is_none() {
                error = error.source().expect("it is refused");
            }
            error.to_string()
        };
        runtime.block_on(following.execute(request)).map(|response| response.status().as_u16()).map_err(told)
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        for (from, to) in [("127.0.0.2", "127.0.0.3"), ("127.0.0.1", "127.0.0.3"), ("127.0.0.1", "127.0.0.1")] {
            let end = Server::here(to);
            let server = Server::to(from, format!("http://{}/signed?key=1", end.address));
            assert_eq!(ask(&server), Ok(200));
            assert!(server.asked()[0].contains("authorization: aws4"), "the first server is shown them");
            let asked = &end.asked()[0];
            assert!(asked.starts_with("get /signed?key=1 ") && asked.contains("range: bytes=0-4"), "{asked}");
            assert!(!asked.contains("secret") && !asked.contains("x-ms"), "{asked}");
        }
        // At the same origin they go on being shown.
        let server = Server::at("127.0.0.2", |path| match path {
            "/other" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nbytes".into(),
            _ => "HTTP/1.1 307 X\r\nLocation: /other\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into(),
        });
        assert_eq!(ask(&server), Ok(200));
        assert!(server.asked()[1].contains("authorization: aws4"));
    }

    #[test]
    fn the_world_leads_to_no_private_address() {
        let inside = Server::here("127.0.0.1");
        let port = inside.address.port();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"] {
            let server = Server::to("127.0.0.2", format!("http://{host}:{port}/admin"));
            let why = ask(&server).unwrap_err();
            assert!(why.contains("private address") && !why.contains("admin"), "{host}: {why}");
        }
        // Nor by way of another server of the world.
        let second = Server::to("127.0.0.3", format!("http://localhost:{port}/admin"));
        let first = Server::to("127.0.0.2", format!("http://{}/", second.address));
        assert!(ask(&first).unwrap_err().contains("private address"));
        assert!(inside.asked().is_empty(), "{:?}", inside.asked());
    }

    #[test]
    fn what_is_no_place_for_bytes_is_not_gone_to() {
        for location in ["file:///etc/passwd", "ftp://host/a", "http://"] {
            assert!(ask(&Server::to("127.0.0.2", location.into())).unwrap_err().contains("no http://"), "{location}");
        }
        let secure = Url::parse("https://data.example/set/a.tar").unwrap();
        let why = step(&secure, "http://data.example/a.tar?key=1").unwrap_err();
        assert!(why.contains("nothing is encrypted") && !why.contains("key"), "{why}");
        assert!(step(&secure, "https://cdn.example/a.tar?key=1").is_ok() && step(&secure, "../b.tar").is_ok());
        let round = Server::to("127.0.0.2", "/set/a.tar".into());
        assert!(ask(&round).unwrap_err().contains("10 redirects in a row"));
    }

    #[test]
    fn addresses_are_of_the_world_or_not() {
        let private = |text: &str| is_private(text.parse().unwrap());
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:a00:1::1",
        ] {
            assert!(private(inside), "{inside}");
        }
        for outside in ["1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(!private(outside), "{outside}");
        }
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        let seconds = |text: &str| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(seconds("5s"), Some(5.0));
        assert_eq!(seconds("1m 30s"), Some(90.0));
        assert_eq!(seconds("90 seconds"), Some(90.0));
        assert_eq!(seconds("250ms"), Some(0.25));
        assert_eq!((seconds("soon"), seconds("5")), (None, None));
        let told = ClientOptions::new().with_timeout(Duration::from_millis(61_500));
        assert_eq!(
            told.get_config_value(&ClientConfigKey::Timeout).as_deref().and_then(duration),
            Some(Duration::from_millis(61_500))
        );
    }
}
