//! Images to a Parquet table: embedded, Parquet, ImageFolder, or the hub.

pub mod embedded;
