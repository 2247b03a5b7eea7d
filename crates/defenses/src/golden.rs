//! Values made by independent programs, for unit tests (`tests/golden/transforms.py`).

use std::collections::HashMap;

use serde::Deserialize;

use crate::kernel::Shape;

/// One image, transformed with given parameters, and the gradient of `sum(upstream * output)`.
#[derive(Deserialize)]
pub struct Case {
    name: String,
    channels: usize,
    height: usize,
    width: usize,
    /// What is drawn, by name.
    pub params: HashMap<String, Vec<f64>>,
    pub image: Vec<f64>,
    pub output: Vec<f64>,
    /// Empty where there is no gradient.
    pub upstream: Vec<f64>,
    pub gradient: Vec<f64>,
}

impl Case {
    pub const fn shape(&self) -> Shape {
        Shape { channels: self.channels, height: self.height, width: self.width }
    }
}

/// The cases of one defense; there is at least one.
pub fn cases(name: &str) -> Vec<Case> {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../tests/golden/transforms.json")).unwrap();
    let cases: Vec<Case> = cases.into_iter().filter(|case| case.name == name).collect();
    assert!(!cases.is_empty(), "no golden values of {name}");
    cases
}

/// Asserts that no number differs by more than `tolerance`.
#[track_caller]
pub fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "differs by {worst:e}");
}
