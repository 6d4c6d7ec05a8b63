//! Compiles the protobuf definitions in pure Rust (no `protoc` needed).

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let own = protox::compile(["flightcache/v1/scan.proto", "flightcache/v1/exchange.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(own)?;
    let all = protox::compile(["flightcache/v1/scan.proto", "flightcache/v1/exchange.proto", "flight.proto"], ["proto"])?;
    std::fs::write(out.join("descriptors.bin"), all.encode_to_vec())?;
    Ok(())
}
