//! Free TCP ports, for clusters that run beside others.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// As many different TCP ports as asked for, free on loopback at this moment. Another program may take one before it is
/// used; the kernel gives out ports in turn, so that is rare.
///
/// # Errors
/// When the kernel has none left.
pub fn free<const N: usize>() -> io::Result<[u16; N]> {
    // All are held until the last is known, or the kernel could give the same one twice.
    let mut listeners = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_differ() {
        let [a, b, c] = super::free().expect("find ports");
        assert!(a != b && b != c && a != c);
    }
}
