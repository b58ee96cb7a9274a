//! Messages: readers and writers of requests, answers and streams.

pub mod answer;
pub mod request_in;
pub mod request_out;
pub mod stream;
