//! `flightcache-bench wire` as it is run, on tables so small that its figures say nothing.

use std::process::Command;

#[test]
fn all_sides_read_the_same_and_are_reported() {
    let place = std::env::temp_dir().join(format!("flightcache-wire-{}", std::process::id()));
    std::fs::create_dir(&place).unwrap();
    let (json, html) = (place.join("wire.json"), place.join("wire.html"));
    // Without pyarrow, which is not everywhere.
    let output = Command::new(env!("CARGO_BIN_EXE_flightcache-bench"))
        .args([
            "wire", "--rows", "20000", "--bytes", "1KiB", "--rounds", "1", "--tables", "--small", "--rss", "--python", "false",
        ])
        .args([std::ffi::OsStr::new("--json"), json.as_os_str(), std::ffi::OsStr::new("--html"), html.as_os_str()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let wire: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let wire = &wire["wire"];
    let points = wire["points"].as_array().unwrap();
    // Our server, raw TCP, and three of arrow-rs with two sizes of batches, for three tables.
    assert_eq!(points.len(), 3 * (2 + 3 * 2));
    assert!(points.iter().all(|point| point["gib_per_s"].as_f64().unwrap() > 0.0));
    // Our server twice, by DoGet and by DoExchange, and arrow-rs.
    assert_eq!(wire["rates"].as_array().unwrap().len(), 3 * 3);
    let memory = wire["memory"].as_array().unwrap();
    let accounted = |at: usize| memory[at]["accounted_bytes"].as_u64().unwrap();
    assert!(accounted(0) > 20_000 * 300 && accounted(1) > 1 << 20, "{memory:?}");
    assert!(std::fs::read_to_string(html).unwrap().contains("The wire"));
    std::fs::remove_dir_all(place).unwrap();
}
