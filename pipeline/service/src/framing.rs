//! gRPC frames, on both sides: what stands before a message, and messages whose pixels are the batch's own memory.
//!
//! The generated code of gRPC would copy each message twice on its way to the socket. Here a message is a short head, the
//! pixels as they lie in the slab, and a short tail.

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::HeaderMap;
use http_body::Frame;
use prost::Message;
use tonic::Status;

/// Bytes before each message: whether it is compressed, and its length.
pub(super) const FRAME_HEAD: usize = 5;

/// The method that is answered here.
pub(super) const DO_GET: &str = "/arrow.flight.protocol.FlightService/DoGet";

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
