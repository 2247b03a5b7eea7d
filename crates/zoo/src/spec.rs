//! Which network: an architecture by name, and what differs from its published weights' own.

use serde::{Deserialize, Serialize};

use crate::catalogue::{self, Family};

/// Why a specification gives no network; the text names the field and what it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(String);

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// A network of the catalogue: `{"architecture": "vit-base-patch16-224", "classes": 1000}`.
///
/// What is left out is that of the architecture's published weights, and is written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stated")]
pub struct Spec {
    /// A name of the catalogue ([`crate::architectures`]): timm's, with hyphens.
    pub architecture: String,
    /// Rows and columns of an image in pixels. A transformer takes no other; convolutional networks do, but were not
    /// trained on them.
    pub side: usize,
    /// The number of classes.
    pub classes: usize,
    /// Subtracted from the pixels in `[0, 1]`, per channel.
    pub mean: [f64; 3],
    /// What the pixels are then divided by, per channel.
    pub std: [f64; 3],
    /// Multiplies the channels: 1 is the published network.
    #[serde(skip_serializing_if = "is_one")]
    pub width: f64,
    /// Multiplies the blocks of every stage: 1 is the published network.
    #[serde(skip_serializing_if = "is_one")]
    pub depth: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    architecture: String,
    side: Option<usize>,
    classes: Option<usize>,
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
    width: Option<f64>,
    depth: Option<f64>,
}

// Serde hands a reference to it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(value: &f64) -> bool {
    *value == 1.0
}

impl TryFrom<Stated> for Spec {
    type Error = Invalid;

    fn try_from(stated: Stated) -> Result<Self, Invalid> {
        let Some(entry) = catalogue::find(&stated.architecture) else { return Err(unknown(&stated.architecture)) };
        Ok(Self {
            architecture: entry.name,
            side: stated.side.unwrap_or(entry.side),
            classes: stated.classes.unwrap_or(1000),
            mean: stated.mean.unwrap_or(entry.mean),
            std: stated.std.unwrap_or(entry.std),
            width: stated.width.unwrap_or(1.0),
            depth: stated.depth.unwrap_or(1.0),
        })
    }
}

/// Names those that begin alike, or all.
fn unknown(name: &str) -> Invalid {
    let hyphens = name.replace('_', "-");
    let names = catalogue::names();
    if names.contains(&hyphens) {
        return Invalid(format!("`architecture` is `{name}`: write `{hyphens}`"));
    }
    let family = |name: &str| name.split('-').next().unwrap_or_default().to_owned();
    let mut like: Vec<String> = names.iter().filter(|known| family(known) == family(&hyphens)).cloned().collect();
    if like.is_empty() {
        like = names;
    }
    Invalid(format!("`architecture` is `{name}`, which is none of {}", like.join(", ")))
}

impl Spec {
    /// The published network of a name.
    ///
    /// # Errors
    /// If the catalogue has none of this name.
    pub fn of(architecture: &str) -> Result<Self, Invalid> {
        let architecture = architecture.to_owned();
        Stated { architecture, side: None, classes: None, mean: None, std: None, width: None, depth: None }.try_into()
    }

    /// Whether there is such a network.
    ///
    /// # Errors
    /// One sentence: the field, its value, and what it must be.
    pub fn check(&self) -> Result<(), Invalid> {
        let family = self.family()?;
        if self.classes < 2 {
            return Err(Invalid(format!("`classes` is {}: a classifier has at least 2", self.classes)));
        }
        let (mean, std) = (self.mean, self.std);
        if mean.iter().any(|m| !m.is_finite()) || std.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err(Invalid(format!("`mean` {mean:?} must be finite, and `std` {std:?} positive")));
        }
        if mean.iter().any(|m| m.abs() > 2.0) {
            let text = "is in units of 0 to 255; pixels here are from 0 to 1: divide `mean` and `std` by 255";
            return Err(Invalid(format!("`mean` {mean:?} {text}")));
        }
        for (name, value) in [("width", self.width), ("depth", self.depth)] {
            if !(value > 0.0 && value <= 16.0) {
                return Err(Invalid(format!("`{name}` is {value}: it must be above 0, and at most 16")));
            }
        }
        if let Some(patch) = family.patch().filter(|patch| !self.side.is_multiple_of(*patch)) {
            return Err(Invalid(format!("`side` is {}: it must be a multiple of the patch, {patch}", self.side)));
        }
        if !(family.smallest()..=4096).contains(&self.side) {
            return Err(Invalid(format!("`side` is {}: it must be from {} to 4096", self.side, family.smallest())));
        }
        Ok(())
    }

    /// Whether images of this size can be asked about.
    ///
    /// # Errors
    /// One sentence with the mend.
    pub fn fits(&self, height: usize, width: usize) -> Result<(), Invalid> {
        let family = self.family()?;
        let (name, side) = (&self.architecture, self.side);
        if family.patch().is_some() && (height, width) != (side, side) {
            let text = format!("`{name}` takes images of {side}x{side} pixels, not of {height}x{width}");
            return Err(Invalid(format!("{text}: resize or crop the sample, or set `side` in the model")));
        }
        if height.min(width) < family.smallest() {
            let least = family.smallest();
            return Err(Invalid(format!(
                "`{name}` needs images of at least {least} pixels a side, not {height}x{width}"
            )));
        }
        Ok(())
    }

    /// Multiply-adds of one forward pass over an image of `side` rows and columns.
    #[must_use]
    pub fn multiplications(&self, side: usize) -> u64 {
        self.family().map_or(0, |family| family.multiplications(side, self.classes))
    }

    pub(crate) fn family(&self) -> Result<Family, Invalid> {
        let entry = catalogue::find(&self.architecture).ok_or_else(|| unknown(&self.architecture))?;
        Ok(entry.family.resized(self.width, self.depth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_published_weights_own_and_is_written_out() {
        let spec: Spec = serde_json::from_str(r#"{"architecture": "vit-base-patch16-224"}"#).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(
            text,
            r#"{"architecture":"vit-base-patch16-224","side":224,"classes":1000,"mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]}"#
        );
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        for name in catalogue::names() {
            let spec = Spec::of(&name).unwrap();
            assert_eq!(spec.check(), Ok(()), "{name}");
            assert_eq!(spec.fits(spec.side, spec.side), Ok(()), "{name}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let read = |text: &str| serde_json::from_str::<Spec>(text);
        let error = |text: &str| match read(text) {
            Ok(spec) => spec.check().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        for (text, words) in [
            (r#"{"architecture": "vit_base_patch16_224"}"#, "write `vit-base-patch16-224`"),
            (r#"{"architecture": "vit-giant"}"#, "vit-large-patch16-224"),
            (r#"{"architecture": "swin-tiny"}"#, "convnext-tiny"),
            (r#"{"architecture": "convnext-tiny", "sides": 3}"#, "sides"),
            (r#"{"architecture": "convnext-tiny", "classes": 1}"#, "classes"),
            (r#"{"architecture": "convnext-tiny", "mean": [123.675, 116.28, 103.53]}"#, "255"),
            (r#"{"architecture": "convnext-tiny", "std": [0, 1, 1]}"#, "std"),
            (r#"{"architecture": "convnext-tiny", "width": 0}"#, "width"),
            (r#"{"architecture": "vit-tiny-patch16-224", "side": 225}"#, "multiple of the patch, 16"),
        ] {
            assert!(error(text).contains(words), "{text}: {}", error(text));
        }
        let spec = Spec::of("vit-tiny-patch16-224").unwrap();
        assert!(spec.fits(32, 32).unwrap_err().to_string().contains("224x224 pixels, not of 32x32"));
    }

    #[test]
    fn multiplications_are_the_published_ones() {
        // Touvron et al. 2021 (ViT and DeiT), Liu et al. 2022, Tan and Le 2019, and timm's table for MobileNetV4.
        for (name, side, published) in [
            ("deit-tiny-patch16-224", 224, 1.26e9),
            ("deit-small-patch16-224", 224, 4.61e9),
            ("vit-base-patch16-224", 224, 17.58e9),
            ("convnext-tiny", 224, 4.47e9),
            ("convnext-base", 224, 15.38e9),
            ("efficientnet-b0", 224, 0.39e9),
            ("mobilenetv4-conv-small", 224, 0.19e9),
            ("mobilenetv4-conv-medium", 224, 0.84e9),
        ] {
            let count = Spec::of(name).unwrap().multiplications(side) as f64;
            assert!((count / published - 1.0).abs() < 0.03, "{name}: {count:e} for {published:e}");
        }
    }
}
