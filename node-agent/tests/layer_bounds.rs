//! Layers that mean harm, in a process that does nothing else: what they take of its memory and of the disk stays within the
//! bounds that the flags set. Needs root, for a small disk.

#[cfg(test)]
mod layer_bounds {
    mod bombs;
    mod entries;
    mod peak;
    mod registry;
}
