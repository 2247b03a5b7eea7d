//! An ImageFolder: one folder per class, in order of their labels; in each all JPEG and PNG files, in order of their names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use stage::{
    Unfit,
    classes::{few, numbers},
};

use crate::{Item, Params, Reader, placement::Placement, seen::Listing};

pub(crate) struct Folder {
    /// The folder as the parameters name it.
    name: String,
    classes: Vec<String>,
    /// Class, path below the folder, and path of every image.
    images: Vec<(usize, String, PathBuf)>,
    notes: Vec<String>,
}

/// Extensions of what is read.
const READ: [&str; 3] = ["jpg", "jpeg", "png"];

/// Extensions of images that are not read.
const OTHERS: [&str; 17] = [
    "avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jxl", "pbm", "pgm", "ppm", "svg", "tga", "tif",
    "tiff", "webp",
];

/// Names of folders that hold classes, and are none.
const SPLITS: [&str; 9] = ["train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"];

/// What a walk through the class folders leaves out.
#[derive(Default)]
struct LeftOut {
    hidden: usize,
    no_images: usize,
    /// Images of other formats: how many, and the first.
    others: usize,
    first_other: Option<PathBuf>,
}

impl Folder {
    /// Lists the images of a folder that belong to the classes which the parameters ask for, in order of their labels.
    pub(crate) fn open(folder: &Path, name: &Path, params: &Params) -> anyhow::Result<Self> {
        let mut found = Self::list(folder, name, params.classes.is_some())?;
        let placement = Placement::new(Some(&found.classes), params, true)
            .map_err(|unfit| Unfit(format!("{}: {unfit}", found.name)))?;
        found.arrange(&placement);
        Ok(found)
    }

    /// Lists a folder; where the classes are `stated` elsewhere, folders without images are none.
    fn list(folder: &Path, name: &Path, stated: bool) -> anyhow::Result<Self> {
        let name = name.display().to_string();
        let mut left_out = LeftOut::default();
        let (folders, files): (Vec<_>, Vec<_>) = list(folder)?.into_iter().partition(|(_, path)| path.is_dir());
        let loose =
            files.iter().filter(|(file, _)| !is_hidden(file) && READ.contains(&extension(file).as_str())).count();
        let (mut classes, mut images) = (Vec::new(), Vec::new());
        for (class, path) in folders {
            if is_hidden(&class) {
                left_out.hidden += 1;
            } else {
                collect(&path, &class, classes.len(), &mut images, &mut left_out)?;
                classes.push(class);
            }
        }
        if classes.is_empty() {
            let loose = if loose > 0 { format!(" ({loose} images lie in it without one)") } else { String::new() };
            let text = format!("{name}: no class folders{loose}: give the folder that holds a folder for each class");
            return Err(Unfit(text).into());
        }
        if let (others @ 1.., Some(first)) = (left_out.others, &left_out.first_other) {
            let text = format!(
                "{name}: {others} images are neither PNG nor JPEG, or not named so (the first is {}):",
                first.display()
            );
            return Err(Unfit(format!("{text} convert them to PNG, or move them out of the folder")).into());
        }
        check_levels(&name, &classes, &images)?;
        let mut found = Self { name, classes, images, notes: Vec::new() };
        found.drop_empty(stated)?;
        found.note(&left_out, loose);
        Ok(found)
    }

    /// Drops folders without images from the classes, unless they are numbers.
    fn drop_empty(&mut self, stated: bool) -> Result<(), Unfit> {
        let mut sizes = vec![0; self.classes.len()];
        self.images.iter().for_each(|(class, ..)| sizes[*class] += 1);
        let Some(empty) = sizes.iter().position(|&size| size == 0) else { return Ok(()) };
        if numbers(&self.classes).is_some() {
            return Ok(());
        }
        if !stated || self.images.is_empty() {
            let text =
                format!("{}/{}: no jpg, jpeg or png file: add some or remove it", self.name, self.classes[empty]);
            return Err(Unfit(format!("{text}, or name the classes in `classes`")));
        }
        let mut to = Vec::new();
        let mut kept = Vec::new();
        for (class, &size) in self.classes.iter().zip(&sizes) {
            to.push(kept.len());
            if size > 0 {
                kept.push(class.clone());
            }
        }
        self.images.iter_mut().for_each(|(class, ..)| *class = to[*class]);
        self.classes = kept;
        Ok(())
    }

    fn note(&mut self, left_out: &LeftOut, loose: usize) {
        let counted = [
            (loose, "images beside the class folders"),
            (left_out.hidden, "hidden files or folders"),
            (left_out.no_images, "files that are no images"),
        ];
        for (count, what) in counted.into_iter().filter(|(count, _)| *count > 0) {
            self.notes.push(format!("{}: {count} {what} are left out", self.name));
        }
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

/// Refuses a folder whose folders are splits, or one class, of which the folders within may be the classes.
fn check_levels(name: &str, classes: &[String], images: &[(usize, String, PathBuf)]) -> Result<(), Unfit> {
    let nested = images.iter().all(|(_, path, _)| path.matches('/').count() > 1);
    let splits = classes.iter().all(|class| SPLITS.contains(&class.to_ascii_lowercase().as_str()));
    if images.is_empty() || !nested || !(splits || classes.len() == 1) {
        return Ok(());
    }
    let mend = format!("give the folder that holds the class folders, as {name}/{}", classes[0]);
    let what = if splits { "folders of splits" } else { "one folder" };
    Err(Unfit(format!(
        "{name}: holds {what} ({}), whose images lie in folders within: {mend}",
        few(classes, "", "").trim()
    )))
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name.starts_with("__")
}

fn extension(name: &str) -> String {
    Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// Adds the images of a folder, its own before those of folders within, both in order of their names.
fn collect(
    folder: &Path,
    name: &str,
    class: usize,
    images: &mut Vec<(usize, String, PathBuf)>,
    left_out: &mut LeftOut,
) -> anyhow::Result<()> {
    let (folders, files): (Vec<_>, Vec<_>) = list(folder)?.into_iter().partition(|(_, path)| path.is_dir());
    for (file, path) in files {
        let extension = extension(&file);
        if is_hidden(&file) {
            left_out.hidden += 1;
        } else if READ.contains(&extension.as_str()) {
            images.push((class, format!("{name}/{file}"), path));
        } else if OTHERS.contains(&extension.as_str()) {
            left_out.others += 1;
            left_out.first_other.get_or_insert(path);
        } else {
            left_out.no_images += 1;
        }
    }
    for (inner, path) in folders {
        if is_hidden(&inner) {
            left_out.hidden += 1;
            continue;
        }
        if path.is_symlink()
            && fs::canonicalize(folder).is_ok_and(|here| fs::canonicalize(&path).is_ok_and(|to| here.starts_with(to)))
        {
            return Err(Unfit(format!("{}: a link to a folder that it is in: remove it", path.display())).into());
        }
        collect(&path, &format!("{name}/{inner}"), class, images, left_out)?;
    }
    Ok(())
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

    fn classes(&self) -> Option<&[String]> {
        Some(&self.classes)
    }

    fn selects(&self) -> bool {
        true
    }

    /// Images are in the order of their classes.
    fn arrange(&mut self, placement: &Placement) {
        let to = |class: usize| placement.label(class as i64).ok().flatten();
        self.images.retain(|(class, ..)| to(*class).is_some());
        self.images.sort_by_key(|(class, ..)| to(*class));
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
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
