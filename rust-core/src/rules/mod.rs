//! Local recovery: rules over values and notifications.

pub mod budget;
pub mod episode;
mod glob;
pub mod matching;
pub mod task;
