//! How a batch travels: cut into Arrow record batches, a row for each image.
//!
//! Views of one size that follow each other are a column, of the extension type `arrow.fixed_shape_tensor` with the
//! shape `[views, size, size, 3]` u8 in each row: a reader that takes all rows of the column sees
//! `[rows, views, size, size, 3]` without a copy. Two columns more hold labels and sample ids. What else is known of a
//! batch rides as JSON in each message's `app_metadata`. Nothing here knows connections or threads.

use std::ops::Range;

use arrow_flight::{FlightData, SchemaAsIpc};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_ipc::{Buffer, FieldNode, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;
use serde::{Deserialize, Serialize};
use simclr_data::quarantine::QuarantineEntry;
use simclr_ground::batch::{Batch, Slab};
use simclr_ground::position::Position;
use simclr_ground::stall::Waited;
use simclr_plan::{Plan, STREAM_VERSION};

use crate::framing;

/// Buffers of a message begin at multiples of this, as Arrow recommends.
const ALIGNMENT: usize = 64;

/// What a message says beside its rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageInfo {
    /// Where in the stream the batch is.
    #[serde(flatten)]
    pub position: Position,
    /// The message's first row in the share of the batch that was asked for.
    pub offset: usize,
    /// Rows of that share.
    pub images: usize,
    /// Whether this is the share's last message.
    pub last: bool,
    /// Rows of the share whose sample was damaged and is replaced by another; in its last message.
    #[serde(default)]
    pub replaced: Vec<usize>,
    /// The damaged samples that were replaced; in its last message.
    #[serde(default)]
    pub damaged: Vec<QuarantineEntry>,
    /// How long the stream waited for this share of the batch to be made, and for what; in its last message.
    #[serde(default)]
    pub waited: Waited,
}

/// What describes the stream to those who read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// The stream's name: see [`Plan::digest`].
    pub plan_digest: String,
    /// The manifest's digest.
    pub manifest_digest: String,
    /// The digest of how the data set is stored; where a flight is described.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived_digest: Option<String>,
    /// The version of what turns a plan into bytes.
    pub stream_version: u32,
    /// Images in a global batch.
    pub batch_size: u32,
    /// Batches in an epoch.
    pub batches_per_epoch: u64,
    /// Lanes: shares of a batch are whole lanes.
    pub lanes: u32,
    /// Columns of views: name, and shape of a row.
    pub columns: Vec<(String, [usize; 4])>,
}

impl StreamInfo {
    /// The description of this plan's stream.
    pub fn new(plan: &Plan) -> Self {
        Self {
            plan_digest: plan.digest.clone(),
            manifest_digest: plan.manifest_digest.clone(),
            derived_digest: None,
            stream_version: STREAM_VERSION,
            batch_size: plan.config.batch.size,
            batches_per_epoch: plan.batches_per_epoch(),
            lanes: plan.lanes(),
            columns: groups(plan).into_iter().map(|group| (group.name, group.shape)).collect(),
        }
    }
}

/// Views of one size that follow each other: a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    name: String,
    views: Range<usize>,
    shape: [usize; 4],
}

impl Group {
    fn row_bytes(&self) -> usize {
        self.shape.iter().product()
    }

    /// Which row and view holds this byte of the column, where in the view it is, and how many bytes of the view follow,
    /// this one included.
    pub fn place(&self, byte: usize) -> (usize, usize, usize, usize) {
        let (row, in_row) = (byte / self.row_bytes(), byte % self.row_bytes());
        let view_bytes = self.row_bytes() / self.views.len();
        let within = in_row % view_bytes;
        (row, self.views.start + in_row / view_bytes, within, view_bytes - within)
    }
}

/// The columns of views of a plan's batches.
pub(super) fn groups(plan: &Plan) -> Vec<Group> {
    let sizes: Vec<u32> = plan.config.recipe.sizes().collect();
    let mut first = 0;
    let runs: Vec<&[u32]> = sizes.chunk_by(|a, b| a == b).collect();
    let group = |(i, run): (usize, &&[u32])| {
        let views = first..first + run.len();
        first = views.end;
        let side = run[0] as usize;
        let name = if runs.len() == 1 { "views".into() } else { format!("views_{i}") };
        Group { name, views, shape: [run.len(), side, side, 3] }
    };
    runs.iter().enumerate().map(group).collect()
}

/// The rows' schema.
pub fn schema(plan: &Plan) -> Schema {
    let tensor = |group: Group| {
        let item = Field::new("item", DataType::UInt8, true);
        let row = DataType::FixedSizeList(item.into(), group.row_bytes() as i32);
        let shape = serde_json::json!({ "shape": group.shape, "dim_names": ["view", "height", "width", "channel"] });
        let extension = [
            ("ARROW:extension:name".to_owned(), "arrow.fixed_shape_tensor".to_owned()),
            ("ARROW:extension:metadata".to_owned(), shape.to_string()),
        ];
        Field::new(group.name, row, false).with_metadata(extension)
    };
    let mut fields: Vec<Field> = groups(plan).into_iter().map(tensor).collect();
    fields.push(Field::new("label", DataType::Int64, false));
    fields.push(Field::new("sample_id", DataType::UInt64, false));
    let info = serde_json::to_string(&StreamInfo::new(plan)).expect("a description is plain data");
    Schema::new(fields).with_metadata([("simclr".to_owned(), info)])
}

/// The message that opens a stream.
pub(super) fn schema_message(plan: &Plan) -> Bytes {
    let message: FlightData = SchemaAsIpc::new(&schema(plan), &IpcWriteOptions::default()).into();
    framing::whole(&message)
}

/// How many rows a message of about `message_bytes` holds.
pub(super) fn rows_per_message(groups: &[Group], message_bytes: usize) -> usize {
    let row: usize = groups.iter().map(Group::row_bytes).sum();
    (message_bytes / row).max(1)
}

/// The message that holds these rows of a batch, in pieces; `pixels` are all that the batch has, in the order of images.
pub(super) fn message<S: Slab>(
    groups: &[Group],
    batch: &Batch<S>,
    pixels: &Bytes,
    rows: Range<usize>,
    info: &MessageInfo,
) -> Vec<Bytes> {
    let body = Body::new(groups, rows.len());
    let info = serde_json::to_vec(info).expect("what is known of a batch is plain data");
    let mut pieces = vec![framing::head(&body.header(rows.len()), &info, body.bytes)];
    let mut at = 0;
    let mut add = |bytes: Bytes| {
        at += bytes.len();
        pieces.push(bytes);
        let padding = at.next_multiple_of(ALIGNMENT) - at;
        at += padding;
        if padding > 0 {
            pieces.push(Bytes::from_static(&[0; ALIGNMENT]).slice(..padding));
        }
    };
    for group in groups {
        add(pixels.slice(batch.layout.of_images(&group.views, rows.clone())));
    }
    add(batch.labels[rows.clone()].iter().flat_map(|label| label.to_le_bytes()).collect());
    add(batch.sample_ids[rows].iter().flat_map(|id| id.to_le_bytes()).collect());
    assert_eq!(at, body.bytes, "the body is as its header says");
    pieces
}

/// Where a message's buffers lie in its body.
struct Body {
    nodes: Vec<FieldNode>,
    buffers: Vec<Buffer>,
    bytes: usize,
}

impl Body {
    fn new(groups: &[Group], rows: usize) -> Self {
        let (mut nodes, mut buffers, mut at) = (Vec::new(), Vec::new(), 0);
        let mut buffer = |bytes: usize| {
            buffers.push(Buffer::new(at as i64, bytes as i64));
            at = (at + bytes).next_multiple_of(ALIGNMENT);
        };
        // Nothing is null, so validity bitmaps are left out.
        for group in groups {
            let bytes = rows * group.row_bytes();
            nodes.extend([FieldNode::new(rows as i64, 0), FieldNode::new(bytes as i64, 0)]);
            buffer(0);
            buffer(0);
            buffer(bytes);
        }
        for _ in ["label", "sample_id"] {
            nodes.push(FieldNode::new(rows as i64, 0));
            buffer(0);
            buffer(8 * rows);
        }
        Self { nodes, buffers, bytes: at }
    }

    /// The header in Arrow's format.
    fn header(&self, rows: usize) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let (nodes, buffers) = (builder.create_vector(&self.nodes), builder.create_vector(&self.buffers));
        let mut batch = RecordBatchBuilder::new(&mut builder);
        batch.add_length(rows as i64);
        batch.add_nodes(nodes);
        batch.add_buffers(buffers);
        let batch = batch.finish().as_union_value();
        let mut message = MessageBuilder::new(&mut builder);
        message.add_version(MetadataVersion::V5);
        message.add_header_type(MessageHeader::RecordBatch);
        message.add_bodyLength(self.bytes as i64);
        message.add_header(batch);
        let message = message.finish();
        builder.finish(message, None);
        builder.finished_data().to_vec()
    }
}

/// Rows of a batch that arrive: what is said of them, and where they lie in the message's body.
pub(super) struct Rows {
    /// What the message says of them.
    pub info: MessageInfo,
    /// How many.
    pub rows: usize,
    /// Each column of views.
    pub views: Vec<Range<usize>>,
    /// The labels.
    pub labels: Range<usize>,
    /// The sample ids.
    pub ids: Range<usize>,
}

impl Rows {
    /// The rows of a message of a stream with these columns, from Arrow's header, what is known of the batch, and the
    /// body's length; `None` for the message that opens the stream.
    ///
    /// # Errors
    /// If it is none, or its buffers are not where the columns need them.
    pub fn read(groups: &[Group], header: &[u8], info: &[u8], body: usize) -> Result<Option<Self>, String> {
        let message = arrow_ipc::root_as_message(header).map_err(|error| format!("not an Arrow message: {error}"))?;
        if message.header_type() == MessageHeader::Schema {
            return Ok(None);
        }
        let batch = message.header_as_record_batch().ok_or("not a record batch")?;
        if batch.compression().is_some() {
            return Err("compressed buffers".into());
        }
        let info: MessageInfo =
            serde_json::from_slice(info).map_err(|error| format!("invalid app_metadata: {error}"))?;
        let rows = usize::try_from(batch.length()).map_err(|_| "a negative number of rows")?;
        let buffers = batch.buffers().ok_or("no buffers")?;
        let range = |i: usize, row_bytes: usize| {
            let bytes = rows.checked_mul(row_bytes).ok_or("too many rows")?;
            let buffer = (i < buffers.len()).then(|| buffers.get(i)).ok_or("too few buffers")?;
            let from = usize::try_from(buffer.offset()).map_err(|_| "a negative offset")?;
            let to = from.checked_add(bytes).filter(|&to| to <= body && buffer.length() >= bytes as i64);
            Ok::<_, String>(from..to.ok_or("a buffer is truncated")?)
        };
        let pixels = |(i, group): (usize, &Group)| range(3 * i + 2, group.row_bytes());
        let views = groups.iter().enumerate().map(pixels).collect::<Result<_, _>>()?;
        let (labels, ids) = (range(3 * groups.len() + 1, 8)?, range(3 * groups.len() + 3, 8)?);
        Ok(Some(Self { info, rows, views, labels, ids }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_where_its_rows_lie_and_no_other_is_taken() {
        let shape = |views: usize, side| [views, side, side, 3];
        let groups = [
            Group { name: "views_0".into(), views: 0..2, shape: shape(2, 4) },
            Group { name: "views_1".into(), views: 2..3, shape: shape(1, 3) },
        ];
        let position = Position { batch: 7, epoch: 0, batch_in_epoch: 7 };
        let info = MessageInfo {
            position,
            offset: 5,
            images: 8,
            last: true,
            replaced: vec![1],
            damaged: vec![],
            waited: Waited::for_start(0.5),
        };
        let info_bytes = serde_json::to_vec(&info).unwrap();
        let body = Body::new(&groups, 3);
        let header = body.header(3);
        let read = |header: &[u8], body| Rows::read(&groups, header, &info_bytes, body);
        let rows = read(&header, body.bytes).unwrap().unwrap();
        assert_eq!((rows.rows, &rows.info), (3, &info));
        // 3 × 96 bytes, 3 × 27 bytes, 3 × 8 bytes twice, each from a multiple of 64 on.
        assert_eq!((rows.views, rows.labels, rows.ids), (vec![0..288, 320..401], 448..472, 512..536));
        assert_eq!((groups[0].place(96 + 48 + 5), groups[1].place(27)), ((1, 1, 5, 43), (1, 2, 0, 27)));
        assert!(read(&header, body.bytes - 64).is_err(), "the body is too short");
        assert!(Rows::read(&groups, &header, b"{}", body.bytes).is_err());
        let other = Body::new(&groups[..1], 3);
        assert!(read(&other.header(3), other.bytes).is_err(), "another stream's columns");
        // Whatever is done to a header, it is refused or its rows lie in the body.
        for i in 0..header.len() {
            for change in [1u8, 0x80, 0xff] {
                let mut wrong = header.clone();
                wrong[i] ^= change;
                if let Ok(Some(rows)) = read(&wrong, body.bytes) {
                    let all = rows.views.iter().chain([&rows.labels, &rows.ids]);
                    assert!(all.clone().all(|range| range.end <= body.bytes));
                    assert!(all.zip([96, 27, 8, 8]).all(|(range, row)| range.len() == rows.rows * row));
                }
            }
        }
    }
}
