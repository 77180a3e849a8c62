//! What every runtime has to do, run with the real programs: the monitor alone, crun, and runc as its most different relative.
//! Needs root, cgroups, both runtimes and a static busybox at `/usr/bin/busybox`; where one is missing the suite fails.

mod bench;
mod confinement;
mod lifecycle;
mod spares;
mod surroundings;
mod survival;
