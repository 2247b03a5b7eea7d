//! An ImageFolder: one folder per class, in order of their names; in each all JPEG and PNG files, in order of theirs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use stage::Unfit;

use crate::{Item, Reader, seen::Listing};

pub(crate) struct Folder {
    /// The folder as the parameters name it.
    name: String,
    classes: Vec<String>,
    /// Label, path below the folder, and path of every image.
    images: Vec<(usize, String, PathBuf)>,
}

impl Folder {
    /// Lists a folder; `classes` selects and orders its class folders.
    pub(crate) fn open(folder: &Path, name: &Path, classes: Option<&[String]>) -> anyhow::Result<Self> {
        let name = name.display().to_string();
        let classes = match classes {
            Some(classes) => classes.to_vec(),
            None => list(folder)?.into_iter().filter(|(_, path)| path.is_dir()).map(|(name, _)| name).collect(),
        };
        if classes.is_empty() {
            return Err(Unfit(format!("{name}: no class folders: give the folder that holds them")).into());
        }
        let mut images = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            let before = images.len();
            collect(&folder.join(class), class, label, &mut images)?;
            if images.len() == before {
                return Err(Unfit(format!("{name}/{class}: no jpg, jpeg or png file: add some or remove it")).into());
            }
        }
        Ok(Self { name, classes, images })
    }

    /// The files of these images.
    pub(crate) fn listing(&self, ids: &[u32]) -> Listing {
        let file = |&id: &u32| {
            let (_, name, path) = &self.images[id as usize];
            (name.clone(), path.clone())
        };
        Listing { name: self.name.clone(), files: ids.iter().map(file).collect() }
    }
}

/// Adds the images of a folder, its own before those of folders within, both in order of their names.
fn collect(folder: &Path, name: &str, label: usize, images: &mut Vec<(usize, String, PathBuf)>) -> anyhow::Result<()> {
    let (folders, files): (Vec<_>, Vec<_>) = list(folder)?.into_iter().partition(|(_, path)| path.is_dir());
    for (file, path) in files {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if ["jpg", "jpeg", "png"].contains(&extension.as_str()) {
            images.push((label, format!("{name}/{file}"), path));
        }
    }
    folders.into_iter().try_for_each(|(inner, path)| collect(&path, &format!("{name}/{inner}"), label, images))
}

/// The entries of a folder in order of their names.
fn list(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let fail = |text: String| Unfit(format!("{}: {text}", folder.display()));
    let entries = fs::read_dir(folder).map_err(|e| fail(format!("cannot be listed: {e}: check the path")))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| fail(e.to_string()))?;
        let name = entry.file_name().into_string();
        let name = name.map_err(|n| fail(format!("{}: not UTF-8: rename it", n.to_string_lossy())))?;
        names.push((name, entry.path()));
    }
    names.sort();
    Ok(names)
}

fn bytes(path: &Path) -> Result<Vec<u8>, Unfit> {
    fs::read(path).map_err(|e| Unfit(format!("{}: cannot be read: {e}: check its permissions", path.display())))
}

impl Reader for Folder {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> Option<Vec<String>> {
        Some(self.classes.clone())
    }

    /// None beside its files, which [`Reader::listing`] names.
    fn inputs(&self, _ids: &[u32]) -> anyhow::Result<Vec<(String, String)>> {
        Ok(Vec::new())
    }

    fn listing(&self, ids: &[u32]) -> Option<Listing> {
        Some(self.listing(ids))
    }

    fn read(&self, ids: &[u32], each: &mut dyn FnMut(Item) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for &id in ids {
            let (label, name, path) = &self.images[id as usize];
            let place = path.display().to_string();
            each(Item { id, label: *label as i64, bytes: bytes(path)?, path: name.clone(), place })?;
        }
        Ok(())
    }
}
