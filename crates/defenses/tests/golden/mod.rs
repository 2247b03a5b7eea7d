//! BaRT from key to pixels, against independent programs (`bart.py`).

use candle_core::{Device, Tensor};
use defenses::Spec;
use game::Key;
use serde::Deserialize;

use crate::values;

#[derive(Deserialize)]
struct Golden {
    shape: [usize; 3],
    pixels: Vec<f64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    spec: Spec,
    seed: u64,
    image: u64,
    draw: u64,
    output: Vec<f64>,
}

#[test]
fn a_key_makes_of_an_image_what_other_programs_make_of_it() {
    let golden: Golden = serde_json::from_str(include_str!("bart.json")).unwrap();
    let [c, h, w] = golden.shape;
    let x = Tensor::from_vec(golden.pixels, (1, c, h, w), &Device::Cpu).unwrap();
    for Case { spec, seed, image, draw, output } in golden.cases {
        let key = Key::root(seed).image(image).at(draw);
        let out = values(&spec.build().apply(&x, &[key]).unwrap());
        assert_eq!(out.len(), output.len());
        let worst = out.iter().zip(&output).map(|(out, known)| (out - known).abs()).fold(0.0, f64::max);
        // Normal noise is drawn in single precision.
        assert!(worst < 1e-7, "{spec:?} differs by {worst:e}");
    }
}
