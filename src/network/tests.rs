//! Swarms in one process, on loopback.
