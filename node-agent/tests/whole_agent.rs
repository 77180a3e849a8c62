//! The whole agent with everything real: its own process, the kernel and a registry on loopback. Needs root,
//! nft and a static busybox at `/usr/bin/busybox`; where one is missing the tests fail.

#[cfg(test)]
mod whole_agent {
    mod bench;
    mod larderctl;
    mod pods;
    mod registry;
    mod survival;
}
