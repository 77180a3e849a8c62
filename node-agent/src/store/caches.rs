//! `caches/<id>.json`: what image caches hold, one file a cache. The file is the truth of the cache.

use std::fs;
use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use super::durable;
use super::layout::Layout;

/// Writes a cache's file, durably, in place of an older one.
///
/// # Errors
/// When the id could not be a file's name, or the file system refuses.
pub fn put<T: Serialize>(layout: &Layout, id: &str, cache: &T) -> Result<(), StoreError> {
    let path = layout.cache(id).ok_or_else(|| invalid(layout, id))?;
    let write = |file: &mut fs::File| serde_json::to_writer_pretty(file, cache).map_err(io::Error::from);
    durable::write_file(&path, &layout.unfinished("cache"), write).map_err(StoreError::io("write", &path))
}

/// All caches by id, in order. A file that cannot be read as one is passed over with a warning: the others still count.
///
/// # Errors
/// When the directory cannot be read.
pub fn list<T: DeserializeOwned>(layout: &Layout) -> Result<Vec<(String, T)>, StoreError> {
    let directory = layout.caches();
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).map_err(StoreError::io("read", &directory))? {
        let path = entry.map_err(StoreError::io("read", &directory))?.path();
        let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
        let Some(id) = id else { continue };
        match fs::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
        {
            Ok(cache) => found.push((id.to_owned(), cache)),
            Err(error) => tracing::warn!(path = %path.display(), error, "image cache file cannot be read"),
        }
    }
    found.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(found)
}

/// Removes a cache's file. One that is not there is not an error.
///
/// # Errors
/// When the id could not be a file's name, or the file system refuses.
pub fn remove(layout: &Layout, id: &str) -> Result<(), StoreError> {
    let path = layout.cache(id).ok_or_else(|| invalid(layout, id))?;
    durable::remove(&path)
        .and_then(|()| durable::sync_directory(&layout.caches()))
        .map_err(StoreError::io("remove", &path))
}

fn invalid(layout: &Layout, id: &str) -> StoreError {
    let shown: String = id.chars().take(80).collect();
    StoreError::io("name", &layout.caches().join(shown))(io::ErrorKind::InvalidInput.into())
}
