//! Weights in files.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use game::Key;
use nets::{
    Graph,
    weights::{Error, initialise, load, metadata, prepare, save},
};

use crate::{difference, spec, trained, vector};

fn small() -> Graph {
    spec(r#"{"name": "cifar-resnet", "depth": 8, "width": 3, "classes": 4}"#).graph().unwrap()
}

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn saving_is_deterministic_and_loading_gives_the_tensors_back() {
    let folder = tempfile::tempdir().unwrap();
    let (path, again) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    let facts: BTreeMap<String, String> = (0..20).map(|i| (format!("key {i}"), format!("\"{i}\""))).collect();
    for dtype in [DType::F32, DType::F64] {
        let weights = trained(&small(), Key::root(1), dtype);
        save(&path, &weights, &facts).unwrap();
        save(&again, &weights, &facts).unwrap();
        assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
        assert_eq!(metadata(&path).unwrap(), facts);
        let loaded = prepare(&small(), load(&path).unwrap(), &path).unwrap();
        assert!(loaded.keys().eq(weights.keys()));
        assert!(loaded.iter().all(|(name, t)| t.dtype() == dtype && vector(t) == vector(&weights[name])));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "drafts are gone");
    let nowhere =
        save(&folder.path().join("no/such/a.safetensors"), &trained(&small(), Key::root(1), DType::F32), &facts);
    assert!(nowhere.unwrap_err().to_string().contains("no/such"));
}

#[test]
fn torch_checkpoints_load_nested_prefixed_and_in_half_precision() {
    let expected = load(&golden("cifar-a.safetensors")).unwrap();
    for (name, tolerance) in [("nested.pth", 1e-7), ("half.pt", 1e-3)] {
        let path = golden(name);
        let weights = prepare(&small(), load(&path).unwrap(), &path).unwrap();
        assert_eq!(weights.len(), small().parameters().len());
        for (tensor, found) in weights {
            assert_eq!(found.dtype(), DType::F32);
            assert!(difference(&expected[&tensor], &found) < tolerance, "{name}: {tensor}");
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let path = Path::new("some/file.safetensors");
    let refuse = |change: &dyn Fn(&mut nets::Weights)| {
        let mut weights = trained(&small(), Key::root(1), DType::F32);
        change(&mut weights);
        let error = prepare(&small(), weights, path).unwrap_err();
        assert!(error.to_string().contains("some/file.safetensors"));
        error
    };
    let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
    let missing = refuse(&|w| drop(w.remove("layer2.0.bn1.bias")));
    assert!(missing.to_string().contains("`layer2.0.bn1.bias` [6] is missing"), "{missing}");
    let misshapen = refuse(&|w| drop(w.insert("linear.bias".into(), tensor(&[0.0; 5]))));
    assert!(misshapen.to_string().contains("`linear.bias` is [5], not [4]"), "{misshapen}");
    let unexpected = refuse(&|w| drop(w.insert("extra.bias".into(), tensor(&[0.0]))));
    assert!(unexpected.to_string().contains("extra.bias") && !unexpected.is_invalid_numbers());
    for (name, value) in [("bn1.bias", f32::NAN), ("bn1.weight", f32::INFINITY), ("bn1.running_var", -1.0)] {
        let invalid = refuse(&|w| drop(w.insert(name.into(), tensor(&[0.0, value, 0.0]))));
        assert!(invalid.is_invalid_numbers() && invalid.to_string().contains(name), "{invalid}");
    }
}

#[test]
fn damaged_files_are_refused_without_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["cifar-a.safetensors", "nested.pth"] {
        let (whole, path) = (fs::read(golden(name)).unwrap(), folder.path().join(name));
        for keep in [0, 5, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..keep]).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains(name), "{error}");
        }
    }
    let text = folder.path().join("weights.txt");
    fs::write(&text, "hello").unwrap();
    assert!(load(&text).unwrap_err().to_string().contains(".safetensors"));
    assert!(matches!(load(&folder.path().join("absent.pth")), Err(Error::File { .. })));
}

#[test]
fn names_of_timm_and_of_data_parallel_are_understood() {
    let graph = spec(r#"{"name": "mobilenet-v2", "width": 0.25, "classes": 10}"#).graph().unwrap();
    let ours = trained(&graph, Key::root(2), DType::F32);
    let firsts = [1, 2, 4, 7, 11, 14, 17, 18];
    let rename = |name: &str| {
        let (layer, part) = name.rsplit_once('.').unwrap();
        let parts: Vec<&str> = layer.split('.').collect();
        let renamed = match &parts[..] {
            ["features", "0", "0"] => "conv_stem".to_owned(),
            ["features", "0", "1"] => "bn1".to_owned(),
            ["features", "18", "0"] => "conv_head".to_owned(),
            ["features", "18", "1"] => "bn2".to_owned(),
            ["classifier", "1"] => "classifier".to_owned(),
            ["features", feature, "conv", place @ ..] => {
                let feature: usize = feature.parse().unwrap();
                let stage = firsts.iter().rposition(|&first| first <= feature).unwrap();
                let layers = if stage == 0 {
                    vec![("0.0", "conv_dw"), ("0.1", "bn1"), ("1", "conv_pw"), ("2", "bn2")]
                } else {
                    vec![
                        ("0.0", "conv_pw"),
                        ("0.1", "bn1"),
                        ("1.0", "conv_dw"),
                        ("1.1", "bn2"),
                        ("2", "conv_pwl"),
                        ("3", "bn3"),
                    ]
                };
                let theirs = layers.iter().find(|(ours, _)| *ours == place.join(".")).unwrap().1;
                format!("blocks.{stage}.{}.{theirs}", feature - firsts[stage])
            }
            _ => panic!("{name}"),
        };
        format!("1.module.{renamed}.{part}")
    };
    let theirs: nets::Weights = ours.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
    assert_eq!(theirs.len(), ours.len());
    let found = prepare(&graph, theirs, Path::new("timm")).unwrap();
    assert!(found.iter().all(|(name, tensor)| vector(tensor) == vector(&ours[name])));
}

#[test]
fn fresh_weights_follow_their_key_and_have_the_right_spread() {
    let graph = spec(r#"{"name": "resnet", "depth": 18}"#).graph().unwrap();
    let weights = initialise(&graph, Key::root(1)).unwrap();
    let spread = |name: &str| {
        let values = vector(&weights[name]);
        (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
    };
    // 2 / (64 * 9) and (1 / 512) / 3, within one part in a hundred (36,864 and 512,000 numbers).
    assert!((spread("layer1.0.conv1.weight") / (2.0f64 / 576.0).sqrt() - 1.0).abs() < 0.02);
    assert!((spread("fc.weight") / (1.0f64 / 1536.0).sqrt() - 1.0).abs() < 0.01);
    assert!(vector(&weights["bn1.weight"]).iter().all(|&v| v == 1.0));
    assert!(vector(&weights["bn1.running_mean"]).iter().all(|&v| v == 0.0));
    let (again, other) = (initialise(&graph, Key::root(1)).unwrap(), initialise(&graph, Key::root(2)).unwrap());
    assert_eq!(vector(&weights["conv1.weight"]), vector(&again["conv1.weight"]));
    assert_ne!(vector(&weights["conv1.weight"]), vector(&other["conv1.weight"]));
    assert_ne!(vector(&weights["layer1.0.conv1.weight"]), vector(&weights["layer1.0.conv2.weight"]));
}
