//! The names that other libraries give the tensors of timm's networks.

use candle_core::Tensor;
use nets::Weights;

use crate::{catalogue::Family, efficientnet};

/// What wraps a network's names in files.
const PREFIXES: [&str; 13] = [
    "module.",
    "1.module.",
    "model.",
    "_orig_mod.",
    "net.",
    "network.",
    "backbone.",
    "vit.",
    "deit.",
    "dinov2.",
    "convnext.",
    "convnextv2.",
    "efficientnet.",
];

/// Ends of names that a file may hold and no network here needs: counters, and the token of masked patches.
const IGNORED: [&str; 2] = ["num_batches_tracked", "mask_token"];

/// Queries, keys and values of a block's attention, in the order in which they are joined.
const PARTS: [&str; 3] = [".attn.q.", ".attn.k.", ".attn.v."];

/// The tensors under timm's names, where those are known; fails where two stand for one parameter.
pub(crate) fn rename(family: &Family, weights: Weights, needed: &[(String, Vec<usize>)]) -> Result<Weights, String> {
    let needed: std::collections::BTreeSet<&str> = needed.iter().map(|(name, _)| name.as_str()).collect();
    let is_needed = |name: &str| {
        let whole = PARTS.iter().fold(name.to_owned(), |name, part| name.replace(part, ".attn.qkv."));
        needed.contains(whole.as_str())
    };
    let (mut renamed, mut origins) = (Weights::new(), std::collections::BTreeMap::<String, String>::new());
    for (name, tensor) in weights {
        if IGNORED.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let ours = known(family, &name, is_needed).unwrap_or_else(|| name.clone());
        if let Some(other) = origins.insert(ours.clone(), name.clone()) {
            return Err(format!("`{other}` and `{name}` both stand for `{ours}`: leave one of them in the file"));
        }
        renamed.insert(ours, tensor);
    }
    Ok(renamed)
}

/// Joins separate queries, keys and values.
pub(crate) fn join(weights: &mut Weights) -> candle_core::Result<()> {
    let firsts: Vec<String> = weights.keys().filter(|name| name.contains(PARTS[0])).cloned().collect();
    for first in firsts {
        let names = PARTS.map(|part| first.replace(PARTS[0], part));
        if names.iter().any(|name| !weights.contains_key(name)) {
            continue;
        }
        let tensors: Vec<Tensor> = names.iter().filter_map(|name| weights.remove(name)).collect();
        weights.insert(first.replace(PARTS[0], ".attn.qkv."), Tensor::cat(&tensors, 0)?);
    }
    Ok(())
}

/// The name that is needed, behind any prefix.
fn known(family: &Family, name: &str, needed: impl Fn(&str) -> bool) -> Option<String> {
    let mut short = name;
    loop {
        if needed(short) {
            return Some(short.to_owned());
        }
        let others: Vec<String> = match family {
            Family::Vit(_) => vec![hugging_vit(short), torchvision_vit(short)],
            Family::Convnext(_) => [hugging_convnext(short), authors_convnext(short), torchvision_convnext(short)]
                .into_iter()
                .flatten()
                .collect(),
            Family::EfficientNet(config) => {
                [torchvision_efficientnet(short), keras_efficientnet(short, config)].into_iter().flatten().collect()
            }
            Family::MobileNet(_) => vec![],
        };
        if let Some(other) = others.into_iter().find(|other| needed(other)) {
            return Some(other);
        }
        short = PREFIXES.iter().find_map(|prefix| short.strip_prefix(prefix))?;
    }
}

/// Replaces each text by the one beside it, in their order.
fn replaced(name: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(name.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours))
}

/// `ViTForImageClassification`, `DeiTForImageClassification`, `Dinov2ForImageClassification`; and DINOv2's `linear_head`.
fn hugging_vit(name: &str) -> String {
    replaced(
        name,
        &[
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.distillation_token", "dist_token"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
            ("encoder.layer.", "blocks."),
            ("attention.attention.query.", "attn.q."),
            ("attention.attention.key.", "attn.k."),
            ("attention.attention.value.", "attn.v."),
            ("attention.output.dense.", "attn.proj."),
            ("intermediate.dense.", "mlp.fc1."),
            ("output.dense.", "mlp.fc2."),
            ("layernorm_before.", "norm1."),
            ("layernorm_after.", "norm2."),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("layernorm.", "norm."),
            ("distillation_classifier.", "head_dist."),
            ("cls_classifier.", "head."),
            ("classifier.", "head."),
            ("linear_head.", "head."),
        ],
    )
}

/// torchvision's `vit_b_16` and its like.
fn torchvision_vit(name: &str) -> String {
    replaced(
        name,
        &[
            ("class_token", "cls_token"),
            ("conv_proj.", "patch_embed.proj."),
            ("encoder.pos_embedding", "pos_embed"),
            ("encoder.layers.encoder_layer_", "blocks."),
            ("ln_1.", "norm1."),
            ("ln_2.", "norm2."),
            ("self_attention.in_proj_", "attn.qkv."),
            ("self_attention.out_proj.", "attn.proj."),
            ("mlp.linear_1.", "mlp.fc1."),
            ("mlp.linear_2.", "mlp.fc2."),
            ("mlp.0.", "mlp.fc1."),
            ("mlp.3.", "mlp.fc2."),
            ("encoder.ln.", "norm."),
            ("heads.head.", "head."),
        ],
    )
}

/// The layers of a ConvNeXt block, as the authors call them.
const BLOCK: [(&str, &str); 6] = [
    ("dwconv.", "conv_dw."),
    ("pwconv1.", "mlp.fc1."),
    ("pwconv2.", "mlp.fc2."),
    ("grn.gamma", "mlp.grn.weight"),
    ("grn.beta", "mlp.grn.bias"),
    ("grn.", "mlp.grn."),
];

fn in_block(name: &str) -> String {
    BLOCK
        .iter()
        .find(|(theirs, _)| name.starts_with(theirs))
        .map_or_else(|| name.to_owned(), |(theirs, ours)| format!("{ours}{}", &name[theirs.len()..]))
}

/// `ConvNextForImageClassification` and `ConvNextV2ForImageClassification`.
fn hugging_convnext(name: &str) -> Option<String> {
    if let Some(part) = name.strip_prefix("embeddings.patch_embeddings.") {
        return Some(format!("stem.0.{part}"));
    }
    if let Some(part) = name.strip_prefix("embeddings.layernorm.") {
        return Some(format!("stem.1.{part}"));
    }
    if let Some(rest) = name.strip_prefix("encoder.stages.") {
        let (stage, rest) = rest.split_once('.')?;
        if let Some(part) = rest.strip_prefix("downsampling_layer.") {
            return Some(format!("stages.{stage}.downsample.{part}"));
        }
        let (block, part) = rest.strip_prefix("layers.")?.split_once('.')?;
        let part = in_block(&replaced(part, &[("layernorm.", "norm."), ("layer_scale_parameter", "gamma")]));
        return Some(format!("stages.{stage}.blocks.{block}.{part}"));
    }
    let layers = [("layernorm.", "head.norm."), ("classifier.", "head.fc.")];
    layers.iter().find_map(|(theirs, ours)| name.strip_prefix(theirs).map(|part| format!("{ours}{part}")))
}

/// The authors' own files.
fn authors_convnext(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("downsample_layers.") {
        let (stage, part) = rest.split_once('.')?;
        return Some(if stage == "0" { format!("stem.{part}") } else { format!("stages.{stage}.downsample.{part}") });
    }
    if let Some(rest) = name.strip_prefix("stages.") {
        let mut parts = rest.splitn(3, '.');
        let (stage, block, part) = (parts.next()?, parts.next()?, parts.next()?);
        return Some(format!("stages.{stage}.blocks.{block}.{}", in_block(part)));
    }
    let layers = [("norm.", "head.norm."), ("head.", "head.fc.")];
    layers.iter().find_map(|(theirs, ours)| name.strip_prefix(theirs).map(|part| format!("{ours}{part}")))
}

/// torchvision's: stages at odd places of `features`, what comes before each at even ones.
fn torchvision_convnext(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("features.") {
        let (place, rest) = rest.split_once('.')?;
        let place: usize = place.parse().ok()?;
        if place == 0 {
            return Some(format!("stem.{rest}"));
        }
        if place.is_multiple_of(2) {
            return Some(format!("stages.{}.downsample.{rest}", place / 2));
        }
        let (block, part) = rest.split_once('.')?;
        let layers = [
            ("block.0.", "conv_dw."),
            ("block.2.", "norm."),
            ("block.3.", "mlp.fc1."),
            ("block.5.", "mlp.fc2."),
            ("layer_scale", "gamma"),
        ];
        return Some(format!("stages.{}.blocks.{block}.{}", place / 2, replaced(part, &layers)));
    }
    let layers = [("classifier.0.", "head.norm."), ("classifier.2.", "head.fc.")];
    layers.iter().find_map(|(theirs, ours)| name.strip_prefix(theirs).map(|part| format!("{ours}{part}")))
}

/// The layers of an inverted residual in their order: with an expansion, and without.
const INVERTED: [&[&str]; 2] = [&["conv_pw", "conv_dw", "se", "conv_pwl"], &["conv_dw", "se", "conv_pw"]];

/// torchvision's, which candle's EfficientNet has, too.
fn torchvision_efficientnet(name: &str) -> Option<String> {
    if let Some(part) = name.strip_prefix("classifier.1.") {
        return Some(format!("classifier.{part}"));
    }
    let (place, rest) = name.strip_prefix("features.")?.split_once('.')?;
    let place: usize = place.parse().ok()?;
    if place == 0 || place == 8 {
        let (conv, norm) = if place == 0 { ("conv_stem", "bn1") } else { ("conv_head", "bn2") };
        let (layer, part) = rest.split_once('.')?;
        return Some(format!("{}.{part}", if layer == "0" { conv } else { norm }));
    }
    let stage = place - 1;
    let (block, rest) = rest.split_once('.')?;
    let (layer, part) = rest.strip_prefix("block.")?.split_once('.')?;
    let layers = INVERTED[usize::from(stage == 0)];
    let layer: usize = layer.parse().ok()?;
    let ours = match *layers.get(layer)? {
        "se" => replaced(part, &[("fc1.", "se.conv_reduce."), ("fc2.", "se.conv_expand.")]),
        conv => {
            let (which, part) = part.split_once('.')?;
            // Normalisations are counted without the layers that weigh the channels.
            let norm = 1 + layers[..layer].iter().filter(|layer| **layer != "se").count();
            if which == "0" { format!("{conv}.{part}") } else { format!("bn{norm}.{part}") }
        }
    };
    Some(format!("blocks.{stage}.{block}.{ours}"))
}

/// Those of `EfficientNet-PyTorch`, after Keras: blocks are counted through.
fn keras_efficientnet(name: &str, config: &efficientnet::Config) -> Option<String> {
    let layers = [
        ("_conv_stem.", "conv_stem."),
        ("_bn0.", "bn1."),
        ("_conv_head.", "conv_head."),
        ("_bn1.", "bn2."),
        ("_fc.", "classifier."),
    ];
    if let Some(ours) =
        layers.iter().find_map(|(theirs, ours)| name.strip_prefix(theirs).map(|part| format!("{ours}{part}")))
    {
        return Some(ours);
    }
    let (index, part) = name.strip_prefix("_blocks.")?.split_once('.')?;
    let block = config.blocks().into_iter().nth(index.parse().ok()?)?;
    let last = if block.expansion > 1 { "conv_pwl." } else { "conv_pw." };
    let shift = usize::from(block.expansion == 1);
    let norms = ["bn1.", "bn2.", "bn3."];
    let layers = [
        ("_expand_conv.", "conv_pw."),
        ("_depthwise_conv.", "conv_dw."),
        ("_project_conv.", last),
        ("_se_reduce.", "se.conv_reduce."),
        ("_se_expand.", "se.conv_expand."),
        ("_bn0.", norms[0]),
        ("_bn1.", norms[1 - shift]),
        ("_bn2.", norms[2 - shift]),
    ];
    let (theirs, ours) = layers.iter().find(|(theirs, _)| part.starts_with(theirs))?;
    Some(format!("{}.{ours}{}", block.name, &part[theirs.len()..]))
}
