//! The service's face: Arrow Flight over gRPC, with TLS and tokens, for a bounded number of connections.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaAsIpc, SchemaResult,
};
use arrow_ipc::writer::IpcWriteOptions;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http_body::Frame;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::connection::{Caller, incoming};
use crate::do_get::{Face, MAX_REQUEST_BYTES, Tickets};
use crate::framing;
use crate::ticket::{Ticket, TicketError};
use crate::wire::{self, StreamInfo};
use crate::{Service, ServiceConfig, ServiceError, stream};

/// Streams that one connection may hold open.
const STREAMS_PER_CONNECTION: u32 = 4096;

/// Lets in who shows a bearer token, or everyone if there is none. Digests are compared, so that the time it takes
/// tells nothing.
#[derive(Clone, Default)]
pub struct TokenAuth(Option<blake3::Hash>);

impl TokenAuth {
    /// Reads the token's file, which `machine.service.token` names; empty: everyone is let in.
    ///
    /// # Errors
    /// If the file can't be read or holds no token.
    pub fn open(config: &ServiceConfig) -> Result<Self, ServiceError> {
        if config.token.as_os_str().is_empty() {
            return Ok(Self(None));
        }
        let token = crate::reach::token("service.token", &config.token)?;
        Ok(Self(Some(blake3::hash(token.as_bytes()))))
    }

    /// Whether a token is required.
    pub fn wants_token(&self) -> bool {
        self.0.is_some()
    }

    /// Whether a request with these headers is let in.
    pub fn lets_in(&self, headers: &http::HeaderMap) -> bool {
        let Some(token) = &self.0 else { return true };
        let shown = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.split_once(' '));
        let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        shown.is_some_and(|(_, shown)| blake3::hash(shown.trim().as_bytes()) == *token)
    }
}

/// What connections must bring.
pub struct ServerSecurity {
    /// The token.
    pub guard: TokenAuth,
    tls: Option<ServerTlsConfig>,
}

impl ServerSecurity {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// If one can't be read, or one is missing.
    pub fn open(config: &ServiceConfig) -> Result<Self, ServiceError> {
        let read = |key, path: &Path| {
            simclr_ground::files::read_named(path).map_err(|source| ServiceError::File {
                key,
                path: path.to_owned(),
                source,
            })
        };
        let missing = |key, wanted: &str| ServiceError::Value { key, found: "\"\"".into(), wanted: wanted.into() };
        let [certificate, key, ca] =
            [&config.certificate, &config.key, &config.client_ca].map(|path| !path.as_os_str().is_empty());
        let tls = match (certificate, key) {
            (true, true) => {
                let identity = Identity::from_pem(
                    read("service.certificate", &config.certificate)?,
                    read("service.key", &config.key)?,
                );
                let tls = ServerTlsConfig::new().identity(identity);
                Some(match ca {
                    true => tls.client_ca_root(Certificate::from_pem(read("service.client_ca", &config.client_ca)?)),
                    false => tls,
                })
            }
            (true, false) => return Err(missing("service.key", "required with service.certificate")),
            (false, true) => return Err(missing("service.certificate", "required with service.key")),
            (false, false) if ca => {
                return Err(missing("service.certificate", "required with service.client_ca"));
            }
            (false, false) => None,
        };
        Ok(Self { guard: TokenAuth::open(config)?, tls })
    }

    /// Whether connections are encrypted.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// Serves until the service is drained and all connections are done, but no longer than `drain_seconds` after that.
///
/// # Errors
/// If the certificates are none.
pub async fn serve(
    service: Arc<Service>,
    listener: tokio::net::TcpListener,
    doors: ServerSecurity,
) -> Result<(), ServiceError> {
    let config = &service.config;
    let timeout = Duration::from_secs(config.client_timeout_seconds);
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(timeout / 2))
        .http2_keepalive_timeout(Some(timeout / 2))
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    if let Some(tls) = doors.tls {
        let why = |error: tonic::transport::Error| {
            let why = std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string);
            ServiceError::Tls { key: "service.certificate", why }
        };
        server = server.tls_config(tls).map_err(why)?;
    }
    let flight = Flight { service: service.clone(), guard: doors.guard };
    let rest = FlightServiceServer::new(flight.clone()).max_decoding_message_size(MAX_REQUEST_BYTES);
    let draining = service.clone();
    let router = server.add_service(Face { flight, rest });
    let serving = router.serve_with_incoming_shutdown(incoming(listener, service.clone()), async move {
        draining.drained().await;
    });
    let patience = async {
        service.drained().await;
        tokio::time::sleep(Duration::from_secs(config.drain_seconds)).await;
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::warn!("the service stopped: {error}");
        },
        () = patience => tracing::warn!("closing streams that are still open"),
    }
    Ok(())
}

/// The Flight methods.
#[derive(Clone)]
pub(super) struct Flight {
    service: Arc<Service>,
    guard: TokenAuth,
}

impl Tickets for Flight {
    fn check_token(&self, headers: &http::HeaderMap) -> Result<(), Status> {
        if self.guard.lets_in(headers) {
            return Ok(());
        }
        self.service.metrics.add_refused("token");
        Err(Status::unauthenticated("missing or wrong bearer token"))
    }

    async fn open(&self, ticket: &[u8]) -> Result<impl Stream<Item = Frame<Bytes>> + Send + 'static, Status> {
        let ticket = self.ticket(ticket)?;
        self.check_ready().await?;
        let messages = stream::open(&self.service, &ticket);
        Ok(framing::frames(messages.inspect_err(|_| self.service.metrics.add_refused("limit"))?))
    }
}

impl Flight {
    /// The ticket in these bytes, if it can be served now.
    fn ticket(&self, bytes: &[u8]) -> Result<Ticket, Status> {
        Ticket::read(bytes, &self.service.maker.source.plan).map_err(|error| {
            let (reason, status): (_, fn(String) -> Status) = match error {
                TicketError::Plan { .. } => ("plan", |text| Status::failed_precondition(text)),
                TicketError::Malformed(_) | TicketError::Share(_) => ("ticket", |text| Status::invalid_argument(text)),
            };
            self.service.metrics.add_refused(reason);
            status(error.to_string())
        })
    }

    async fn check_ready(&self) -> Result<(), Status> {
        self.service.ready_soon().await.map_err(|why| {
            self.service.metrics.add_refused("not_ready");
            Status::unavailable(format!("not ready: {why}"))
        })
    }

    /// The description of the batches that a ticket stands for.
    fn info(&self, ticket: &Ticket, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let plan = &self.service.maker.source.plan;
        let broken = |error: arrow_schema::ArrowError| Status::internal(error.to_string());
        let derived_digest = Some(self.service.maker.source.derived_digest().to_owned());
        let app_metadata = StreamInfo { derived_digest, ..StreamInfo::new(plan) };
        let app_metadata = serde_json::to_vec(&app_metadata).expect("a description is plain data");
        let batches = ticket.count.and_then(|count| i64::try_from(count).ok());
        let times = |each: u64| batches.and_then(|n| n.checked_mul(i64::try_from(each).ok()?)).unwrap_or(-1);
        // The content of the plan is for refusals; those who were told the digest by us need none.
        let short = Ticket { plan: None, ..ticket.clone() };
        let short = serde_json::to_vec(&short).expect("a ticket is plain data");
        Ok(FlightInfo::new()
            .try_with_schema(&wire::schema(plan))
            .map_err(broken)?
            .with_descriptor(descriptor)
            .with_endpoint(FlightEndpoint::new().with_ticket(arrow_flight::Ticket::new(short)))
            .with_total_records(times(u64::from(plan.config.batch.size / ticket.world)))
            .with_total_bytes(times(self.service.maker.share_bytes(ticket.share())))
            .with_ordered(true)
            .with_app_metadata(app_metadata))
    }

    /// The ticket that a descriptor stands for: the first epoch, or what its command says.
    fn described(&self, descriptor: &FlightDescriptor) -> Result<Ticket, Status> {
        let plan = &self.service.maker.source.plan;
        let mut ticket = serde_json::json!({
            "plan_digest": plan.digest, "first_batch": 0, "count": plan.batches_per_epoch(),
        });
        if !descriptor.cmd.is_empty() {
            let malformed = |error: serde_json::Error| {
                self.service.metrics.add_refused("ticket");
                Status::invalid_argument(TicketError::Malformed(error.to_string()).to_string())
            };
            let wanted: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&descriptor.cmd).map_err(malformed)?;
            ticket.as_object_mut().expect("an object").extend(wanted);
        }
        if let Some(name) = descriptor.path.first().filter(|name| **name != plan.digest) {
            return Err(Status::not_found(format!("unknown flight {name:?}; this service has {}", plan.digest)));
        }
        self.ticket(&serde_json::to_vec(&ticket).expect("a ticket is plain data"))
    }
}

type Replies<T> = BoxStream<'static, Result<T, Status>>;

fn replies<T: Send + 'static>(all: Vec<T>) -> Response<Replies<T>> {
    Response::new(futures::stream::iter(all.into_iter().map(Ok)).boxed())
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = Replies<HandshakeResponse>;
    type ListFlightsStream = Replies<FlightInfo>;
    type DoGetStream = Replies<FlightData>;
    type DoPutStream = Replies<PutResult>;
    type DoExchangeStream = Replies<FlightData>;
    type DoActionStream = Replies<arrow_flight::Result>;
    type ListActionsStream = Replies<ActionType>;

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let descriptor = FlightDescriptor::new_path(vec![self.service.maker.source.plan.digest.clone()]);
        let ticket = self.described(&descriptor)?;
        Ok(replies(vec![self.info(&ticket, descriptor)?]))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let descriptor = request.into_inner();
        let ticket = self.described(&descriptor)?;
        self.check_ready().await?;
        Ok(Response::new(self.info(&ticket, descriptor)?))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        self.described(&request.into_inner())?;
        let schema = wire::schema(&self.service.maker.source.plan);
        let schema = SchemaAsIpc::new(&schema, &IpcWriteOptions::default()).try_into();
        schema.map(Response::new).map_err(|error: arrow_schema::ArrowError| Status::internal(error.to_string()))
    }

    async fn do_get(&self, _: Request<arrow_flight::Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        Err(Status::internal("tickets are answered before they get here"))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let nearby = request.extensions().get::<Caller>().is_some_and(Caller::is_nearby);
        let body = match request.into_inner().r#type.as_str() {
            "status" => self.service.status(),
            // With a token nobody gets here who does not show it, on this machine or elsewhere.
            "drain" if self.guard.wants_token() || nearby => {
                self.service.drain();
                self.service.status()
            }
            "drain" => return Err(Status::permission_denied("drain requires a local client or a token")),
            other => return Err(Status::unimplemented(format!("unknown action {other:?}; expected status or drain"))),
        };
        Ok(replies(vec![arrow_flight::Result::new(body.to_string())]))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let action = |name: &str, does: &str| ActionType { r#type: name.to_owned(), description: does.to_owned() };
        Ok(replies(vec![
            action("status", "status as a JSON object"),
            action("drain", "end every stream after its current batch, then shut down the service"),
        ]))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented("handshake is not supported; send the token with every request"))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented("not supported; use GetFlightInfo"))
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        Err(Status::unimplemented("this service is read-only"))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("this service is read-only"))
    }
}
