//! Looking into artifacts.
