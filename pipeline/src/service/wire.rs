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

use crate::augment::view_bytes;
use crate::batch::{Batch, Slab};
use crate::plan::{Plan, Position, STREAM_VERSION};
use crate::quarantine::QuarantineEntry;

/// Buffers of a message begin at multiples of this, as Arrow recommends.
const ALIGNMENT: usize = 64;

/// What a message says beside its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What describes the stream to those who read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// The stream's name: see [`Plan::digest`].
    pub plan_digest: String,
    /// The manifest's digest.
    pub manifest_digest: String,
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
pub(super) fn schema_message(plan: &Plan) -> FlightData {
    SchemaAsIpc::new(&schema(plan), &IpcWriteOptions::default()).into()
}

/// How many rows a message of about `message_bytes` holds.
pub(super) fn rows_per_message(groups: &[Group], message_bytes: usize) -> usize {
    let row: usize = groups.iter().map(Group::row_bytes).sum();
    (message_bytes / row).max(1)
}

/// The message that holds these rows of a batch.
pub(super) fn message<S: Slab>(
    groups: &[Group],
    batch: &Batch<S>,
    rows: Range<usize>,
    info: &MessageInfo,
) -> FlightData {
    let layout = Body::new(groups, rows.len());
    let mut body = Vec::with_capacity(layout.bytes);
    for group in groups {
        pad(&mut body);
        for image in rows.clone() {
            for view in group.views.clone() {
                body.extend_from_slice(batch.view(image, view));
            }
        }
    }
    pad(&mut body);
    batch.labels[rows.clone()].iter().for_each(|label| body.extend_from_slice(&label.to_le_bytes()));
    pad(&mut body);
    batch.sample_ids[rows.clone()].iter().for_each(|id| body.extend_from_slice(&id.to_le_bytes()));
    pad(&mut body);
    assert_eq!(body.len(), layout.bytes, "the body is as its header says");
    let info = serde_json::to_vec(info).expect("what is known of a batch is plain data");
    FlightData::new().with_data_header(layout.header(rows.len())).with_data_body(body).with_app_metadata(info)
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(ALIGNMENT), 0);
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

/// Rows of a batch as they arrived.
pub(super) struct Rows {
    /// What the message says of them.
    pub info: MessageInfo,
    /// How many.
    pub rows: usize,
    body: Bytes,
    views: Vec<Range<usize>>,
    labels: Range<usize>,
    ids: Range<usize>,
}

/// What is wrong with a message.
#[derive(Debug, thiserror::Error)]
#[error("a message that no batch is made of: {0}")]
pub struct BadMessage(String);

impl Rows {
    /// The rows in a message of a stream with these columns; `None` for the one that opens the stream.
    ///
    /// # Errors
    /// If it is none, or its buffers are not where the columns need them.
    pub fn read(groups: &[Group], data: FlightData) -> Result<Option<Self>, BadMessage> {
        let bad = |what: &str| BadMessage(what.to_owned());
        let message = arrow_ipc::root_as_message(&data.data_header).map_err(|error| BadMessage(error.to_string()))?;
        if message.header_type() == MessageHeader::Schema {
            return Ok(None);
        }
        let batch = message.header_as_record_batch().ok_or_else(|| bad("no record batch"))?;
        if batch.compression().is_some() {
            return Err(bad("compressed buffers"));
        }
        let info: MessageInfo = serde_json::from_slice(&data.app_metadata)
            .map_err(|error| BadMessage(format!("its app_metadata: {error}")))?;
        let rows = usize::try_from(batch.length()).map_err(|_| bad("a negative number of rows"))?;
        let buffers = batch.buffers().ok_or_else(|| bad("no buffers"))?;
        let range = |i: usize, bytes: usize| {
            let buffer = (i < buffers.len()).then(|| buffers.get(i)).ok_or_else(|| bad("too few buffers"))?;
            let from = usize::try_from(buffer.offset()).map_err(|_| bad("a negative offset"))?;
            let there = from.checked_add(bytes).is_some_and(|to| to <= data.data_body.len());
            if !there || buffer.length() < bytes as i64 {
                return Err(bad("a buffer that ends too early"));
            }
            Ok(from..from + bytes)
        };
        // A row is never larger than the batch it is a part of, so this can't overflow once it is found small enough.
        if rows > info.images || info.offset.checked_add(rows).is_none_or(|end| end > info.images) {
            return Err(bad("rows beyond the batch's"));
        }
        let pixels = |(i, group): (usize, &Group)| {
            let bytes = rows.checked_mul(group.row_bytes()).ok_or_else(|| bad("more rows than memory"))?;
            range(3 * i + 2, bytes)
        };
        let views = groups.iter().enumerate().map(pixels).collect::<Result<_, _>>()?;
        let labels = range(3 * groups.len() + 1, 8 * rows)?;
        let ids = range(3 * groups.len() + 3, 8 * rows)?;
        Ok(Some(Self { info, rows, views, labels, ids, body: data.data_body }))
    }

    /// Hands out every view: its row, its number, its pixels.
    pub fn for_each_view(&self, groups: &[Group], mut take: impl FnMut(usize, usize, &[u8])) {
        for (group, at) in groups.iter().zip(&self.views) {
            let [_, height, width, _] = group.shape;
            debug_assert_eq!(height, width);
            let bytes = view_bytes(height as u32);
            let mut views = self.body[at.clone()].chunks_exact(bytes);
            for row in 0..self.rows {
                for view in group.views.clone() {
                    take(row, view, views.next().expect("the length was checked"));
                }
            }
        }
    }

    /// The rows' labels.
    pub fn labels(&self) -> impl Iterator<Item = i64> {
        numbers(&self.body[self.labels.clone()]).map(i64::from_le_bytes)
    }

    /// The rows' sample ids.
    pub fn sample_ids(&self) -> impl Iterator<Item = u64> {
        numbers(&self.body[self.ids.clone()]).map(u64::from_le_bytes)
    }

    /// Bytes that came with the message.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = [u8; 8]> {
    bytes.chunks_exact(8).map(|chunk| chunk.try_into().expect("chunks of eight"))
}
