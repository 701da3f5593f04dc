//! `spsctl`: the operator's command line for the firmware slots, a thin client of `org.spsagent.Slots1`.
//!
//! It starts no process and writes no file. What is shown is made by pure functions ([`render`], [`report`],
//! [`progress`]) from plain values ([`model`]); [`client`] is all that talks to the bus.

pub mod cli;
pub mod client;
pub mod commands;
pub mod doctor;
pub mod download;
pub mod error;
pub mod follow;
pub mod install;
pub mod model;
pub mod output;
pub mod progress;
pub mod render;
pub mod report;
