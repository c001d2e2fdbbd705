//! `serve`: the data service on this machine, until it is told to stop.

use std::sync::Arc;

use anyhow::Context;
use pipeline::service::{Service, server};
use serde_json::json;

use super::Voice;
use crate::cli::ServeArgs;
use crate::pages::{self, Pages};
use crate::{Ending, stream};

pub fn run(args: &ServeArgs, voice: Voice) -> anyhow::Result<Ending> {
    let mut config = args.config.load()?;
    let machine = &mut config.machine;
    for (flag, key) in [
        (&args.token, &mut machine.service.token),
        (&args.certificate, &mut machine.service.certificate),
        (&args.key, &mut machine.service.key),
        (&args.client_ca, &mut machine.service.client_ca),
    ] {
        if let Some(flag) = flag {
            key.clone_from(flag);
        }
    }
    let machine = &config.machine;
    let doors = server::Doors::open(&machine.service)?;
    let mut source = stream::open(config.stream(), machine)?;
    // How much damage a run bears is the trainer's to say; the service tells it what it met.
    stream::bear_all(&mut source);
    let runtime = stream::runtime()?;
    let threads = if machine.threads == 0 { stream::cores() } else { machine.threads };
    let listener = pages::listen("--listen", &args.listen)?;
    let address = listener.local_addr()?;
    let guarded = doors.has_tls() && doors.guard.wants_token();
    if !address.ip().is_loopback() && !guarded {
        tracing::warn!("{address} can be reached from other machines; TLS and a token keep strangers out");
    }
    let plan = source.plan.digest.clone();
    let service =
        Service::start(source.clone(), machine.service.clone(), threads, machine.batches_ahead, runtime.handle())?;
    let pages = Pages {
        alive: Arc::new({
            let service = service.clone();
            move || if service.alive() { Ok(()) } else { Err("a worker thread died".into()) }
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
    };
    let metrics = pages::serve("--metrics", &args.metrics, pages, runtime.handle())?;
    runtime.spawn(drain_on_signals(service.clone()));
    let url = format!("{}://{address}", if doors.has_tls() { "grpcs" } else { "grpc" });
    let object = json!({ "listen": url, "metrics": format!("http://{metrics}/metrics"), "plan_digest": plan });
    voice.result(&object, || format!("{url} serves plan {plan}\nhttp://{metrics}/ tells how it goes"));
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("cannot listen")?;
        Ok::<_, anyhow::Error>(server::serve(service, listener, doors).await?)
    });
    // A thread that waits for storage that does not answer must not keep the program from ending.
    runtime.shutdown_background();
    served?;
    Ok(Ending::Done)
}

/// Drains the service at the first SIGTERM or SIGINT, ends the program at the second.
async fn drain_on_signals(service: Arc<Service>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let mut told = false;
    loop {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        if told {
            std::process::exit(130);
        }
        told = true;
        service.drain();
    }
}
