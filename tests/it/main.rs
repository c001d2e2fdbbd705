//! Journeys through the program as a user makes them: the real binary, real files, no network but loopback.

mod dashboards;
mod data;
mod errors;
mod sources;
#[cfg(feature = "trainer")]
mod training;
mod world;
