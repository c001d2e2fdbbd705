//! Connections as the service takes them: a bounded number, none of which may stay silent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::Service;
use crate::metrics::Count;

/// How long a connection may stay open without a word.
const SILENCE: Duration = Duration::from_secs(10);

/// A connection that is counted while it is open.
pub(super) struct Connection {
    tcp: TcpStream,
    /// Until the first byte comes.
    silent: Option<Pin<Box<Sleep>>>,
    /// While the socket is full. A client that is slow stops us by its windows and goes on reading; one that does not
    /// read is gone, and HTTP/2 would wait for ever to tell it so.
    stuck: Option<Pin<Box<Sleep>>>,
    patience: Duration,
    _counted: Count,
}

/// The connections that come in; those beyond the bound are closed.
pub(super) fn incoming(listener: TcpListener, service: Arc<Service>) -> impl Stream<Item = io::Result<Connection>> {
    futures::stream::unfold((listener, service), |(listener, service)| async move {
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
            let _ = tcp.set_nodelay(true);
            let silent = Some(Box::pin(tokio::time::sleep(SILENCE)));
            let patience = Duration::from_secs(service.config.client_timeout_seconds);
            let connection = Connection { tcp, silent, stuck: None, patience, _counted: counted };
            return Some((Ok(connection), (listener, service)));
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.tcp).poll_read(context, buffer);
        if read.is_ready() {
            self.silent = None;
        } else if let Some(silent) = &mut self.silent
            && silent.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl Connection {
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
        let written = Pin::new(&mut self.tcp).poll_write(context, bytes);
        self.written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
