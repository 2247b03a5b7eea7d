//! Beside timm's networks in PyTorch, with the same weights: `tests/golden.json`, made by `tests/golden.py`.

use game::Classifier as _;
use serde_json::Value;

use super::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden.json")).unwrap()
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn near(what: &str, ours: &[f64], theirs: &[f64], scale: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert!((ours - theirs).abs() < 1e-9 * scale, "{what}, number {index}: {ours} where timm has {theirs}");
    }
}

#[test]
fn logits_and_gradients_are_those_of_timm() {
    let golden = golden();
    for case in golden["cases"].as_array().unwrap() {
        let spec: Spec = serde_json::from_value(case["spec"].clone()).unwrap();
        let (name, net, x) = (&spec.architecture, network(&spec), images(&spec, 2));
        let logits = numbers(&net.logits(&x, &[]).unwrap());
        near(name, &logits, &list(&case["logits"]), 1.0 + logits.iter().fold(0.0, |most: f64, l| most.max(l.abs())));
        let gradient = numbers(&net.input_gradient(&x, &[], &mut upstream).unwrap());
        let norm = case["norm"].as_f64().unwrap();
        let ours = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        near(name, &[ours], &[norm], norm);
        let theirs = list(&case["gradient"]);
        let step = gradient.len() / 24;
        let ours: Vec<f64> = gradient.iter().skip(step / 2).step_by(step).copied().collect();
        near(name, &ours, &theirs, norm);
    }
}

#[test]
fn positions_of_dinov2_are_resampled_as_its_authors_do() {
    let small =
        r#"{"architecture": "dinov2-small-patch14-224", "side": 42, "width": 0.015625, "depth": 0.1, "classes": 2}"#;
    let spec: Spec = serde_json::from_str(small).unwrap();
    let mut found = weights(&spec);
    let c = found["cls_token"].dims()[2];
    // A file of a network for 5 x 5 patches, whose channels are all alike but for the first two.
    let grid = uniform("places", 50);
    let mut values = vec![0.0; 26 * c];
    for place in 0..25 {
        values[(1 + place) * c] = grid[2 * place];
        values[(1 + place) * c + 1] = grid[2 * place + 1];
    }
    values[0] = 7.0;
    found.insert("pos_embed".into(), Tensor::from_vec(values, (1, 26, c), &Device::Cpu).unwrap());
    let prepared = zoo::prepare(&spec, found, "dino.pth".as_ref()).unwrap();
    let places = &prepared["pos_embed"];
    assert_eq!(places.dims(), [1, 10, c]);
    let all = numbers(places);
    assert_eq!(all[0], 7.0, "the class token's own is kept");
    let ours: Vec<f64> = all.chunks(c).skip(1).flat_map(|place| [place[0], place[1]]).collect();
    near("places", &ours, &list(&golden()["places"]), 1.0);
}
