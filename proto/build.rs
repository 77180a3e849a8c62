//! Compiles the `.proto` files without a `protoc` binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=agent");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files([
        "agent/v1/pod.proto",
        "agent/v1/image_cache.proto",
        "agent/v1/node.proto",
        "agent/v1/pull.proto",
        "agent/v1/store.proto",
    ])?;
    tonic_prost_build::configure().bytes(".").compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
