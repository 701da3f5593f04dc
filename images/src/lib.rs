//! Builds and inspects firmware ISOs.

pub mod erofs;
