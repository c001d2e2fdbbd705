//! Journeys through the program as a user makes them: the real binary, real files, no network but loopback.

mod asked;
mod dashboards;
mod data;
mod dependencies;
mod doors;
mod errors;
#[cfg(feature = "trainer")]
mod kept;
mod layers;
#[cfg(feature = "trainer")]
mod pages;
#[cfg(feature = "trainer")]
mod prometheus;
mod own_images;
#[cfg(feature = "trainer")]
mod ranks;
mod service;
mod service_faults;
mod service_soak;
#[cfg(feature = "trainer")]
mod service_training;
mod sources;
#[cfg(feature = "trainer")]
mod stall;
#[cfg(feature = "trainer")]
mod evaluating;
#[cfg(feature = "trainer")]
mod training;
#[cfg(feature = "trainer")]
mod trackers;
mod values;
#[cfg(feature = "trainer")]
mod weights;
mod words;
mod world;
