//! What published files call the tensors of some networks, and what else they hold.

/// Whether a tensor is one that its network never computes with.
pub(crate) fn is_unused(name: &str) -> bool {
    // TRADES' wide residual networks have a second first group, which `forward` passes by.
    name.starts_with("sub_block1.") || name.contains(".sub_block1.")
}

/// The graph's name for a tensor under one of the names that its architecture's files use.
pub(crate) fn known(name: &str, needed: &dyn Fn(&str) -> bool) -> Option<String> {
    [densenet(name), timm_efficientnet(name, needed)].into_iter().flatten().find(|name| needed(name))
}

/// The files that torchvision publishes for DenseNet count a layer's parts with a dot: `denselayer1.norm.1.weight`.
fn densenet(name: &str) -> Option<String> {
    let (layer, part) = name.split_once(".denselayer").and_then(|(block, rest)| {
        let (number, part) = rest.split_once('.')?;
        Some((format!("{block}.denselayer{number}"), part))
    })?;
    let joined = ["norm.1.", "norm.2.", "conv.1.", "conv.2."].into_iter().find_map(|dotted| {
        let (kind, number) = dotted.trim_end_matches('.').split_once('.')?;
        part.strip_prefix(dotted).map(|rest| format!("{kind}{number}.{rest}"))
    })?;
    Some(format!("{layer}.{joined}"))
}

/// The blocks of each stage of EfficientNet-Lite, by how many there are in all.
const BLOCKS: [[usize; 7]; 4] =
    [[1, 2, 2, 3, 3, 4, 1], [1, 3, 3, 4, 4, 5, 1], [1, 3, 3, 5, 5, 6, 1], [1, 4, 4, 6, 6, 8, 1]];

/// timm's name for a tensor of EfficientNet-Lite, as `blocks.1.0.conv_pw.weight`.
fn timm_efficientnet(name: &str, needed: &dyn Fn(&str) -> bool) -> Option<String> {
    let (layer, part) = name.rsplit_once('.')?;
    let ours = match layer {
        "conv_stem" => "_conv_stem".to_owned(),
        "bn1" => "_bn0".to_owned(),
        "conv_head" => "_conv_head".to_owned(),
        "bn2" => "_bn1".to_owned(),
        "classifier" => "_fc".to_owned(),
        _ => {
            let mut parts = layer.strip_prefix("blocks.")?.splitn(3, '.');
            let (stage, block): (usize, usize) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let place = match (stage, parts.next()?) {
                (0, "conv_dw") => "_depthwise_conv",
                (0, "bn1") => "_bn1",
                (0, "conv_pw") => "_project_conv",
                (0, "bn2") => "_bn2",
                (_, "conv_pw") => "_expand_conv",
                (_, "bn1") => "_bn0",
                (_, "conv_dw") => "_depthwise_conv",
                (_, "bn2") => "_bn1",
                (_, "conv_pwl") => "_project_conv",
                (_, "bn3") => "_bn2",
                _ => return None,
            };
            let there = (0..).take_while(|block| needed(&format!("_blocks.{block}._bn1.weight"))).count();
            let blocks = BLOCKS.iter().find(|blocks| blocks.iter().sum::<usize>() == there)?;
            let before: usize = blocks.get(..stage)?.iter().sum();
            format!("_blocks.{}.{place}", before + block)
        }
    };
    Some(format!("{ours}.{part}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Tensor};
    use game::{Key, Phase};

    use super::*;
    use crate::{Graph, Spec, Weights, weights};

    fn graph(json: &str) -> Graph {
        serde_json::from_str::<Spec>(json).unwrap().graph().unwrap()
    }

    fn fresh(graph: &Graph) -> Weights {
        weights::initialise(graph, Key::root(0).phase(Phase::Init)).unwrap()
    }

    fn numbers_of(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (1, values.len(), 1, 1), &Device::Cpu).unwrap()
    }

    #[test]
    fn torchvisions_files_of_densenets_are_read() {
        let graph = graph(r#"{"name": "densenet", "depth": 121, "classes": 3}"#);
        let fresh = fresh(&graph);
        let dotted = |name: &str| match name.contains(".denselayer") {
            true => name.replace("norm", "norm.").replace("conv", "conv."),
            false => name.to_owned(),
        };
        let theirs: Weights = fresh.iter().map(|(name, tensor)| (dotted(name), tensor.clone())).collect();
        assert!(theirs.contains_key("features.denseblock1.denselayer1.norm.1.weight"));
        let read = weights::prepare(&graph, theirs, Path::new("made")).unwrap();
        assert!(read.keys().eq(fresh.keys()));
    }

    #[test]
    fn timms_files_of_efficientnet_lite_are_read() {
        for (variant, last) in [(0, 15), (2, 20), (3, 23), (4, 29)] {
            let graph = graph(&format!(r#"{{"name": "efficientnet-lite", "variant": {variant}, "classes": 3}}"#));
            let needed = |name: &str| graph.parameters().iter().any(|(needed, _)| needed == name);
            let known = |name: &str| known(name, &needed);
            assert_eq!(known("blocks.6.0.conv_pwl.weight").unwrap(), format!("_blocks.{last}._project_conv.weight"));
            assert_eq!(known("blocks.0.0.conv_pw.weight").unwrap(), "_blocks.0._project_conv.weight");
            assert_eq!(known("blocks.1.0.bn1.running_var").unwrap(), "_blocks.1._bn0.running_var");
            assert_eq!(known("bn2.bias").unwrap(), "_bn1.bias");
            assert_eq!(known("blocks.7.0.bn1.bias"), None);
        }
    }

    #[test]
    fn a_group_that_computes_nothing_is_left_out_and_a_stated_normalisation_is_compared() {
        let graph = graph(r#"{"name": "wrn", "depth": 10, "width": 1}"#);
        let mut theirs = fresh(&graph);
        theirs.insert("sub_block1.layer.0.bn1.weight".into(), numbers_of(&[1.0; 16]));
        theirs.insert("module.sub_block1.layer.0.bn1.bias".into(), numbers_of(&[1.0; 16]));
        theirs.insert("mu".into(), numbers_of(&[0.0; 3]));
        theirs.insert("module.sigma".into(), numbers_of(&[1.0; 3]));
        weights::prepare(&graph, theirs.clone(), Path::new("made")).unwrap();
        theirs.insert("mu".into(), numbers_of(&[0.4914, 0.4822, 0.4465]));
        let error = weights::prepare(&graph, theirs, Path::new("made")).unwrap_err().to_string();
        assert!(error.contains("made") && error.contains("`mean` = [0.4914, 0.4822, 0.4465]"), "{error}");
    }
}
