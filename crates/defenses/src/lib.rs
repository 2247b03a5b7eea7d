//! Stochastic pre-processing defenses, one file each
