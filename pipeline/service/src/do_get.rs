//! Answers `DoGet` by itself, frame by frame, and leaves all else to the generated code.

use std::task::{Context, Poll};

use arrow_flight::Ticket as FlightTicket;
use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as HttpService;
use tonic::server::NamedService;

use crate::connection::Caller;
use crate::framing::{DO_GET, FRAME_HEAD};

/// Requests are tickets and descriptors; a larger one is none.
pub(super) const MAX_REQUEST_BYTES: usize = 256 << 10;

/// Who knows what a ticket stands for.
pub(super) trait Tickets: Clone + Send + Sync + 'static {
    /// Lets in who shows the token.
    fn check_token(&self, headers: &http::HeaderMap) -> Result<(), Status>;

    /// The frames that answer the ticket in these bytes.
    fn open(
        &self,
        ticket: &[u8],
    ) -> impl Future<Output = Result<impl futures::Stream<Item = Frame<Bytes>> + Send + 'static, Status>> + Send;
}

/// Answers `DoGet` by itself and leaves all else to the generated code.
#[derive(Clone)]
pub(super) struct Face<T, S> {
    pub flight: T,
    pub rest: S,
}

impl<T, S: NamedService> NamedService for Face<T, S> {
    const NAME: &'static str = S::NAME;
}

impl<T, S> HttpService<Request<Body>> for Face<T, S>
where
    T: Tickets,
    S: HttpService<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.rest.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if let Err(status) = self.flight.check_token(request.headers()) {
            return std::future::ready(Ok(status.into_http())).boxed();
        }
        if let Some(caller) = request.extensions().get::<Caller>() {
            caller.let_in();
        }
        if request.uri().path() != DO_GET {
            return self.rest.call(request).boxed();
        }
        let flight = self.flight.clone();
        async move { Ok(do_get(&flight, request).await.unwrap_or_else(Status::into_http)) }.boxed()
    }
}

async fn do_get<T: Tickets>(flight: &T, request: Request<Body>) -> Result<Response<Body>, Status> {
    let body = Limited::new(request.into_body(), MAX_REQUEST_BYTES + FRAME_HEAD).collect().await;
    let too_long = |_| Status::out_of_range(format!("ticket length too large: more than {MAX_REQUEST_BYTES} bytes"));
    let body = body.map_err(too_long)?.to_bytes();
    let malformed = || Status::invalid_argument("expected one uncompressed message with a ticket");
    let (head, message) = body.split_at_checked(FRAME_HEAD).ok_or_else(malformed)?;
    if head[0] != 0 || head[1..] != (message.len() as u32).to_be_bytes() {
        return Err(malformed());
    }
    let ticket = FlightTicket::decode(message).map_err(|_| malformed())?;
    let frames = flight.open(&ticket.ticket).await?.map(Ok::<_, Status>);
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    Ok(response)
}
