//! How a share of a batch is received: from the connection's buffers straight to the places where it belongs.
//!
//! The generated code of gRPC would put each message together before it is looked at. Here its head is read, and what
//! follows is copied once, piece by piece as it comes.

use std::ops::Range;
use std::time::Duration;

use arrow_flight::Ticket as FlightTicket;
use bytes::{Buf, Bytes};
use http::Request;
use http_body_util::{BodyExt, Full};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as HttpService;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::framing::{DO_GET, FRAME_HEAD, whole};
use crate::wire::{Group, MessageInfo, Rows};

/// Most bytes of what describes a message: Arrow's header, and what is known of the batch.
const MAX_HEAD_BYTES: u64 = 64 << 20;

/// A stream of messages.
pub(super) struct Incoming {
    body: Body,
    /// What came and was not yet looked at.
    at_hand: Bytes,
    stall: Duration,
}

/// What arrived beside pixels.
pub(super) struct Arrived {
    /// What the message says of its rows.
    pub info: MessageInfo,
    /// How many.
    pub rows: usize,
    /// Their labels.
    pub labels: Vec<i64>,
    /// Their sample ids.
    pub sample_ids: Vec<u64>,
    /// Bytes of the message's body.
    pub bytes: usize,
}

impl Incoming {
    /// Opens a stream: `ticket` is shown, and the token if there is one. Nothing may come for `stall` at most.
    pub async fn open(
        mut channel: Channel,
        token: Option<&MetadataValue<Ascii>>,
        ticket: Vec<u8>,
        stall: Duration,
    ) -> Result<Self, String> {
        let mut request = Request::post(DO_GET)
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers");
        if let Some(token) = token {
            request = request.header(http::header::AUTHORIZATION, token.as_bytes());
        }
        let ticket = Full::new(whole(&FlightTicket::new(ticket)));
        let request = request.body(Body::new(ticket)).expect("the parts are sound");
        let answer = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request).await
        };
        let answer = tokio::time::timeout(stall, answer).await.map_err(|_| silence(stall))?;
        let response = answer.map_err(|error| describe(&Status::from_error(error.into())))?;
        if !response.status().is_success() {
            return Err(format!("HTTP status {}", response.status()));
        }
        match Status::from_header_map(response.headers()) {
            Some(status) => Err(describe(&status)),
            None => Ok(Self { body: response.into_body(), at_hand: Bytes::new(), stall }),
        }
    }

    /// Receives the next message that holds rows. `begins` looks at what is said of them; each piece of a view is
    /// handed to `take` with its row, its view, and where in the view it begins.
    pub async fn message(
        &mut self,
        columns: &[Group],
        mut begins: impl FnMut(&MessageInfo, usize) -> Result<(), String>,
        mut take: impl FnMut(usize, usize, usize, &[u8]),
    ) -> Result<Arrived, String> {
        loop {
            let mut left = self.frame().await?;
            let (mut header, mut info, mut arrived) = (Vec::new(), Vec::new(), None);
            while left > 0 {
                let key = self.varint(&mut left).await?;
                if key & 7 != 2 {
                    return Err("a message with a field of an unknown kind".into());
                }
                let bytes = self.varint(&mut left).await?;
                left = left.checked_sub(bytes).ok_or("a field is longer than its message")?;
                match key >> 3 {
                    1000 => {
                        let rows = Rows::read(columns, &header, &info, bytes as usize)?;
                        let Some(rows) = rows else {
                            self.skip(bytes).await?;
                            continue;
                        };
                        begins(&rows.info, rows.rows)?;
                        arrived = Some(self.rows(columns, rows, bytes as usize, &mut take).await?);
                    }
                    _ if bytes > MAX_HEAD_BYTES => return Err(format!("a head of {bytes} bytes")),
                    2 => header = self.read(bytes).await?,
                    3 => info = self.read(bytes).await?,
                    _ => self.skip(bytes).await?,
                }
            }
            if let Some(arrived) = arrived {
                return Ok(arrived);
            }
        }
    }

    /// Receives a message's body.
    async fn rows(
        &mut self,
        columns: &[Group],
        rows: Rows,
        bytes: usize,
        take: &mut impl FnMut(usize, usize, usize, &[u8]),
    ) -> Result<Arrived, String> {
        let (mut labels, mut ids) = (Vec::with_capacity(8 * rows.rows), Vec::with_capacity(8 * rows.rows));
        let mut at = 0;
        while at < bytes {
            let piece = self.piece(bytes - at).await?;
            let here = at..at + piece.len();
            for (column, lies) in columns.iter().zip(&rows.views) {
                let mut part = overlap(&here, lies);
                while !part.is_empty() {
                    let (row, view, within, room) = column.place(part.start - lies.start);
                    let take_now = room.min(part.len());
                    take(row, view, within, &piece[part.start - at..][..take_now]);
                    part.start += take_now;
                }
            }
            for (lies, numbers) in [(&rows.labels, &mut labels), (&rows.ids, &mut ids)] {
                let part = overlap(&here, lies);
                if !part.is_empty() {
                    numbers.extend_from_slice(&piece[part.start - at..part.end - at]);
                }
            }
            at = here.end;
        }
        let chunks = |bytes: Vec<u8>| bytes.chunks_exact(8).map(|c| c.try_into().expect("eight")).collect::<Vec<_>>();
        Ok(Arrived {
            labels: chunks(labels).into_iter().map(i64::from_le_bytes).collect(),
            sample_ids: chunks(ids).into_iter().map(u64::from_le_bytes).collect(),
            info: rows.info,
            rows: rows.rows,
            bytes,
        })
    }

    /// The length of the next message.
    async fn frame(&mut self) -> Result<u64, String> {
        let head = self.read(FRAME_HEAD as u64).await?;
        if head[0] != 0 {
            return Err("a compressed message".into());
        }
        Ok(u64::from(u32::from_be_bytes(head[1..].try_into().expect("four bytes"))))
    }

    async fn varint(&mut self, left: &mut u64) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            *left = left.checked_sub(1).ok_or("a number that is longer than its message")?;
            let byte = self.piece(1).await?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number without an end".into())
    }

    async fn read(&mut self, bytes: u64) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        while (all.len() as u64) < bytes {
            let piece = self.piece((bytes - all.len() as u64) as usize).await?;
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    async fn skip(&mut self, mut bytes: u64) -> Result<(), String> {
        while bytes > 0 {
            bytes -= self.piece(bytes as usize).await?.len() as u64;
        }
        Ok(())
    }

    /// Some of what comes next: at least one byte, at most `most`.
    async fn piece(&mut self, most: usize) -> Result<Bytes, String> {
        while !self.at_hand.has_remaining() {
            let frame = tokio::time::timeout(self.stall, self.body.frame()).await.map_err(|_| silence(self.stall))?;
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(status)) => return Err(describe(&status)),
                None => return Err("the stream ended early".into()),
            };
            match frame.into_data() {
                Ok(data) => self.at_hand = data,
                Err(frame) => {
                    let status = frame.trailers_ref().and_then(Status::from_header_map);
                    let ended = || "the stream ended early".to_owned();
                    return Err(status.filter(|s| s.code() != tonic::Code::Ok).map_or_else(ended, |s| describe(&s)));
                }
            }
        }
        Ok(self.at_hand.split_to(most.min(self.at_hand.len())))
    }
}

fn overlap(one: &Range<usize>, two: &Range<usize>) -> Range<usize> {
    let from = one.start.max(two.start);
    from..one.end.min(two.end).max(from)
}

fn silence(stall: Duration) -> String {
    format!("no data for {} s", stall.as_secs())
}

/// What a status says, with its causes.
pub(super) fn describe(status: &Status) -> String {
    let cause = std::error::Error::source(status);
    let causes = std::iter::successors(cause, |cause| cause.source()).map(ToString::to_string);
    let mut text = vec![status.message().to_owned()];
    // A cause that is said already adds nothing.
    for cause in causes {
        if !text.iter().any(|said| said.contains(&cause)) {
            text.push(cause);
        }
    }
    text.retain(|part| !part.is_empty());
    if text.is_empty() { format!("{:?}", status.code()) } else { text.join(": ") }
}
