//! What a named source holds, as the stages understand it (`make check-source`).

pub mod images;
pub mod weights;
