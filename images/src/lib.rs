//! Builds and inspects firmware ISOs.
