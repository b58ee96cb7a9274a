//! Tests of the running meter.
