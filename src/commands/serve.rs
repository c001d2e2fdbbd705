//! `serve`: the data service on this machine, until it is told to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;

use clap::Args;
use serde_json::json;
use simclr_data::source::DamagePolicy;
use simclr_ground::error::Context;
use simclr_ground::error::{Error, Result};
use simclr_service::{Service, server};
use tokio::signal::unix::signal;

use super::Run;
use super::args::ConfigArgs;
use crate::open;
use crate::output::ExitStatus;
use crate::output::Output;
use crate::signals::{listened_to, listens_itself};
use crate::telemetry::logging;
use crate::web::{self, Pages};

/// Serve batches to remote trainers over Arrow Flight (see `train --feed`).
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Listen address (port 0 picks a free port). Enable TLS and a token before exposing it to other hosts.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8815")]
    pub listen: String,
    /// Address for metrics, health probes, status and the dashboard.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    pub metrics: String,
    /// File containing the bearer token required from clients; shorthand for machine.service.token.
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
    /// Server certificate chain (enables TLS); shorthand for machine.service.certificate.
    #[arg(long, value_name = "PEM", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// Private key of the certificate; shorthand for machine.service.key.
    #[arg(long, value_name = "PEM", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// CA bundle used to verify client certificates (enables mutual TLS); shorthand for machine.service.client_ca.
    #[arg(long, value_name = "PEM", requires = "certificate")]
    pub client_ca: Option<PathBuf>,
}

impl Run for ServeArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let mut config = self.config.load()?;
        let machine = &mut config.machine;
        for (flag, key) in [
            (&self.token, &mut machine.service.token),
            (&self.certificate, &mut machine.service.certificate),
            (&self.key, &mut machine.service.key),
            (&self.client_ca, &mut machine.service.client_ca),
        ] {
            if let Some(flag) = flag {
                key.clone_from(flag);
            }
        }
        let manifest = open::fitted(&mut config)?;
        let machine = &config.machine;
        let doors = server::ServerSecurity::open(&machine.service)?;
        // How much damage a run bears is the trainer's to say; the service tells it what it met.
        let source = open::source_over(manifest, config.stream(), machine, DamagePolicy::Any)?;
        let runtime = open::runtime()?;
        let threads = if machine.threads == 0 { open::cores() } else { machine.threads };
        let listener = web::listen("--listen", &self.listen)?;
        let address = listener.local_addr()?;
        let guarded = doors.has_tls() && doors.guard.wants_token();
        if !address.ip().is_loopback() && !guarded {
            tracing::warn!("{address} is reachable from other hosts without TLS and a token");
        }
        let plan = source.plan.digest.clone();
        let service =
            Service::start(source.clone(), machine.service.clone(), threads, machine.batches_ahead, runtime.handle())?;
        let pages = Pages {
            alive: Arc::new({
                let service = service.clone();
                move || if service.alive() { Ok(()) } else { Err("a worker thread panicked".into()) }
            }),
            ready: Arc::new({
                let service = service.clone();
                move || service.ready()
            }),
            status: Arc::new({
                let service = service.clone();
                move || service.status()
            }),
            source: Arc::new({
                let source = source.clone();
                move || Some(source.clone())
            }),
            guard: doors.guard.clone(),
            names: machine.service.names.clone(),
        };
        let metrics = web::serve("--metrics", &self.metrics, pages, runtime.handle())?;
        runtime.spawn(drain_on_signals(service.clone()));
        let url = format!("{}://{address}", if doors.has_tls() { "grpcs" } else { "grpc" });
        let object = json!({ "listen": url, "metrics": format!("http://{metrics}/metrics"), "plan_digest": plan });
        output.result(&object, || format!("serving plan {plan} at {url}\ndashboard: http://{metrics}/"))?;
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).context("cannot listen")?;
            Ok::<_, Error>(server::serve(service, listener, doors).await?)
        });
        served?;
        Ok(ExitStatus::Success)
    }
}

/// Drains the service at the first signal, ends the program at the second.
async fn drain_on_signals(service: Arc<Service>) {
    let mut signals: Vec<_> = listened_to().into_iter().filter_map(|kind| signal(kind).ok()).collect();
    listens_itself();
    let mut told = false;
    loop {
        std::future::poll_fn(|context| {
            // Each is asked, so that each wakes this up.
            let came =
                signals.iter_mut().filter_map(|signal| signal.poll_recv(context).is_ready().then_some(())).count();
            if came > 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if told {
            std::process::exit(130);
        }
        told = true;
        if !logging::is_quiet() {
            let seconds = service.drain_seconds();
            logging::say(&format!(
                "shutting down: open streams have {seconds} s to end, new ones are refused; a second signal ends at once"
            ));
        }
        service.drain();
    }
}
