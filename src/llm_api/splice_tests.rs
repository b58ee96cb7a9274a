//! Tests of the splices.
