//! Tests of the own token counts.
