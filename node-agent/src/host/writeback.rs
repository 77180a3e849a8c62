//! Starts writing a file's pages to disk early, so that the final sync of a large file has little left to do.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Asks the kernel to begin writing these bytes of the file; does not wait for it.
///
/// # Errors
/// What the kernel says; the data are not lost by it, only not on their way yet.
#[expect(unsafe_code, reason = "rustix has no sync_file_range")]
pub fn begin(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let to_offset = |value: u64| i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (offset, length) = (to_offset(offset)?, to_offset(length)?);
    // SAFETY: takes a descriptor, which `file` keeps open for the time of the call, and three numbers; touches no memory.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
