//! L3: who may owe whom how much, and how both books come to the same sum.

pub mod channel;
pub mod window;

pub use channel::Hold;
pub use window::WindowSettings;
