//! Storage servers on this machine.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A server that lives as long as this.
pub struct Server {
    pub address: SocketAddr,
    _runtime: Option<tokio::runtime::Runtime>,
    child: Option<Child>,
}

impl Server {
    /// Where it is asked.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn listen() -> (std::net::TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    (listener, address)
}

/// An S3-compatible server whose buckets are the folders of `root`; it wants the access key `key` / `secret`.
pub fn s3(root: &Path) -> Server {
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single("key", "secret"));
    let service = builder.build();
    let (runtime, (listener, address)) = (runtime(), listen());
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
        while let Ok((socket, _)) = listener.accept().await {
            let (http, service) = (http.clone(), service.clone());
            tokio::spawn(async move {
                let _ = http.serve_connection(hyper_util::rt::TokioIo::new(socket), service).await;
            });
        }
    });
    Server { address, _runtime: Some(runtime), child: None }
}

/// A web server of the files in `root` that gives ranges.
pub fn web(root: &Path) -> Server {
    let (runtime, (listener, address)) = (runtime(), listen());
    let files = axum::Router::new().fallback_service(tower_http::services::ServeDir::new(root));
    runtime.spawn(async move {
        axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), files).await.unwrap();
    });
    Server { address, _runtime: Some(runtime), child: None }
}

/// A web server of the files in `root` that gives whole files only: Python's own.
pub fn web_without_ranges(root: &Path) -> Server {
    let (listener, address) = listen();
    drop(listener);
    let child = Command::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &address.port().to_string()])
        .current_dir(root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 serves the files");
    for _ in 0..200 {
        if TcpStream::connect(address).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    Server { address, _runtime: None, child: Some(child) }
}

/// What the proxy does with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// Nothing.
    Pass,
    /// Answers this status, asking to come back after so many seconds if it says so.
    Refuse(u16, Option<u64>),
    /// Breaks the connection.
    Reset,
    /// Breaks the connection after this many bytes of the answer's body.
    Truncate(usize),
    /// Changes a byte of the answer's body.
    Flip,
    /// Sends the answer byte by byte, some each second.
    Slow,
}

/// A request as the proxy sees it.
#[derive(Debug, Clone)]
pub struct Request {
    /// How many came before it.
    pub number: u64,
    /// How many of these were for the same object.
    pub attempt: u64,
    /// The name of the object.
    pub object: String,
}

/// A proxy in front of a server, which does as it is told.
pub struct Proxy {
    pub address: SocketAddr,
    /// Bytes of answers' bodies and heads that went through.
    pub bytes: Arc<AtomicU64>,
    /// Every request with what was done to it.
    pub seen: Arc<Mutex<Vec<(Request, Action)>>>,
}

impl Proxy {
    /// A proxy in front of `server`.
    pub fn start(server: &Server, action: impl Fn(&Request) -> Action + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (bytes, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (upstream, action) = (server.address, Arc::new(action));
        let proxy = Self { address, bytes: bytes.clone(), seen: seen.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (action, bytes, seen) = (action.clone(), bytes.clone(), seen.clone());
                std::thread::spawn(move || {
                    let act = |head: &str| {
                        let path = head.split_whitespace().nth(1).unwrap_or_default();
                        let object = path.rsplit('/').next().unwrap_or_default().to_owned();
                        let mut seen = seen.lock().unwrap();
                        let attempt = seen.iter().filter(|(before, _): &&(Request, _)| before.object == object).count();
                        let request = Request { number: seen.len() as u64, attempt: attempt as u64, object };
                        let action = action(&request);
                        seen.push((request, action));
                        action
                    };
                    let _ = relay(client, upstream, act, &bytes);
                });
            }
        });
        proxy
    }

    /// Where it is asked.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Passes one request and its answer.
fn relay(
    mut client: TcpStream,
    upstream: SocketAddr,
    act: impl Fn(&str) -> Action,
    bytes: &AtomicU64,
) -> std::io::Result<()> {
    // The head is only looked at: a connection closed with bytes that nobody has read is reset.
    let mut seen = [0; 1 << 14];
    let length = loop {
        let n = client.peek(&mut seen)?;
        match seen[..n].windows(4).position(|end| end == b"\r\n\r\n") {
            Some(at) => break at + 4,
            None if n == 0 => return Ok(()),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let text = String::from_utf8_lossy(&seen[..length]).into_owned();
    let action = act(&text);
    if action == Action::Reset {
        return Ok(());
    }
    client.read_exact(&mut seen[..length])?;
    if let Action::Refuse(status, retry_after) = action {
        let after = retry_after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
        let body = "<Error><Code>ExpiredToken</Code><Message>refused by the test</Message></Error>";
        let length = body.len();
        return write!(
            client,
            "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{after}Connection: close\r\n\r\n{body}"
        );
    }
    let mut server = TcpStream::connect(upstream)?;
    let request = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    server.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    bytes.fetch_add((answer.len() - body) as u64, Ordering::Relaxed);
    match action {
        Action::Truncate(n) => client.write_all(&answer[..(body + n).min(answer.len().saturating_sub(1))]),
        Action::Flip => {
            if let Some(byte) = answer.get_mut(body + 7) {
                *byte ^= 0x10;
            }
            client.write_all(&answer)
        }
        Action::Slow => {
            for byte in answer {
                client.write_all(&[byte])?;
                std::thread::sleep(Duration::from_millis(40));
            }
            Ok(())
        }
        _ => client.write_all(&answer),
    }
}

/// Copies a set's shards to a folder.
pub fn copy_shards(from: &Path, to: &Path) -> Vec<PathBuf> {
    std::fs::create_dir_all(to).unwrap();
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("shard-") {
            let path = to.join(entry.file_name());
            std::fs::copy(entry.path(), &path).unwrap();
            paths.push(path);
        }
    }
    paths.sort();
    paths
}
