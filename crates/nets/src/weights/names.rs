//! Names of parameters: what wrappers add to them, and the names that other libraries give the same layers.

/// torchvision's name for a parameter under another library's, if it is one.
type Scheme = fn(&str) -> Option<String>;

/// Every scheme that is known.
pub(super) const SCHEMES: [Scheme; 2] = [timm_mobilenet, kuangliu_resnet];

/// What wrappers put into names: DataParallel, `torch.compile`, FSDP and checkpointing of activations.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The parts of a name, without those of wrappers.
pub(super) fn parts(name: &str) -> Vec<&str> {
    name.split('.').filter(|part| !part.is_empty() && !WRAPPERS.contains(part)).collect()
}

/// Whether a tensor that is left over decides no answer: counters, and Inception's auxiliary classifier.
pub(super) fn is_idle(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    // Counters of normalisations, of averaged weights, and of the profiler thop.
    ["num_batches_tracked", "n_averaged", "total_ops", "total_params"].contains(&last)
        || name.contains("AuxLogits.")
        || crate::spec::names::is_unused(name)
}

/// What a tensor of a wrapper that normalises the pixels is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Statistic {
    Mean,
    Std,
}

/// Whether a name is that of a mean or a standard deviation of the pixels.
pub(super) fn statistic(name: &str) -> Option<Statistic> {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last.trim_start_matches('_').trim_start_matches("new_") {
        "mean" | "means" | "mu" => Some(Statistic::Mean),
        "std" | "stds" | "sigma" | "sds" => Some(Statistic::Std),
        _ => None,
    }
}

/// torchvision's name for a tensor of a ResNet that is named as in `kuangliu/pytorch-cifar`; none if it is not one.
fn kuangliu_resnet(name: &str) -> Option<String> {
    match name.strip_prefix("linear.") {
        Some(part) => Some(format!("fc.{part}")),
        None => name.contains(".shortcut.").then(|| name.replacen(".shortcut.", ".downsample.", 1)),
    }
}

/// torchvision's name for a tensor of timm's `mobilenetv2`; none if it is not one.
fn timm_mobilenet(name: &str) -> Option<String> {
    // The first feature of each stage.
    const STAGES: [usize; 7] = [1, 2, 4, 7, 11, 14, 17];
    let (layer, part) = name.rsplit_once('.')?;
    let renamed = match layer {
        "conv_stem" => "features.0.0".to_owned(),
        "bn1" => "features.0.1".to_owned(),
        "bn2" => "features.18.1".to_owned(),
        "conv_head" => "features.18.0".to_owned(),
        "classifier" => "classifier.1".to_owned(),
        _ => {
            let mut parts = layer.strip_prefix("blocks.")?.splitn(3, '.');
            let (stage, block): (usize, usize) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let place = match (stage, parts.next()?) {
                (0, "conv_dw") => "0.0",
                (0, "bn1") => "0.1",
                (0, "conv_pw") => "1",
                (0, "bn2") => "2",
                (_, "conv_pw") => "0.0",
                (_, "bn1") => "0.1",
                (_, "conv_dw") => "1.0",
                (_, "bn2") => "1.1",
                (_, "conv_pwl") => "2",
                (_, "bn3") => "3",
                _ => return None,
            };
            format!("features.{}.conv.{place}", STAGES.get(stage)? + block)
        }
    };
    Some(format!("{renamed}.{part}"))
}
