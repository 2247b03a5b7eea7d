//! What a sample is made of.

use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf};

use serde::{Deserialize, Serialize};
pub use stage::classes::Classes;
use stage::{Context, Usage};

use crate::{
    Reader,
    embedded::{self, Embedded, Split},
    folder::Folder,
    hub,
    parquet::Parquet,
};

/// Parameters of the stage `sample`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Where the images come from.
    pub source: Source,
    /// The classes in order of their labels: those of the network that is to be asked. Null takes those the source names.
    /// The source's are placed among them by name, or by number where it has no names.
    #[serde(default)]
    pub classes: Option<Classes>,
    /// What names and numbers do not say: the class, by name or number, that a class of the source is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, Place>>,
    /// The number that the source gives to its first class, where it counts its classes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_label: i64,
    /// Keep one image of so many.
    #[serde(default = "one")]
    pub every: NonZeroU32,
    /// The id of the first image kept.
    #[serde(default)]
    pub offset: u32,
    /// Keep at most so many images; null keeps all.
    #[serde(default)]
    pub limit: Option<NonZeroU32>,
    /// Scale the shorter side to so many pixels (bilinear with antialias, as torchvision's `Resize`).
    #[serde(default)]
    pub resize: Option<NonZeroU32>,
    /// Then keep a square of so many pixels in the middle (as torchvision's `CenterCrop`).
    #[serde(default)]
    pub crop: Option<NonZeroU32>,
    /// What an orientation in an image's EXIF does, before anything else.
    #[serde(default, skip_serializing_if = "Orientation::is_ignored")]
    pub orientation: Orientation,
    /// Seed of a source that draws its images.
    #[serde(default)]
    pub seed: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &i64) -> bool {
    *number == 0
}

const fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// A class of the sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Place {
    /// Its number, from 0.
    Number(u32),
    /// One of its names.
    Name(String),
}

/// What an orientation in an image's EXIF does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orientation {
    /// Nothing, as with torchvision's `ImageFolder`, by which networks are trained and judged.
    #[default]
    Ignore,
    /// It turns and mirrors the image, as `datasets` does.
    Apply,
}

impl Orientation {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    const fn is_ignored(&self) -> bool {
        matches!(self, Self::Ignore)
    }
}

/// Where images come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// Drawn by this program.
    Embedded {
        /// Which half.
        split: Split,
        /// How many images.
        images: NonZeroU32,
    },
    /// Parquet files with encoded images, as the Hugging Face hub keeps them.
    Parquet {
        /// The files in order.
        files: Vec<PathBuf>,
        /// Column of the images: a struct with `bytes`, or binary.
        #[serde(default = "image")]
        image: String,
        /// Column of the labels: whole numbers, or names.
        #[serde(default = "label")]
        label: String,
    },
    /// A folder of class folders.
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// Parquet files of a dataset on the Hugging Face hub.
    Hub {
        /// `owner/name`.
        repo: String,
        /// A commit (40 hexadecimal digits), or a branch or tag if every file's digest is given.
        revision: String,
        /// The files in order.
        files: Vec<HubFile>,
        /// As for `parquet`.
        #[serde(default = "image")]
        image: String,
        /// As for `parquet`.
        #[serde(default = "label")]
        label: String,
    },
}

/// A file of a dataset on the hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubFile {
    /// Path in the repository.
    pub path: String,
    /// What its SHA-256 must be; null takes the hub's word.
    #[serde(default)]
    pub sha256: Option<String>,
}

fn image() -> String {
    "image".into()
}

fn label() -> String {
    "label".into()
}

impl Source {
    pub(crate) fn open(&self, ctx: &Context, params: &Params) -> anyhow::Result<Box<dyn Reader>> {
        Ok(match self {
            Self::Embedded { split, images } => {
                let classes = embedded::CLASSES.map(String::from).to_vec();
                Box::new(Embedded { seed: params.seed, split: *split, images: images.get(), classes })
            }
            Self::Parquet { files, image, label } => {
                let local = |path: &PathBuf| Ok((ctx.local(path)?, path.display().to_string()));
                let files = files.iter().map(local).collect::<anyhow::Result<_>>()?;
                Box::new(Parquet::open(files, image, label)?)
            }
            Self::Folder { path } => Box::new(Folder::open(&ctx.local(path)?, path, params)?),
            Self::Hub { repo, revision, files, image, label } => {
                Box::new(Parquet::open(hub::find(repo, revision, files)?, image, label)?)
            }
        })
    }
}

impl Source {
    /// What errors call it.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Embedded { .. } => "the embedded set".to_owned(),
            Self::Parquet { files, .. } => files.first().map(|file| file.display().to_string()).unwrap_or_default(),
            Self::Folder { path } => path.display().to_string(),
            Self::Hub { repo, .. } => format!("hf://datasets/{repo}"),
        }
    }
}

impl Params {
    /// What types alone cannot say.
    ///
    /// # Errors
    /// [`Usage`] naming the field and the mend.
    pub fn check(&self) -> Result<(), Usage> {
        let usage = |text: &str| Err(Usage(text.into()));
        if let Some(classes) = &self.classes {
            classes.check().map_err(|fault| Usage(format!("`classes`: {fault}")))?;
        }
        if self.labels.is_some() && self.classes.is_none() {
            return usage("`labels`: it places the source's classes in others: name those in `classes`");
        }
        match &self.source {
            Source::Embedded { .. } if self.classes.is_some() => {
                usage("`classes`: the embedded set has its own: leave it null")
            }
            Source::Parquet { files, .. } if files.is_empty() => usage("`source.files`: name at least one file"),
            Source::Hub { files, .. } if files.is_empty() => usage("`source.files`: name at least one file"),
            Source::Hub { revision, files, .. } if !pinned(revision) && files.iter().any(|f| f.sha256.is_none()) => {
                usage("`source.revision`: give the commit (40 hexadecimal digits), or the sha256 of every file")
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn keep(&self, images: usize) -> Vec<u32> {
        let limit = self.limit.map_or(usize::MAX, |limit| limit.get() as usize);
        (self.offset..images as u32).step_by(self.every.get() as usize).take(limit).collect()
    }
}

fn pinned(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}
