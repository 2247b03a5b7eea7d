//! Weights: imported, or trained on clean or defended data
