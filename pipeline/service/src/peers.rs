//! How much each peer holds of what there is for all, so that no one takes it from the others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

/// What peers hold, each of them no more than a bound.
pub struct Peers {
    most: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// One thing that a peer holds; dropping it gives it back.
pub struct Held {
    peers: Arc<Peers>,
    peer: IpAddr,
}

impl Peers {
    /// A quarter of `all` for each peer, but four at least: nobody needs fewer to get on.
    pub fn quarters(all: usize) -> Arc<Self> {
        Arc::new(Self { most: (all / 4).max(4), held: Mutex::default() })
    }

    /// How many one peer may hold.
    pub fn most(&self) -> usize {
        self.most
    }

    /// One more for this peer, if it may have one.
    pub fn hold(self: &Arc<Self>, peer: IpAddr) -> Option<Held> {
        let peer = one_of_many(peer);
        let mut held = self.held.lock().expect("no panic while held");
        let own = held.entry(peer).or_default();
        if *own >= self.most {
            return None;
        }
        *own += 1;
        Some(Held { peers: self.clone(), peer })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.peers.held.lock().expect("no panic while held");
        if let Some(own) = held.get_mut(&self.peer) {
            *own -= 1;
            // Whoever was here once must not take memory for ever.
            if *own == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

/// What stands for a peer: its IPv4 address, or the network of its IPv6 address, in which it may take any.
fn one_of_many(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (!0 << 64)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_leaves_the_rest_to_others() {
        let peers = Peers::quarters(32);
        let at = |text: &str| text.parse().unwrap();
        let mut held: Vec<Held> = (0..8).map(|_| peers.hold(at("10.0.0.1")).unwrap()).collect();
        assert!(peers.hold(at("10.0.0.1")).is_none() && peers.hold(at("::ffff:10.0.0.1")).is_none());
        assert!(peers.hold(at("10.0.0.2")).is_some());
        held.pop();
        assert!(peers.hold(at("10.0.0.1")).is_some(), "what is given back can be had again");
        // A network of 2^64 addresses is one peer's.
        held = (1..=8).map(|i| peers.hold(at(&format!("2001:db8::{i}"))).unwrap()).collect();
        assert!(peers.hold(at("2001:db8::ffff:9")).is_none() && peers.hold(at("2001:db8:0:1::9")).is_some());
        drop(held);
        assert!(peers.held.lock().unwrap().is_empty(), "who is gone is forgotten");
        assert_eq!(Peers::quarters(1).most(), 4);
    }
}
