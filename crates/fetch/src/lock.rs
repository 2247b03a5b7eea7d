//! One download of a file at a time, whoever asks for it.

use std::{
    fs::{self, File as Opened, TryLockError},
    io,
    path::Path,
};

use hub::{Cache, Error, File};

/// Holds a lock until it is dropped, or its process ends.
#[derive(Debug)]
pub struct Lock {
    _file: Opened,
}

impl Lock {
    /// Waits until no other process downloads the file.
    ///
    /// # Errors
    /// If the cache's folder cannot be written.
    pub fn take(cache: &Cache, file: &File, say: &dyn Fn(&str)) -> Result<Self, Error> {
        let folder = cache.folder(file);
        let name = folder.file_name().unwrap_or_default();
        let lock = cache.root.join(".locks").join(name).join(format!("fetch-{}.lock", hub::short(&file.to_string())));
        let open = || {
            lock.parent().map_or(Ok(()), fs::create_dir_all)?;
            // A cache that holds the lock but takes no file would be found out after the download.
            fs::create_dir_all(folder.join("blobs"))?;
            Opened::options().create(true).truncate(false).write(true).open(&lock)
        };
        let opened = open().map_err(|error| unwritable(cache, file, &error))?;
        wait(&opened, file, say).map_err(|error| unwritable(cache, file, &error))?;
        Ok(Self { _file: opened })
    }

    /// Waits until whoever holds the lock file at this path lets it go.
    pub fn wait_for(path: &Path, file: &File, say: &dyn Fn(&str)) {
        // Where it cannot be opened, nobody holds it any more, or the next attempt says what is wrong.
        if let Ok(opened) = Opened::options().write(true).open(path) {
            let _ = wait(&opened, file, say);
        }
    }
}

fn wait(opened: &Opened, file: &File, say: &dyn Fn(&str)) -> io::Result<()> {
    match opened.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            say(&format!("{file}: another program is fetching it: waiting"));
            opened.lock()
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// What to do about a cache that takes no files.
pub fn unwritable(cache: &Cache, file: &File, error: &io::Error) -> Error {
    Error::Unfit(format!(
        "{file}: the cache {} cannot be written ({error}): set HF_HUB_CACHE to a folder that you may write to and that has \
         room, or let its owner run {}",
        cache.root.display(),
        file.command()
    ))
}
