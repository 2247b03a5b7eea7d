//! Operations with right and quick gradients on the CPU.
