//! Connections as the service takes them: a bounded number, of which strangers hold a few for a short time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::Service;
use crate::metrics::Count;
use crate::peers::{Held, Peers};

/// A connection that is counted while it is open.
pub(super) struct Connection {
    tcp: TcpStream,
    caller: Caller,
    /// Until a request is let in. Bytes alone do not count: one now and then would hold a place for ever.
    waiting: Option<Pin<Box<Sleep>>>,
    /// While the socket is full. A client that is slow stops us by its windows and goes on reading; one that does not
    /// read is gone, and HTTP/2 would wait for ever to tell it so.
    stuck: Option<Pin<Box<Sleep>>>,
    patience: Duration,
    _counted: Count,
}

/// Who is at the other end of a connection; each of its requests carries this.
#[derive(Clone)]
pub(super) struct Caller {
    peer: SocketAddr,
    /// Its place among those of whom no request was let in yet.
    stranger: Arc<Mutex<Option<Held>>>,
}

impl Caller {
    /// Whether it is on this machine.
    pub fn is_nearby(&self) -> bool {
        self.peer.ip().to_canonical().is_loopback()
    }

    /// It may stay from here on.
    pub fn let_in(&self) {
        self.stranger.lock().expect("no panic while held").take();
    }

    fn is_stranger(&self) -> bool {
        self.stranger.lock().expect("no panic while held").is_some()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Requests that are still being answered must not keep the place of a stranger who has left.
        self.caller.let_in();
    }
}

/// The connections that come in; those beyond the bounds are closed.
pub(super) fn incoming(listener: TcpListener, service: Arc<Service>) -> impl Stream<Item = io::Result<Connection>> {
    let strangers = Peers::quarters(service.config.connections);
    futures::stream::unfold((listener, service, strangers), |(listener, service, strangers)| async move {
        loop {
            let (tcp, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or the peer was gone already; neither ends the service.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(counted) = service.metrics.count_client(service.config.connections) else {
                service.metrics.add_refused("limit");
                tracing::warn!(%peer, "closing a connection: machine.service.connections exceeded");
                continue;
            };
            let Some(stranger) = strangers.hold(peer.ip()) else {
                service.metrics.add_refused("limit");
                let most = strangers.most();
                tracing::warn!(%peer, "{most} connections from there have not shown yet that they may ask: one more is closed");
                continue;
            };
            let _ = tcp.set_nodelay(true);
            let caller = Caller { peer, stranger: Arc::new(Mutex::new(Some(stranger))) };
            let patience = Duration::from_secs(service.config.client_timeout_seconds);
            let waiting = Some(Box::pin(tokio::time::sleep(patience)));
            let connection = Connection { tcp, caller, waiting, stuck: None, patience, _counted: counted };
            return Some((Ok(connection), (listener, service, strangers)));
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.admitted(context)?;
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl Connection {
    /// An error once a stranger has had the time to become none: to shake hands over TLS and to ask for something with
    /// the token. Looked at before every byte in either direction.
    fn admitted(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(waiting) = &mut self.waiting {
            if !self.caller.is_stranger() {
                self.waiting = None;
            } else if waiting.as_mut().poll(context).is_ready() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// What came of writing, or an error when nothing could be written for too long.
    fn written(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let patience = self.patience;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        stuck.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.admitted(context)?;
        let written = Pin::new(&mut self.tcp).poll_write(context, bytes);
        self.written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.admitted(context)?;
        let written = Pin::new(&mut self.tcp).poll_write_vectored(context, bytes);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
