//! The rest of the HTTP surface; see below.
