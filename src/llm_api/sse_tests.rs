//! Tests of the event splitter and helpers.
