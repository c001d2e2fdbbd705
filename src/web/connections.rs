//! The pages' connections: a bounded number, few of them one peer's, and none that asks for nothing.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use simclr_service::peers::Peers;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at a time. Each is a file descriptor, of which the loader and the data service need theirs.
pub const CONNECTIONS: usize = 128;

/// How long a request's head may take to come, the first one's and each next one's.
const HEAD: Duration = Duration::from_secs(20);

/// How long a connection may last, whatever comes over it; a page that goes on asking opens the next one.
const LONGEST: Duration = Duration::from_secs(300);

/// How long the answer may take that is being given then.
const LAST_ANSWER: Duration = Duration::from_secs(20);

/// Answers connections for as long as it is polled; those beyond the bounds are closed.
pub async fn answer_all(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let peers = Peers::quarters(CONNECTIONS);
    loop {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the peer was gone already; neither ends the pages.
                tracing::warn!("a connection to the page could not be taken: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (Ok(place), Some(held)) = (places.clone().try_acquire_owned(), peers.hold(peer.ip())) else {
            let most = peers.most();
            tracing::warn!(%peer, "the page takes {CONNECTIONS} connections, {most} from one address: one more is closed");
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            answer(tcp, router).await;
            drop((place, held));
        });
    }
}

async fn answer(tcp: TcpStream, router: Router) {
    let _ = tcp.set_nodelay(true);
    let mut http = Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut connection = pin!(http.serve_connection(TokioIo::new(tcp), TowerToHyperService::new(router)));
    // What goes wrong on a connection is between it and its peer.
    if tokio::time::timeout(LONGEST, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
    }
}
