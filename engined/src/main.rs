//! engined: the engine of Strata.
#![allow(dead_code)]

mod config;
mod containerd;
mod engine;
mod network;
mod store;

fn main() {}
