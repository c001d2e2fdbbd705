//! Logs on stderr: for people a line that reads as a sentence, for machines an object a line. What repeats itself is held
//! back and counted, so that a server that fails a thousand times does not hide the one line that matters.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Debug, Write as _};
use std::io::Write as _;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::terminal::{paragraph, shortened};

/// For whom logs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// People: level, message, fields.
    Human,
    /// Machines: one JSON object a line.
    Json,
}

/// So many lines from one place in the code are shown in [`WINDOW`]; the rest are counted.
const BURST: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);

/// What every line of JSON carries beside its own fields.
static RUN: OnceLock<(String, u32, u32)> = OnceLock::new();

/// Logs from here on: warnings only, nothing but errors when `quiet`, more with each `verbose`.
pub fn start(verbose: u8, quiet: bool, color: bool, format: Format) {
    let _ = (FORMAT.set(format), QUIET.set(quiet));
    if format == Format::Json {
        // What a panic says is a line like any other.
        std::panic::set_hook(Box::new(|panic| tell(Level::ERROR, &panic.to_string())));
    }
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let lines = Lines { color, format, seen: Mutex::default() };
    let registry = tracing_subscriber::registry().with(filter).with(lines);
    #[cfg(feature = "opentelemetry")]
    let registry = registry.with(collector::layer());
    let _ = registry.try_init();
}

static QUIET: OnceLock<bool> = OnceLock::new();

/// How lines are written.
static FORMAT: OnceLock<Format> = OnceLock::new();

/// Writes a line of a program's own on stderr, however little of the log is shown: for people the text as it is, for
/// machines a line of the log.
pub fn tell(level: Level, text: &str) {
    let line = match FORMAT.get() {
        Some(Format::Json) => json_line(level, "simclr_pipeline", Fields { message: text.into(), ..Fields::default() }),
        _ => paragraph(text),
    };
    write(&line);
}

/// Says something to whoever started the program, on stderr; lines after the first are set in.
pub fn say(text: &str) {
    tell(Level::INFO, text);
}

/// Says why the program failed.
pub fn say_error(error: &impl std::fmt::Display, color: bool) {
    let error = shortened(&error.to_string()).into_owned();
    if is_json() {
        return tell(Level::ERROR, &error);
    }
    let (red, plain) = if color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    write(&format!("{red}error:{plain} {}", paragraph(&error)));
}

/// Writes a line at once, so that those of several processes do not mix.
fn write(line: &str) {
    // A reader that has gone away is no failure of ours.
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Whether only results and errors are said.
pub fn is_quiet() -> bool {
    QUIET.get() == Some(&true)
}

/// Whether lines are for machines.
pub fn is_json() -> bool {
    FORMAT.get() == Some(&Format::Json)
}

/// Hands over what is still on its way to a collector; the last thing that a program does.
pub fn finish() {
    #[cfg(feature = "opentelemetry")]
    collector::finish();
}

/// Logs for an OpenTelemetry collector, if `OTEL_EXPORTER_OTLP_ENDPOINT` names one; over HTTP, with the other variables that
/// OpenTelemetry defines. Nothing is held back there: collectors count by themselves.
#[cfg(feature = "opentelemetry")]
mod collector {
    use std::sync::OnceLock;

    use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
    use opentelemetry_otlp::LogExporter;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::logs::SdkLoggerProvider;
    use tracing::{Level, Subscriber};
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::registry::LookupSpan;

    static PROVIDER: OnceLock<SdkLoggerProvider> = OnceLock::new();

    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> Option<impl Layer<S>> {
        std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT")?;
        let exporter = match LogExporter::builder().with_http().build() {
            Ok(exporter) => exporter,
            Err(error) => {
                super::tell(Level::WARN, &format!("warning: cannot send logs to the collector: {error}"));
                return None;
            }
        };
        let resource = Resource::builder().with_service_name("simclr-pipeline").build();
        let provider = SdkLoggerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        let provider = PROVIDER.get_or_init(|| provider);
        // What the way to the collector itself says would go round for ever.
        let ours = filter_fn(|metadata| {
            !["hyper", "reqwest", "opentelemetry", "h2", "tower"].iter().any(|name| metadata.target().starts_with(name))
        });
        Some(OpenTelemetryTracingBridge::new(provider).with_filter(ours))
    }

    pub fn finish() {
        if let Some(provider) = PROVIDER.get()
            && let Err(error) = provider.shutdown()
        {
            super::tell(Level::WARN, &format!("warning: some logs did not reach the collector: {error}"));
        }
    }
}

/// Says which run this process works on, and as which rank of how many, from here on in every line.
pub fn of_run(run: &str, rank: u32, world: u32) {
    let _ = RUN.set((run.to_owned(), rank, world));
}

/// Writes events as lines.
struct Lines {
    color: bool,
    format: Format,
    seen: Mutex<HashMap<Identifier, Seen>>,
}

/// How often a place in the code has spoken since a moment.
struct Seen {
    since: Instant,
    lines: u32,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(held_back) = self.count(event.metadata().callsite(), Instant::now()) else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        if held_back > 0 {
            fields.others.insert("held_back".into(), json!(held_back));
        }
        let metadata = event.metadata();
        let line = match self.format {
            Format::Human => human(*metadata.level(), &fields, self.color),
            Format::Json => json_line(*metadata.level(), metadata.target(), fields),
        };
        // A reader that has gone away is no failure of ours.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

impl Lines {
    /// Whether a line from this place is shown now: then, how many were not since the last one.
    fn count(&self, place: Identifier, now: Instant) -> Option<u32> {
        let mut seen = self.seen.lock().expect("no panic while held");
        let seen = seen.entry(place).or_insert(Seen { since: now, lines: 0 });
        let mut held_back = 0;
        if now - seen.since >= WINDOW {
            held_back = seen.lines.saturating_sub(BURST);
            (seen.since, seen.lines) = (now, 0);
        }
        seen.lines += 1;
        (seen.lines <= BURST).then_some(held_back)
    }
}

/// An event's message and its other fields.
#[derive(Default)]
struct Fields {
    message: String,
    others: BTreeMap<String, Value>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), &value) {
            ("message", Value::String(text)) => self.message.clone_from(text),
            (name, _) => drop(self.others.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, json!(format!("{value:?}")));
    }
}

fn human(level: Level, fields: &Fields, color: bool) -> String {
    let (name, paint) = match level {
        Level::ERROR => ("error", "\x1b[1;31m"),
        Level::WARN => ("warning", "\x1b[1;33m"),
        Level::INFO => ("info", "\x1b[32m"),
        _ => ("debug", "\x1b[2m"),
    };
    let mut line = if color { format!("{paint}{name}:\x1b[0m ") } else { format!("{name}: ") };
    if let Some((_, rank, 2..)) = RUN.get() {
        let _ = write!(line, "[rank {rank}] ");
    }
    let mut text = fields.message.clone();
    for (key, value) in &fields.others {
        let _ = match value {
            Value::String(value) => write!(text, "  {key}={value}"),
            _ => write!(text, "  {key}={value}"),
        };
    }
    line + &paragraph(&text)
}

/// The time as ISO 8601 has it, in UTC.
pub fn time_now() -> String {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}

fn json_line(level: Level, target: &str, fields: Fields) -> String {
    let mut line = Map::new();
    line.insert("time".into(), json!(time_now()));
    line.insert("level".into(), json!(level.as_str().to_lowercase()));
    line.insert("target".into(), json!(target));
    line.insert("message".into(), json!(fields.message));
    if let Some((run, ..)) = RUN.get() {
        line.insert("run".into(), json!(run));
    }
    line.insert("rank".into(), json!(RUN.get().map_or(0, |(_, rank, _)| *rank)));
    line.extend(fields.others);
    Value::Object(line).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_itself_is_held_back_and_counted() {
        let lines = Lines { color: false, format: Format::Human, seen: Mutex::default() };
        let place = || tracing::callsite::Identifier(&PLACE);
        let start = Instant::now();
        let shown = (0..100).filter(|_| lines.count(place(), start).is_some()).count();
        assert_eq!(shown as u32, BURST);
        assert_eq!(lines.count(place(), start + WINDOW), Some(100 - BURST));
        assert_eq!(lines.count(place(), start + WINDOW), Some(0));
    }

    struct Place;
    static PLACE: Place = Place;

    impl tracing::Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("nobody asks")
        }
    }

    #[test]
    fn lines_say_what_happened_with_its_fields() {
        let mut fields = Fields { message: "lost".into(), ..Fields::default() };
        fields.others.insert("node".into(), json!("grpc://a"));
        fields.others.insert("tries".into(), json!(3));
        assert_eq!(human(Level::WARN, &fields, false), "warning: lost  node=grpc://a  tries=3");
        fields.message = "lost a\u{1b}[1A\nerror: forged".into();
        let line = human(Level::WARN, &fields, false);
        assert_eq!(line, "warning: lost a\\u{1b}[1A\n  error: forged  node=grpc://a  tries=3");
        fields.message = "lost".into();
        let line: Value = serde_json::from_str(&json_line(Level::WARN, "pipeline", fields)).unwrap();
        assert_eq!((&line["level"], &line["message"], &line["tries"]), (&json!("warn"), &json!("lost"), &json!(3)));
        assert!(line["time"].as_str().unwrap().ends_with('Z') && line["rank"] == 0, "{line}");
    }
}
