//! Who the container's process is, and what it may do.

use std::io;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::spec::Process;
use super::{Failure, OrFailure};
use crate::sys;

/// Gives this process the container's user, capabilities and system call filter.
pub(super) fn confine(process: &Process, filter: Option<Vec<u8>>) -> Result<(), Failure> {
    // The keys of whoever started the agent are nothing to the container.
    match sys::new_session_keyring() {
        Err(err) if err.raw_os_error() == Some(libc::ENOSYS) => {}
        joined => joined.or_failure(|| "make a keyring".into())?,
    }
    bound(process.capabilities.bounding).or_failure(|| "bound capabilities".into())?;
    let load = |filter: &[u8]| sys::load_filter(filter).or_failure(|| "load the system call filter".into());
    // Who may gain privileges can be given a filter by an administrator alone, which the process is not for much longer. It
    // lets through all that follows here.
    if let Some(filter) = filter.as_deref().filter(|_| !process.no_new_privileges) {
        load(filter)?;
    }
    become_user(process).or_failure(|| format!("become user {}", process.user.uid))?;
    let sets = CapabilitySets {
        effective: process.capabilities.effective,
        permitted: process.capabilities.permitted,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).or_failure(|| "set capabilities".into())?;
    if process.no_new_privileges {
        set_no_new_privs(true).or_failure(|| "forbid new privileges".into())?;
        if let Some(filter) = filter.as_deref() {
            load(filter)?;
        }
    }
    Ok(())
}

/// Drops all capabilities that this kernel knows, but `kept`, for good.
fn bound(kept: CapabilitySet) -> rustix::io::Result<()> {
    clear_ambient_capability_set()?;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

fn become_user(process: &Process) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(process.user.uid), Gid::from_raw(process.user.gid));
    let groups: Vec<Gid> = process.user.additional_gids.iter().copied().map(Gid::from_raw).collect();
    // Otherwise capabilities would go with the user.
    set_keep_capabilities(true)?;
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_keep_capabilities(false)?;
    Ok(())
}
