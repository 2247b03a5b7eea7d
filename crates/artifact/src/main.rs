//! Shows an artifact: provenance, columns, first rows; verifies the digests of its inputs.
fn main() {}
