//! Compiles the protobuf definitions in pure Rust (no `protoc` needed).

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let own = [
        "flightcache/v1/scan.proto",
        "flightcache/v1/predicate.proto",
        "flightcache/v1/aggregation.proto",
        "flightcache/v1/exchange.proto",
        "flightcache/v1/parquet.proto",
    ];
    prost_build::Config::new().compile_fds(protox::compile(own, ["proto"])?)?;
    let all = protox::compile(own.iter().chain(&["flight.proto"]), ["proto"])?;
    std::fs::write(out.join("descriptors.bin"), all.encode_to_vec())?;
    Ok(())
}
