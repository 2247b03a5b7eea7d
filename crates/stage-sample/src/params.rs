//! What a sample is made of.

use std::{num::NonZeroU32, path::PathBuf};

use serde::{Deserialize, Serialize};
use stage::{Context, Unfit, Usage};

use crate::{
    Reader,
    embedded::{Embedded, Split},
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
    /// The classes in order of their labels; null takes those the source names.
    #[serde(default)]
    pub classes: Option<Classes>,
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
    /// Seed of a source that draws its images.
    #[serde(default)]
    pub seed: u64,
}

const fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// The classes of a sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Classes {
    /// Their names, in order of their labels (for a folder: which class folders, in which order).
    Names(Vec<String>),
    /// Only how many there are: they are named by number.
    Count(NonZeroU32),
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
        /// Column of the labels: integers from 0.
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
                Box::new(Embedded { seed: params.seed, split: *split, images: images.get() })
            }
            Self::Parquet { files, image, label } => {
                let local = |path: &PathBuf| Ok((ctx.local(path)?, path.display().to_string()));
                let files = files.iter().map(local).collect::<anyhow::Result<_>>()?;
                Box::new(Parquet::open(files, image, label)?)
            }
            Self::Folder { path } => Box::new(Folder::open(&ctx.local(path)?, path, params.names())?),
            Self::Hub { repo, revision, files, image, label } => {
                Box::new(Parquet::open(hub::find(repo, revision, files)?, image, label)?)
            }
        })
    }
}

impl Params {
    /// What types alone cannot say.
    ///
    /// # Errors
    /// [`Usage`] naming the field and the mend.
    pub fn check(&self) -> Result<(), Usage> {
        let usage = |text: &str| Err(Usage(text.into()));
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

    pub(crate) fn names(&self) -> Option<&[String]> {
        match &self.classes {
            Some(Classes::Names(names)) => Some(names),
            _ => None,
        }
    }

    pub(crate) fn classes(&self, known: Option<Vec<String>>) -> Result<Vec<String>, Unfit> {
        match &self.classes {
            Some(Classes::Names(names)) => Ok(names.clone()),
            Some(Classes::Count(count)) => Ok((0..count.get()).map(|class| class.to_string()).collect()),
            None => known.ok_or_else(|| {
                Unfit("the source names no classes: set `classes` to their names, or to how many there are".into())
            }),
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
