//! Generates the Rust types of `weft.v1` with protox, a protobuf compiler in Rust: no protoc is needed.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 9] =
    ["bundle", "common", "fleet", "noded", "object", "operator", "policy", "service", "stream"];

fn main() -> Result<(), Box<dyn Error>> {
    let files = FILES.map(|name| format!("weft/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("weft.v1.bin");
    fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Ordered maps: the same message always has the same bytes, which digests and diffs rely on.
        .btree_map(".")
        .codec_path("crate::codec::SmallBuffers")
        // Delta bytes are shared between all the nodes they are sent to.
        .bytes(".weft.v1.Upsert.bytes")
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=weft");
    Ok(())
}
