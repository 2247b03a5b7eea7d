//! PTX, interpreted: the text ([`text`]) becomes a list of steps ([`decode`], [`steps`]), which warps run ([`machine`]).

mod decode;
mod machine;
mod steps;
#[cfg(test)]
mod tests;
mod text;

pub use decode::Kernel;
pub use machine::{Grid, MOST_SHARED, launch};
pub use text::Module;
