//! Discovery over real loopback swarms.
