//! What goes over the wire for `DoGet`: gRPC frames whose pixels are the batch's own memory.
//!
//! The generated code of gRPC would copy each message twice on its way to the socket. Here a message is a short head, the
//! pixels as they lie in the slab, and a short tail.

use std::task::{Context, Poll};

use arrow_flight::Ticket as FlightTicket;
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as HttpService;
use tonic::server::NamedService;

use super::server::{Flight, MAX_REQUEST_BYTES};

/// Bytes before each message: whether it is compressed, and its length.
pub(super) const FRAME_HEAD: usize = 5;

/// The method that is answered here.
pub(super) const DO_GET: &str = "/arrow.flight.protocol.FlightService/DoGet";

/// Answers `DoGet` by itself and leaves all else to the generated code.
#[derive(Clone)]
pub(super) struct Face<S> {
    pub flight: Flight,
    pub rest: S,
}

impl<S: NamedService> NamedService for Face<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> HttpService<Request<Body>> for Face<S>
where
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
        if request.uri().path() != DO_GET {
            return self.rest.call(request).boxed();
        }
        let flight = self.flight.clone();
        async move { Ok(do_get(&flight, request).await.unwrap_or_else(Status::into_http)) }.boxed()
    }
}

async fn do_get(flight: &Flight, request: Request<Body>) -> Result<Response<Body>, Status> {
    let body = Limited::new(request.into_body(), MAX_REQUEST_BYTES + FRAME_HEAD).collect().await;
    let too_long = |_| Status::out_of_range(format!("ticket length too large: more than {MAX_REQUEST_BYTES} bytes"));
    let body = body.map_err(too_long)?.to_bytes();
    let malformed = || Status::invalid_argument("one uncompressed message with a ticket is wanted");
    let (head, message) = body.split_at_checked(FRAME_HEAD).ok_or_else(malformed)?;
    if head[0] != 0 || head[1..] != (message.len() as u32).to_be_bytes() {
        return Err(malformed());
    }
    let ticket = FlightTicket::decode(message).map_err(|_| malformed())?;
    let frames = flight.open(&ticket.ticket)?.map(Ok::<_, Status>);
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// The frames of a stream of messages: their pieces one after the other, and at the end how it ended.
pub(super) fn frames(
    messages: impl Stream<Item = Result<Vec<Bytes>, Status>> + Send + 'static,
) -> impl Stream<Item = Frame<Bytes>> + Send + 'static {
    let end = |status: Status| {
        let mut trailers = HeaderMap::new();
        // What does not fit into a header is left out of the message.
        if status.add_header(&mut trailers).is_err() {
            let _ = Status::new(status.code(), "").add_header(&mut trailers);
        }
        Frame::trailers(trailers)
    };
    let done = futures::stream::once(std::future::ready(Err(Status::ok(""))));
    messages
        .chain(done)
        .scan(false, |ended, message| {
            // An error is the last thing that is said.
            let message = (!*ended).then_some(message);
            *ended |= matches!(message, Some(Err(_)));
            std::future::ready(message)
        })
        .flat_map(move |message| {
            let pieces = match message {
                Ok(pieces) => pieces.into_iter().map(Frame::data).collect(),
                Err(status) => vec![end(status)],
            };
            futures::stream::iter(pieces)
        })
}

/// The head of a `FlightData` message with a body of `body` bytes: all that comes before the body's bytes.
pub(super) fn head(data_header: &[u8], app_metadata: &[u8], body: usize) -> Bytes {
    use prost::encoding::{WireType, encode_key, encode_varint};
    let mut fields = BytesMut::with_capacity(data_header.len() + app_metadata.len() + 32);
    for (number, bytes) in [(2, data_header), (3, app_metadata)] {
        encode_key(number, WireType::LengthDelimited, &mut fields);
        encode_varint(bytes.len() as u64, &mut fields);
        fields.put_slice(bytes);
    }
    encode_key(1000, WireType::LengthDelimited, &mut fields);
    encode_varint(body as u64, &mut fields);
    let mut head = BytesMut::with_capacity(FRAME_HEAD + fields.len());
    head.put_u8(0);
    head.put_u32((fields.len() + body) as u32);
    head.put(fields);
    head.freeze()
}

/// A message as one piece.
pub(super) fn whole(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(FRAME_HEAD + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).expect("there is room");
    bytes.freeze()
}
