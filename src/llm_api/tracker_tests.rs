//! Tests of the stream tracker.
