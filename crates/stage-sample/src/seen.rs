//! Whether a folder is still what a sample was made from, as a rule without reading its files.
//!
//! The sample's provenance holds the name, size and SHA-256 of each file. Beside the table, `part-I-of-N.seen` holds what the
//! file system said of each when it was read; only files of which it says something else now are read again. Nothing
//! depends on that file: without it all are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use artifact::{Entry, Manifest};
use rayon::prelude::*;

use crate::{Params, Reader as _, Source, folder::Folder};

/// The files of a folder that a sample is made from.
pub(crate) struct Listing {
    /// The folder as the parameters name it.
    pub name: String,
    /// Name below the folder and path of each file.
    pub files: Vec<(String, PathBuf)>,
}

/// What the file system says of a file: its size, and when its content and its place in the file system changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    size: u64,
    modified: i128,
    changed: i128,
}

impl Mark {
    #[cfg(unix)]
    fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = fs::metadata(path)?;
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        let modified = nanoseconds(metadata.mtime(), metadata.mtime_nsec());
        // Nobody can set this one: a file moved here with an old time has a new one.
        let changed = nanoseconds(metadata.ctime(), metadata.ctime_nsec());
        Ok(Self { size: metadata.len(), modified, changed })
    }

    #[cfg(not(unix))]
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let since = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let modified = since.as_nanos() as i128;
        Ok(Self { size: metadata.len(), modified, changed: modified })
    }
}

impl Listing {
    fn marks(&self) -> artifact::Result<Vec<Mark>> {
        self.files.par_iter().map(|(_, path)| Mark::of(path).map_err(|e| artifact::Error::reading(path, e))).collect()
    }

    /// Reads every file, and notes beside the table what the file system said before.
    pub fn record(&self, table: &Path) -> artifact::Result<Manifest> {
        let marks = self.marks()?;
        let manifest = self.read(&marks)?;
        artifact::write_atomic(&beside(table), self.note(&manifest.digest(), &marks).as_bytes())?;
        Ok(manifest)
    }

    fn read(&self, marks: &[Mark]) -> artifact::Result<Manifest> {
        let entry = |((name, path), mark): (&(String, PathBuf), &Mark)| {
            Ok(Entry { name: name.clone(), size: mark.size, sha256: artifact::sha256(path)? })
        };
        Ok(Manifest { entries: self.files.par_iter().zip(marks).map(entry).collect::<artifact::Result<_>>()? })
    }

    /// The folder's digest, then a line for each file.
    fn note(&self, digest: &str, marks: &[Mark]) -> String {
        let mut text = format!("{digest}\n");
        for ((name, _), mark) in self.files.iter().zip(marks) {
            writeln!(text, "{} {} {} {name}", mark.size, mark.modified, mark.changed).expect("a string takes all");
        }
        text
    }
}

fn beside(table: &Path) -> PathBuf {
    table.with_extension("seen")
}

/// What was noted beside a table, if it was about a folder of this digest.
fn noted(text: &str, digest: &str) -> Option<BTreeMap<String, Mark>> {
    let mut lines = text.lines();
    lines.next().filter(|line| *line == digest)?;
    let mark = |line: &str| {
        let [size, modified, changed, name]: [&str; 4] = line.splitn(4, ' ').collect::<Vec<_>>().try_into().ok()?;
        let mark = Mark { size: size.parse().ok()?, modified: modified.parse().ok()?, changed: changed.parse().ok()? };
        Some((name.to_owned(), mark))
    };
    lines.map(mark).collect()
}

/// Why a sample of a folder must be made again; none where the folder holds what it was made from, where the sample is of no
/// folder, or where `table` cannot be read, which whoever needs it will say.
///
/// Files are read only where the file system says something else of them than when they were last read; `say` is told when
/// these are many. `folder` is where the folder is.
#[must_use]
pub fn stale(params: &Params, folder: &Path, table: &Path, say: &dyn Fn(&str)) -> Option<String> {
    let Source::Folder { path } = &params.source else { return None };
    let provenance = artifact::provenance(table).ok()?;
    let name = path.display().to_string();
    let recorded = provenance.inputs.get(&name)?;
    let found = Folder::open(folder, path, params)
        .map(|folder| folder.listing(&params.keep(folder.len())))
        .and_then(|listing| Ok((listing.marks()?, listing)));
    let (marks, listing) = match found {
        Ok(found) => found,
        Err(error) => return Some(format!("{error:#}")),
    };
    let note = listing.note(recorded, &marks);
    let before = fs::read_to_string(beside(table)).unwrap_or_default();
    if note == before {
        return None;
    }
    let before = noted(&before, recorded).unwrap_or_default();
    let manifest = provenance.folders().remove(&name).unwrap_or_default();
    let new = listing.files.iter().zip(&marks).filter(|((name, _), mark)| before.get(name) != Some(mark)).count();
    if new > 1000 {
        say(&format!("{name}: reading {new} images of which the file system says something new"));
    }
    let reason = if manifest.entries.is_empty() {
        // An earlier version recorded the folder's digest alone.
        let now = listing.read(&marks).ok().map(|manifest| manifest.digest());
        (now.as_ref() != Some(recorded)).then(|| "its images are not what they were".to_owned())
    } else {
        difference(&manifest, &listing, &marks, &before)
    };
    if reason.is_none() {
        let _ = artifact::write_atomic(&beside(table), note.as_bytes());
    }
    reason.map(|reason| format!("{name}: {reason}"))
}

/// What differs from a manifest, in words.
fn difference(
    manifest: &Manifest,
    listing: &Listing,
    marks: &[Mark],
    before: &BTreeMap<String, Mark>,
) -> Option<String> {
    let known: BTreeMap<&str, &Entry> = manifest.entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let here: BTreeSet<&str> = listing.files.iter().map(|(name, _)| name.as_str()).collect();
    let is_same = |entry: &Entry, path: &Path, mark: &Mark| {
        entry.size == mark.size
            && (before.get(&entry.name) == Some(mark)
                || artifact::sha256(path).is_ok_and(|digest| digest == entry.sha256))
    };
    let changed = listing.files.par_iter().zip(marks).filter_map(|((name, path), mark)| {
        let entry = known.get(name.as_str())?;
        (!is_same(entry, path, mark)).then_some(name.as_str())
    });
    let names: [(&str, Vec<&str>); 3] = [
        ("changed", changed.collect()),
        ("gone", known.keys().filter(|name| !here.contains(*name)).copied().collect()),
        ("new", here.iter().filter(|name| !known.contains_key(*name)).copied().collect()),
    ];
    let parts = names.iter().filter_map(|(what, names)| {
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        Some(format!("{what}: {}{more}", names.first()?))
    });
    let parts = parts.collect::<Vec<_>>().join(", ");
    if parts.is_empty() {
        let moved = manifest.entries.iter().map(|entry| &entry.name).ne(listing.files.iter().map(|(name, _)| name));
        return moved.then(|| "its images are in another order".to_owned());
    }
    Some(parts)
}
