//! Torch checkpoints of every layout, and which of their tensors a network is made of.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use game::Key;
use nets::{
    Graph, Weights,
    weights::{self, Error, Fitted, load, open},
};

use crate::{
    spec,
    stream::{Value, dictionary, stream},
    trained, vector,
};

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn small() -> Graph {
    spec(r#"{"name": "resnet", "depth": 18, "stem": "cifar", "classes": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}"#)
        .graph()
        .unwrap()
}

/// A network small enough to be written many times.
fn tiny() -> Graph {
    spec(r#"{"name": "cifar-resnet", "depth": 8, "width": 1, "classes": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}"#)
        .graph()
        .unwrap()
}

fn network(seed: u64) -> Weights {
    trained(&tiny(), Key::root(seed), DType::F32)
}

fn prefixed(prefix: &str, weights: &Weights) -> Value {
    Value::Dict(weights.iter().map(|(name, t)| (format!("{prefix}{name}"), Value::Tensor(t.clone()))).collect())
}

fn vectors(values: &[f32]) -> Value {
    Value::Tensor(Tensor::new(values, &Device::Cpu).unwrap())
}

/// Both entries in one dictionary.
fn joined(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Dict(mut one), Value::Dict(other)) => {
            one.extend(other);
            Value::Dict(one)
        }
        _ => panic!("dictionaries"),
    }
}

/// Writes a checkpoint and fits the tiny network to it.
fn fit(value: &Value, key: Option<&str>) -> Result<Fitted, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pth");
    std::fs::write(&path, stream(value)).unwrap();
    open(&path)?.fit(&tiny(), key, false)
}

fn refused(value: &Value, key: Option<&str>) -> String {
    let error = fit(value, key).unwrap_err();
    assert!(!error.is_invalid_numbers() && error.to_string().contains("net.pth: "), "{error}");
    error.to_string()
}

fn is(found: &Fitted, expected: &Weights) -> bool {
    found.weights.len() == expected.len()
        && found.weights.iter().all(|(name, tensor)| vector(tensor) == vector(&expected[name]))
}

#[test]
fn tensors_are_read_by_their_strides_in_archives_and_in_streams() {
    let expected = load(&golden("checkpoints.safetensors")).unwrap();
    for file in ["zip.pth", "stream.pth"] {
        let mut found = load(&golden(file)).unwrap();
        assert_eq!(vector(&found.remove("best_acc1").unwrap()), [73.5], "{file}");
        assert!(found.keys().eq(expected.keys()), "{file}");
        for (name, tensor) in &found {
            let theirs = &expected[name];
            assert_eq!((tensor.dims(), tensor.dtype()), (theirs.dims(), theirs.dtype()), "{file}: {name}");
            assert_eq!(vector(tensor), vector(theirs), "{file}: {name}");
        }
    }
    // A file that says it is of a big-endian machine: PyTorch's streams are little-endian all the same.
    for (name, tensor) in load(&golden("stream-big.pth")).unwrap() {
        assert_eq!(vector(&tensor), vector(&expected[&name]), "{name}");
    }
    let arrays = load(&golden("numpy.pth")).unwrap();
    for name in ["rows", "columns", "big"] {
        assert_eq!(vector(&arrays[name]), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "{name}");
        assert_eq!(arrays[name].dims(), [2, 3]);
    }
}

#[test]
fn what_is_no_state_dict_is_refused_with_a_mend() {
    let folder = tempfile::tempdir().unwrap();
    let says = |bytes: &[u8], word: &str| {
        let path = folder.path().join("net.pth");
        std::fs::write(&path, bytes).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("net.pth") && error.to_string().contains(word), "{error}");
    };
    let file = |name: &str| std::fs::read(golden(name)).unwrap();
    says(&file("module.pth"), "torch.save(model.state_dict()");
    says(&file("script.pt"), "TorchScript");
    says(b"", "empty");
    says(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull");
    says(b"<!DOCTYPE html><html>", "web page");
    says(b"\x1f\x8b\x08\x00", "gzip");
    says(b"\x89HDF\r\n\x1a\n", "HDF5");
    let mut tar = vec![0u8; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    says(&tar, "tar archive");
    says(b"hello", ".safetensors");
    says(&[0x80, 2, b'}', b'.'], "no tensor");
    let whole = stream(&prefixed("", &network(1)));
    for keep in [3, 40, whole.len() / 2, whole.len() - 1] {
        says(&whole[..keep], "can be read");
    }
    let whole = file("zip.pth");
    for keep in [30, whole.len() / 2, whole.len() - 1] {
        says(&whole[..keep], "can be read");
    }
    // A changed number of a storage: the archive's checksum tells.
    let mut changed = whole;
    let at = changed.windows(7).position(|bytes| bytes == b"/data/0").unwrap();
    // Numbers begin at the next multiple of 64 bytes, and there are 96 bytes of them.
    changed[at + 90] ^= 0x10;
    says(&changed, "damaged");
    let error = open(&golden("quantised.pth")).unwrap().fit(&tiny(), None, false).unwrap_err().to_string();
    assert!(error.contains("is missing"), "{error}");
    assert!(load(&golden("quantised.pth")).unwrap_err().to_string().contains("quantised"));
}

#[test]
fn absurd_sizes_take_no_memory_and_nothing_is_executed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, touched) = (folder.path().join("net.pth"), folder.path().join("touched"));
    let call = Value::Call("posix.system".into(), vec![Value::Text(format!("touch {}", touched.display()))]);
    let value = dictionary([("evil", call), ("state_dict", prefixed("", &network(1)))]);
    assert!(is(&fit(&value, None).unwrap(), &network(1)));
    assert!(!touched.exists());
    let refuse = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        open(&path).and_then(|file| file.fit(&tiny(), None, false)).unwrap_err()
    };
    // Texts, integers and frames that claim more than the file holds.
    for bytes in [
        &b"\x80\x02X\xff\xff\xff\xff"[..],
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x80\x02\x8b\xff\xff\xff\x7f",
    ] {
        assert!(refuse(bytes).to_string().contains("ends early"));
    }
    // Lists of lists of lists, each ten times the one before: a few bytes, 10^30 places.
    let mut nested = b"\x80\x02]q\x00".to_vec();
    for _ in 0..30 {
        nested.extend(b"](");
        nested.extend(b"h\x00".repeat(10));
        nested.extend(b"eq\x00");
    }
    nested.push(b'.');
    refuse(&nested);
    // A dictionary that holds itself.
    refuse(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.");
    let tensor = |shape: [u64; 2], strides: [u64; 2]| Value::Strided {
        of: Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
        offset: 0,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    // An expanded tensor beside the network is not read, whatever it claims.
    let beside = dictionary([("state_dict", prefixed("", &network(1))), ("bank", tensor([1 << 40, 1 << 20], [0, 0]))]);
    assert!(is(&fit(&beside, None).unwrap(), &network(1)));
    for (shape, strides) in [([3, 1], [1 << 62, 1]), ([3, 1], [2, 1])] {
        let mut weights = network(1);
        weights.remove("linear.bias");
        let value = joined(
            prefixed("", &weights),
            dictionary([(
                "linear.bias",
                Value::Strided {
                    of: Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
                    offset: 0,
                    shape: shape[..1].to_vec(),
                    strides: strides[..1].to_vec(),
                },
            )]),
        );
        let error = refused(&value, None);
        assert!(error.contains("linear.bias") && (error.contains("storage") || error.contains("absurd")), "{error}");
    }
}

#[test]
fn a_tensor_beside_the_dictionary_hides_nothing() {
    let optimiser = dictionary([("0", dictionary([("exp_avg", vectors(&[0.0; 3])), ("step", vectors(&[7.0]))]))]);
    let value = dictionary([
        ("epoch", Value::Int(90)),
        ("arch", Value::Text("resnet".into())),
        ("state_dict", prefixed("module.", &network(1))),
        ("best_acc1", vectors(&[71.5])),
        ("optimizer", dictionary([("state", optimiser)])),
    ]);
    let found = fit(&value, None).unwrap();
    assert!(is(&found, &network(1)));
    assert_eq!(found.prefix, "state_dict.module.");
    assert!(found.left_out.iter().any(|name| name == "best_acc1") && found.left_out.len() == 3, "{:?}", found.left_out);
}

#[test]
fn every_nest_and_prefix_is_found() {
    let flat = |prefix: &str| prefixed(prefix, &network(2));
    for value in [
        flat(""),
        flat("module."),
        flat("model."),
        flat("net."),
        flat("student."),
        flat("module.encoder.backbone."),
        flat("model._orig_mod."),
        flat("1.module."),
        dictionary([("model_state_dict", flat("module."))]),
        dictionary([("model", flat("module.model."))]),
        dictionary([("ema", flat(""))]),
        dictionary([("checkpoint", dictionary([("weights", flat("net."))]))]),
        Value::Tuple(vec![Value::Int(3), flat("")]),
    ] {
        assert!(is(&fit(&value, None).unwrap(), &network(2)));
    }
}

#[test]
fn of_two_networks_one_must_be_chosen_unless_they_are_equal() {
    let two = |other: u64| {
        dictionary([
            ("state_dict", prefixed("module.", &network(1))),
            ("state_dict_ema", prefixed("", &network(other))),
        ])
    };
    let error = refused(&two(2), None);
    assert!(error.contains("`key = \"state_dict\"`") && error.contains("`key = \"state_dict_ema\"`"), "{error}");
    assert!(is(&fit(&two(1), None).unwrap(), &network(1)), "equal ones are one");
    for (key, seed) in [("state_dict", 1), ("state_dict.module", 1), ("state_dict_ema", 2)] {
        assert!(is(&fit(&two(2), Some(key)).unwrap(), &network(seed)), "{key}");
    }
    let typo = refused(&two(2), Some("ema"));
    assert!(typo.contains("`key = \"ema\"`") && typo.contains("`state_dict_ema`"), "{typo}");

    let side_by_side = joined(prefixed("", &network(1)), prefixed("net.", &network(2)));
    let error = refused(&side_by_side, None);
    assert!(error.contains("`key = \"\"`") && error.contains("`key = \"net\"`"), "{error}");
    assert!(is(&fit(&side_by_side, Some("")).unwrap(), &network(1)));
    assert!(is(&fit(&side_by_side, Some("net")).unwrap(), &network(2)));
    // The same name but for a wrapper.
    let wrapped = joined(prefixed("", &network(1)), prefixed("module.", &network(2)));
    let error = refused(&wrapped, None);
    assert!(error.contains("`key = \"\"`") && error.contains("`key = \"module\"`"), "{error}");
    assert!(is(&fit(&wrapped, Some("")).unwrap(), &network(1)));
    assert!(is(&fit(&wrapped, Some("module")).unwrap(), &network(2)));
}

#[test]
fn a_second_tensor_for_one_name_is_refused_unless_it_is_equal() {
    let conv = |seed: u64| dictionary([("net.conv1.weight", Value::Tensor(network(seed)["conv1.weight"].clone()))]);
    let with = |other: Value| joined(prefixed("", &network(1)), other);
    let error = refused(&with(conv(2)), None);
    assert!(error.contains("`net.conv1.weight`") && error.contains("`key = \"\"`"), "{error}");
    assert!(is(&fit(&with(conv(1)), None).unwrap(), &network(1)));
    assert!(is(&fit(&with(conv(2)), Some("")).unwrap(), &network(1)));
    // The other way round: all but one under the prefix.
    let stray = dictionary([("conv1.weight", Value::Tensor(network(2)["conv1.weight"].clone()))]);
    let under = joined(prefixed("net.", &network(1)), stray);
    assert!(refused(&under, None).contains("`conv1.weight`"));
    assert!(is(&fit(&under, Some("net")).unwrap(), &network(1)));
}

#[test]
fn a_normaliser_in_the_file_must_be_the_models() {
    let madry = |mean: [f32; 3]| {
        let shaped =
            |values: [f32; 3]| Value::Tensor(Tensor::new(&values, &Device::Cpu).unwrap().reshape((3, 1, 1)).unwrap());
        let normalisers = dictionary([
            ("module.normalizer.new_mean", shaped(mean)),
            ("module.normalizer.new_std", shaped([0.2, 0.2, 0.1])),
            ("module.attacker.normalize.new_mean", shaped(mean)),
            ("module.attacker.normalize.new_std", shaped([0.2, 0.2, 0.1])),
        ]);
        let nets = joined(prefixed("module.model.", &network(1)), prefixed("module.attacker.model.", &network(1)));
        dictionary([("model", joined(nets, normalisers)), ("epoch", Value::Int(149))])
    };
    assert!(is(&fit(&madry([0.5, 0.4, 0.3]), None).unwrap(), &network(1)));
    for key in [None, Some("model.module.model")] {
        let error = refused(&madry([0.4914, 0.4822, 0.4465]), key);
        assert!(error.contains("0.4914") && error.contains("`mean` = [0.4914, 0.4822, 0.4465]"), "{error}");
    }
    let own = joined(prefixed("", &network(1)), dictionary([("mu", vectors(&[0.5])), ("sigma", vectors(&[1.0]))]));
    assert!(refused(&own, None).contains("`mu`"));
}

#[test]
fn what_decides_nothing_is_left_out_and_anything_else_is_not() {
    let with = |name: &str, value: Value| joined(prefixed("model.", &network(1)), dictionary([(name, value)]));
    let count = Value::Tensor(Tensor::new(&[5i64], &Device::Cpu).unwrap());
    for idle in [
        with("model.bn1.num_batches_tracked", count.clone()),
        with("n_averaged", count),
        with("model.total_ops", vectors(&[1e9])),
    ] {
        let found = fit(&idle, None).unwrap();
        assert!(is(&found, &network(1)) && found.left_out.len() == 1);
    }
    let beside = with("criterion.weight", vectors(&[1.0; 10]));
    let error = refused(&beside, None);
    assert!(error.contains("`criterion.weight` [10]") && error.contains("`key = \"model\"`"), "{error}");
    assert!(is(&fit(&beside, Some("model")).unwrap(), &network(1)));
    let inside = with("model.extra.weight", vectors(&[1.0; 10]));
    assert!(refused(&inside, None).contains("`model.extra.weight`"));
    assert!(refused(&inside, Some("model")).contains("`model.extra.weight`"), "part of the network, chosen or not");
}

#[test]
fn a_misfit_names_both_sides_and_the_mend() {
    let mut weights = network(1);
    for name in ["bn1.bias", "bn1.weight", "layer1.0.bn1.bias"] {
        let tensor = weights.remove(name).unwrap();
        weights.insert(name.replace("bn", "norm"), tensor);
    }
    let error = refused(&prefixed("backbone.", &weights), None);
    for word in [
        "`bn1.weight` [1] is missing",
        "(and 1 more)",
        "the file's `backbone.layer1.0.norm1.bias` [1] is not part of it",
        "under the prefix `backbone.`",
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert_eq!(error.matches("is missing").count(), 2, "{error}");
    assert_eq!(error.matches("is not part of it").count(), 2, "{error}");

    let change = |name: &str, shape: &[usize]| {
        let mut weights = network(1);
        weights.insert(name.to_owned(), Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
        weights
    };
    let turned = refused(&prefixed("", &change("layer3.0.conv1.weight", &[3, 3, 2, 4])), None);
    assert!(turned.contains("`layer3.0.conv1.weight` is [3, 3, 2, 4], not [4, 2, 3, 3]"), "{turned}");
    assert!(turned.contains("outputs, inputs, rows, columns"), "{turned}");
    let turned = refused(&prefixed("", &change("linear.weight", &[4, 3])), None);
    assert!(turned.contains("is [4, 3], not [3, 4]") && turned.contains("outputs, inputs"), "{turned}");
    let mut more = change("linear.weight", &[10, 4]);
    more.insert("linear.bias".into(), Tensor::zeros(10, DType::F32, &Device::Cpu).unwrap());
    let classes = refused(&prefixed("", &more), None);
    assert!(
        classes.contains("`linear.weight` is [10, 4], not [3, 4]") && classes.contains("`classes = 10`"),
        "{classes}"
    );
    let mut whole = network(1);
    whole.insert("bn1.bias".into(), Tensor::new(&[1i64], &Device::Cpu).unwrap());
    assert!(refused(&prefixed("", &whole), None).contains("`bn1.bias` holds i64"));
}

#[test]
fn a_new_head_takes_everything_but_the_last_layer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pth");
    let mut weights = network(1);
    weights.insert("linear.weight".into(), Tensor::zeros((7, 4), DType::F32, &Device::Cpu).unwrap());
    std::fs::write(&path, stream(&prefixed("module.", &weights))).unwrap();
    let found = open(&path).unwrap().fit(&tiny(), None, true).unwrap();
    assert_eq!(found.left_out, ["module.linear.bias", "module.linear.weight"]);
    assert!(!found.weights.keys().any(|name| name.starts_with("linear.")));
    assert_eq!(found.weights.len(), network(1).len() - 2);
}

#[test]
fn spoilt_numbers_are_no_weights_in_any_layout() {
    let mut weights = network(1);
    weights.insert("bn1.bias".into(), Tensor::new(&[f32::NAN], &Device::Cpu).unwrap());
    let error = fit(&prefixed("module.", &weights), None).unwrap_err();
    assert!(error.is_invalid_numbers() && error.to_string().contains("bn1.bias"), "{error}");
}

#[test]
fn names_of_kuangliu_fit_under_any_prefix() {
    let graph = small();
    let ours = trained(&graph, Key::root(3), DType::F32);
    let theirs: Weights = ours
        .iter()
        .map(|(name, tensor)| {
            let name = name.replace("fc.", "linear.").replace(".downsample.", ".shortcut.");
            (format!("module.model.{name}"), tensor.clone())
        })
        .collect();
    let found = weights::prepare(&graph, theirs, Path::new("madry")).unwrap();
    assert!(found.iter().all(|(name, tensor)| vector(tensor) == vector(&ours[name])));
}
