//! Images that are drawn for people: contact sheets, confusion matrices.

pub mod canvas;
#[cfg(feature = "trainer")]
pub mod confusion;
pub mod contact_sheet;
