//! What a client asks for: which batches of which plan, and which of their lanes.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use simclr_ground::error::InvalidValue;
use simclr_ground::position::Share;
use simclr_plan::Plan;

/// A request for batches `first_batch`, `first_batch + stride`, …; as JSON it is a Flight ticket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// The digest of the plan whose batches are meant.
    pub plan_digest: String,
    /// The first global batch.
    pub first_batch: u64,
    /// From one batch to the next.
    #[serde(default = "one")]
    pub stride: u64,
    /// How many batches; without it, as long as they are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Which share of the lanes, from 0.
    #[serde(default)]
    pub rank: u32,
    /// Out of how many shares; they divide the lanes.
    #[serde(default = "one")]
    pub world: u32,
    /// What the client's plan is made of, as [`Plan::content`] gives it: lets a refusal say what differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Value>,
}

fn one<T: From<u8>>() -> T {
    1.into()
}

/// Why a ticket is refused.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// It is no ticket.
    #[error("invalid ticket: {0} (expected JSON like {{\"plan_digest\": \"…\", \"first_batch\": 0, \"count\": 10}})")]
    Malformed(String),
    /// It is for another plan.
    #[error("the ticket asks for plan {asked}, but this service serves plan {served}: {}", difference(differences))]
    Plan {
        /// The ticket's plan.
        asked: String,
        /// The service's plan.
        served: String,
        /// What they differ in, as far as it is known.
        differences: Vec<String>,
    },
    /// Its share of the lanes is none.
    #[error(transparent)]
    Share(#[from] InvalidValue),
}

/// Differences that a refusal lists; all of them may be more than an answer's header holds.
const LISTED: usize = 8;

fn difference(differences: &[String]) -> String {
    let more = differences.len().saturating_sub(LISTED);
    let mut text = differences[..differences.len() - more].join("; ");
    match (differences.len(), more) {
        (0, _) => text.push_str("the ticket does not contain its plan's configuration"),
        (_, 0) => {}
        _ => text += &format!("; and {more} more"),
    }
    text
}

impl Ticket {
    /// A ticket for these batches of this plan.
    pub fn new(plan: &Plan, share: Share, first_batch: u64, count: Option<u64>) -> Self {
        let Share { rank, world } = share;
        let (plan_digest, plan) = (plan.digest.clone(), Some(plan.content()));
        Self { plan_digest, first_batch, stride: 1, count, rank, world, plan }
    }

    /// The ticket in these bytes, if it is one and this plan can serve it.
    ///
    /// # Errors
    /// If it is malformed, for another plan, or for a share that is none.
    pub fn read(bytes: &[u8], plan: &Plan) -> Result<Self, TicketError> {
        let ticket: Self = serde_json::from_slice(bytes).map_err(|error| TicketError::Malformed(error.to_string()))?;
        if ticket.plan_digest != plan.digest {
            let mut differences = Vec::new();
            if let Some(asked) = &ticket.plan {
                compare("", asked, &plan.content(), &mut differences);
            }
            let (asked, served) = (ticket.plan_digest, plan.digest.clone());
            return Err(TicketError::Plan { asked, served, differences });
        }
        if ticket.stride == 0 {
            return Err(TicketError::Malformed("invalid value 0 for stride: expected at least 1".into()));
        }
        plan.check_share(ticket.share())?;
        Ok(ticket)
    }

    /// The share of the lanes that is asked for.
    pub fn share(&self) -> Share {
        Share { rank: self.rank, world: self.world }
    }

    /// The batches that are asked for, in order.
    pub fn batches(&self) -> impl Iterator<Item = u64> + Send + use<> {
        let stride = self.stride;
        let all = std::iter::successors(Some(self.first_batch), move |batch| batch.checked_add(stride));
        all.take(self.count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX)))
    }
}

/// Lists where two plans' contents differ.
fn compare(path: &str, asked: &Value, served: &Value, found: &mut Vec<String>) {
    match (asked, served) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}.{i}"), a, b, found);
            }
        }
        _ if asked != served => found.push(format!("{path} is {asked} in the ticket, {served} here")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simclr_image::augment::RecipeConfig;
    use simclr_plan::{SampleCounts, StreamConfig};

    #[test]
    fn a_ticket_is_for_one_plan_and_says_which_batches() {
        let config = StreamConfig::shuffled(1, 12, 4, RecipeConfig::simclr(24));
        let plan = Plan::new(&SampleCounts(vec![20; 3]), config).unwrap();
        let share = Share { rank: 1, world: 2 };
        let ticket = Ticket { stride: 3, ..Ticket::new(&plan, share, 5, Some(4)) };
        let bytes = serde_json::to_vec(&ticket).unwrap();
        let read = Ticket::read(&bytes, &plan).unwrap();
        assert_eq!((read.share(), read.batches().collect::<Vec<_>>()), (share, vec![5, 8, 11, 14]));
        let endless = Ticket::new(&plan, Share::ALL, u64::MAX - 1, None);
        assert_eq!(endless.batches().collect::<Vec<_>>(), [u64::MAX - 1, u64::MAX]);

        // What a program of another version would ask for, and what another configuration would.
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut content = plan.content();
            change(&mut content);
            let ticket = Ticket { plan_digest: "other".into(), plan: Some(content), ..ticket.clone() };
            Ticket::read(&serde_json::to_vec(&ticket).unwrap(), &plan).unwrap_err().to_string()
        };
        let newer = refused(&|content| content["stream_version"] = 99.into());
        assert!(newer.contains("stream_version is 99 in the ticket") && newer.contains(&plan.digest), "{newer}");
        let other = refused(&|content| {
            content["seed"] = 7.into();
            content["recipe"]["ops"][0]["scale"][0] = 0.5.into();
        });
        assert!(other.contains("recipe.ops.0.scale.0 is 0.5 in the ticket, 0.08 here; seed is 7"), "{other}");
    }
}
