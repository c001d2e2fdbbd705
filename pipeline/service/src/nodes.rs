//! The nodes that may feed a trainer: which of them answer, and which of them makes which lanes.
//!
//! Each node has a keeper that connects to it, asks whether it serves the plan, and after a failure tries again with
//! growing pauses. Who makes what follows from who answers, so nothing is agreed upon with anybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::FlightDescriptor;
use arrow_flight::flight_service_client::FlightServiceClient;
use tokio::sync::watch;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::error::FeedError;
use crate::metrics::FeedMetrics;
use crate::receive::describe;
use crate::wire::StreamInfo;

/// The pause before a lost node is tried again, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// A node and how it is reached.
#[derive(Clone)]
pub(super) struct Node {
    /// As the user wrote it.
    pub url: String,
    /// How to connect.
    pub endpoint: Endpoint,
}

/// A node that answers. After a loss the same node has another number.
#[derive(Clone)]
pub(super) struct Link {
    pub node: usize,
    pub number: u64,
    pub channel: Channel,
}

/// All nodes.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    token: Option<MetadataValue<Ascii>>,
    /// What each is asked at first: the ticket that describes the stream.
    question: Vec<u8>,
    /// The digest of how the data set is stored, as the manifest here has it.
    derived_digest: String,
    /// How long a question may go unanswered.
    timeout: Duration,
    patience: Duration,
    state: watch::Sender<State>,
    metrics: FeedMetrics,
}

struct State {
    nodes: Vec<NodeState>,
    /// Since when no node answers.
    none_since: Option<Instant>,
    links: u64,
}

#[derive(Clone, Default)]
struct NodeState {
    link: Option<Link>,
    /// Whether a batch has come through the link.
    proven: bool,
    /// Why there is no link.
    why: String,
    /// Whether it answers, but will not serve us.
    refuses: bool,
}

impl Nodes {
    /// Starts to look for the nodes.
    pub fn start(
        nodes: Vec<Node>,
        token: Option<MetadataValue<Ascii>>,
        (question, derived_digest): (Vec<u8>, String),
        timeout: Duration,
        patience: Duration,
        metrics: FeedMetrics,
        runtime: &tokio::runtime::Handle,
    ) -> Arc<Self> {
        let state = NodeState { why: "not reached yet".into(), ..NodeState::default() };
        let state = State { nodes: vec![state; nodes.len()], none_since: Some(Instant::now()), links: 0 };
        let state = watch::Sender::new(state);
        let all = Arc::new(Self { nodes, token, question, derived_digest, timeout, patience, state, metrics });
        for node in 0..all.nodes.len() {
            let keeper = NodeMonitor { node, all: Arc::downgrade(&all) };
            runtime.spawn(keeper.run());
        }
        all
    }

    /// The node that shall make share `share` of `world`, now; waits until there is one.
    ///
    /// # Errors
    /// If no node answers for as long as patience lasts, or all refuse.
    pub async fn link(&self, share: u32, world: u32) -> Result<Link, FeedError> {
        let mut changes = self.state.subscribe();
        loop {
            let patience_ends = {
                let state = changes.borrow_and_update();
                if let Some(link) = state.assigned(share, world) {
                    return Ok(link.clone());
                }
                let told = || self.told_of(&state);
                if state.nodes.iter().all(|node| node.refuses) {
                    return Err(FeedError::Refused(told()));
                }
                let ends = state.none_since.unwrap_or_else(Instant::now) + self.patience;
                if ends <= Instant::now() {
                    return Err(FeedError::NoNode { seconds: self.patience.as_secs(), nodes: told() });
                }
                ends
            };
            tokio::select! {
                _ = changes.changed() => {},
                () = tokio::time::sleep_until(patience_ends.into()) => {},
            }
        }
    }

    /// How it stands with each node, for people.
    pub fn told(&self) -> String {
        self.told_of(&self.state.borrow())
    }

    fn told_of(&self, state: &State) -> String {
        let tell = |(node, state): (&Node, &NodeState)| match &state.link {
            Some(_) => format!("{}: answers, and has not sent the batch yet", node.url),
            None => format!("{}: {}", node.url, state.why),
        };
        self.nodes.iter().zip(&state.nodes).map(tell).collect::<Vec<_>>().join("; ")
    }

    /// Says that the link failed.
    pub fn lost(&self, link: &Link, why: &str) {
        self.state.send_if_modified(|state| {
            let node = &mut state.nodes[link.node];
            // Others may have said so before, and the node may be back already.
            if node.link.as_ref().is_none_or(|known| known.number != link.number) {
                return false;
            }
            tracing::warn!(node = self.nodes[link.node].url, "node disconnected: {why}");
            self.metrics.add_lost();
            node.link = None;
            node.why = why.to_owned();
            state.note_none();
            true
        });
    }

    /// Says that a batch came through the link.
    pub fn proven(&self, link: &Link) {
        let known = |state: &State| {
            let node = &state.nodes[link.node];
            node.proven || node.link.as_ref().is_none_or(|known| known.number != link.number)
        };
        if !known(&self.state.borrow()) {
            // Nobody waits for this.
            self.state.send_if_modified(|state| {
                state.nodes[link.node].proven = true;
                false
            });
        }
    }

    /// The token that nodes want to see, as a header.
    pub fn token(&self) -> Option<&MetadataValue<Ascii>> {
        self.token.as_ref()
    }

    /// Connects to a node and asks whether it will serve us; if not, why, and whether it refuses.
    async fn connect(&self, node: usize) -> Result<Channel, (String, bool)> {
        let failed = |error: tonic::transport::Error| (describe(&Status::from_error(error.into())), false);
        let channel = self.nodes[node].endpoint.connect().await.map_err(failed)?;
        let mut question = Request::new(FlightDescriptor::new_cmd(self.question.clone()));
        if let Some(token) = &self.token {
            question.metadata_mut().insert("authorization", token.clone());
        }
        let mut client = FlightServiceClient::new(channel.clone());
        match tokio::time::timeout(self.timeout, client.get_flight_info(question)).await {
            Ok(Ok(flight)) => {
                self.compare_storage(node, &flight.into_inner().app_metadata);
                Ok(channel)
            }
            Ok(Err(status)) => {
                let refuses = matches!(
                    status.code(),
                    Code::FailedPrecondition | Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied
                );
                Err((describe(&status), refuses))
            }
            Err(_) => Err((format!("no response for {} s", self.timeout.as_secs_f64()), false)),
        }
    }

    /// Says so where the node reads the same samples from other files than the manifest here names. That is allowed, since
    /// each sample is checked where it is read; but whoever did not mean it should know.
    fn compare_storage(&self, node: usize, described: &[u8]) {
        let theirs = serde_json::from_slice::<StreamInfo>(described).ok().and_then(|info| info.derived_digest);
        if theirs.is_some_and(|theirs| theirs != self.derived_digest) {
            tracing::warn!(
                node = self.nodes[node].url,
                "the node's manifest says of its shards' files what the one here does not (bytes, frames, row index); \
                 samples are checked against the digest that both have"
            );
        }
    }
}

impl State {
    /// The node that makes a share: shares that follow each other go to the same node, so that it reads whole runs of
    /// shards; a node that is lost leaves its shares to all others.
    fn assigned(&self, share: u32, world: u32) -> Option<&Link> {
        let home = (u64::from(share) * self.nodes.len() as u64 / u64::from(world)) as usize;
        if let Some(link) = &self.nodes[home].link {
            return Some(link);
        }
        let links: Vec<&Link> = self.nodes.iter().filter_map(|node| node.link.as_ref()).collect();
        (!links.is_empty()).then(|| links[share as usize % links.len()])
    }

    fn note_none(&mut self) {
        let none = self.nodes.iter().all(|node| node.link.is_none());
        self.none_since = none.then(|| self.none_since.unwrap_or_else(Instant::now));
    }
}

/// Keeps the link to one node, for as long as somebody wants the nodes.
struct NodeMonitor {
    node: usize,
    all: std::sync::Weak<Nodes>,
}

impl NodeMonitor {
    async fn run(self) {
        let [first_pause, longest_pause] = PAUSES;
        let mut pause = first_pause;
        loop {
            let Some(all) = self.all.upgrade() else { return };
            let connected = all.connect(self.node).await;
            let mut changes = all.state.subscribe();
            all.state.send_modify(|state| {
                state.links += 1;
                let number = state.links;
                let node = &mut state.nodes[self.node];
                match connected {
                    Ok(channel) => {
                        tracing::info!(node = all.nodes[self.node].url, "node connected");
                        let link = Some(Link { node: self.node, number, channel });
                        *node = NodeState { link, proven: false, why: String::new(), refuses: false };
                    }
                    Err((why, refuses)) => {
                        if node.why != why {
                            tracing::warn!(node = all.nodes[self.node].url, "node refused the stream: {why}");
                        }
                        (node.why, node.refuses) = (why, refuses);
                    }
                }
                state.note_none();
                all.metrics.set_nodes(state.nodes.iter().filter(|node| node.link.is_some()).count());
            });
            // Only weakly held while waiting, so that the keepers end with the nodes.
            drop(all);
            let lost = |state: &State| state.nodes[self.node].link.is_none();
            let Ok(proven) = changes.wait_for(lost).await.map(|state| state.nodes[self.node].proven) else { return };
            // A node that answers and then fails again and again is asked less and less often.
            pause = if proven { first_pause } else { (2 * pause).min(longest_pause) };
            tokio::time::sleep(pause).await;
            let Some(all) = self.all.upgrade() else { return };
            all.state.send_if_modified(|state| {
                state.nodes[self.node].proven = false;
                false
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(node: usize) -> Link {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        Link { node, number: 1, channel }
    }

    #[tokio::test]
    async fn runs_of_shares_go_to_a_node_and_a_lost_nodes_to_all_others() {
        let shares = |up: &[bool], world: u32| {
            let node = |(i, &up): (usize, &bool)| NodeState { link: up.then(|| link(i)), ..NodeState::default() };
            let state = State { nodes: up.iter().enumerate().map(node).collect(), none_since: None, links: 0 };
            (0..world).map(|share| state.assigned(share, world).map(|link| link.node)).collect::<Vec<_>>()
        };
        let some = |nodes: &[usize]| nodes.iter().map(|&node| Some(node)).collect::<Vec<_>>();
        assert_eq!(shares(&[true, true], 4), some(&[0, 0, 1, 1]));
        assert_eq!(shares(&[true, true, true], 8), some(&[0, 0, 0, 1, 1, 1, 2, 2]));
        assert_eq!(shares(&[true, false, true], 8), some(&[0, 0, 0, 2, 0, 2, 2, 2]));
        assert_eq!(shares(&[false, true], 2), some(&[1, 1]));
        assert_eq!(shares(&[false, false], 2), [None, None]);
    }
}
