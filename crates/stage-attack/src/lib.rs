//! Votes before and after an attack, one row per image
