//! The closed forms of the paper's binary Gaussian example, and a Monte-Carlo overlay
