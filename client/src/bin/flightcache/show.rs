//! Tables for people.

use bytesize::ByteSize;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use flightcache::action::{ObjectInfo, Stats};
use flightcache::{Result, SlotMap};
use flightcache_proto::{Node, SLOT_COUNT};
use serde::Serialize;

use crate::output::say;

/// Of a node's id, what tables show where many are side by side.
const SHORT_ID_CHARS: usize = 8;

/// A table; columns from `numbers` on are aligned right.
pub(crate) fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic).set_header(header.to_vec());
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

pub(crate) fn info(objects: &[ObjectInfo]) -> Result<()> {
    for object in objects {
        say(&format!(
            "{}\n{} in {} rows, {} row groups; {} resident; version {}",
            object.url,
            ByteSize(object.size_bytes),
            object.rows,
            object.row_groups.len(),
            ByteSize(object.resident_bytes),
            object.version.as_deref().unwrap_or("none (never cached)")
        ))?;
        let mut columns = table(&["column", "type", "compressed", "resident", "chunks"], 2);
        for column in &object.columns {
            let null = if column.nullable { "" } else { " not null" };
            columns.add_row(vec![
                column.name.clone(),
                format!("{}{null}", column.data_type),
                ByteSize(column.compressed_bytes).to_string(),
                ByteSize(column.resident_bytes).to_string(),
                format!("{}/{}", column.resident_chunks, object.row_groups.len()),
            ]);
        }
        say(&columns.to_string())?;
        let mut groups = table(&["row group", "rows", "compressed", "uncompressed", "slot", "chunks"], 0);
        for (index, group) in object.row_groups.iter().enumerate() {
            groups.add_row(vec![
                index.to_string(),
                group.rows.to_string(),
                ByteSize(group.compressed_bytes).to_string(),
                ByteSize(group.uncompressed_bytes).to_string(),
                group.slot.to_string(),
                format!("{}/{}", group.resident_chunks, object.columns.len()),
            ]);
        }
        say(&format!("{groups}\n"))?;
    }
    Ok(())
}

pub(crate) fn stats(stats: &Stats) -> Result<()> {
    let mut rows = table(&["figure", "value"], 1);
    for (name, value) in figures(stats) {
        rows.add_row(vec![name.to_owned(), value]);
    }
    say(&rows.to_string())
}

/// A column a server, and one of their sums.
pub(crate) fn cluster_stats(nodes: &[(Node, Result<Stats>)]) -> Result<()> {
    let told = || nodes.iter().filter_map(|(node, stats)| Some((node, stats.as_ref().ok()?)));
    let all: Stats = told().map(|(_, stats)| stats.clone()).sum();
    let short = |node: &Node| node.id.chars().take(SHORT_ID_CHARS).collect::<String>();
    let header: Vec<String> =
        std::iter::once("figure".to_owned()).chain(told().map(|(node, _)| short(node))).chain(["all".to_owned()]).collect();
    let mut rows = table(&header.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    let columns: Vec<_> = told().map(|(_, stats)| figures(stats)).chain([figures(&all)]).collect();
    for (at, (name, _)) in figures(&all).into_iter().enumerate() {
        rows.add_row(std::iter::once(name.to_owned()).chain(columns.iter().map(|column| column[at].1.clone())));
    }
    say(&rows.to_string())?;
    for (node, error) in nodes.iter().filter_map(|(node, stats)| Some((node, stats.as_ref().err()?))) {
        say(&format!("{} at {}: {error}", node.id, location(node)))?;
    }
    Ok(())
}

/// A server's figures, or why there are none.
#[derive(Serialize)]
pub(crate) struct OfNode<'a> {
    node: &'a Node,
    stats: Option<&'a Stats>,
    error: Option<String>,
}

pub(crate) fn by_node(nodes: &[(Node, Result<Stats>)]) -> Vec<OfNode<'_>> {
    nodes
        .iter()
        .map(|(node, stats)| OfNode { node, stats: stats.as_ref().ok(), error: stats.as_ref().err().map(ToString::to_string) })
        .collect()
}

fn figures(stats: &Stats) -> Vec<(&'static str, String)> {
    let bytes = |bytes: u64| ByteSize(bytes).to_string();
    let looked_up = stats.chunks_hit + stats.chunks_missed;
    let hit_rate =
        if looked_up == 0 { "–".to_owned() } else { format!("{:.1} %", stats.chunks_hit as f64 * 100.0 / looked_up as f64) };
    vec![
        ("server version", stats.version.clone()),
        ("uptime", format!("{} s", stats.uptime_s)),
        ("capacity", bytes(stats.capacity_bytes)),
        ("reserve", bytes(stats.reserve_bytes)),
        ("resident", format!("{} in {} chunks", bytes(stats.resident_bytes), stats.resident_chunks)),
        ("resident as Arrow", bytes(stats.resident_arrow_bytes)),
        ("resident as Parquet", bytes(stats.resident_parquet_bytes)),
        ("in flight", bytes(stats.in_flight_bytes)),
        ("evicted but streaming", bytes(stats.streaming_bytes)),
        ("footers", format!("{} in {}", bytes(stats.footer_bytes), stats.resident_footers)),
        ("chunks hit", stats.chunks_hit.to_string()),
        ("chunks missed", format!("{} ({} joined a load)", stats.chunks_missed, stats.chunks_joined)),
        ("hit rate", hit_rate),
        ("chunks decoded of bytes kept", stats.chunks_decoded.to_string()),
        ("evictions", stats.evictions.to_string()),
        ("store requests", stats.store_requests.to_string()),
        ("store bytes", bytes(stats.store_bytes)),
        ("from other servers", format!("{} in {} chunks", bytes(stats.pulled_bytes), stats.chunks_pulled)),
        ("served", format!("{} in {} scans", bytes(stats.served_bytes), stats.scans)),
    ]
}

pub(crate) fn slots(map: &SlotMap) -> Result<()> {
    let mut rows = table(&["slots", "owner", "location"], 3);
    for range in map.ranges() {
        for &owner in &range.owners {
            let node = &map.nodes()[owner as usize];
            rows.add_row(vec![format!("{}–{}", range.start, range.end), node.id.clone(), location(node)]);
        }
    }
    say(&format!("epoch {}\n{rows}", map.epoch()))
}

pub(crate) fn nodes(map: &SlotMap) -> Result<()> {
    let mut rows = table(&["node", "location", "state", "weight", "slots", "share"], 3);
    for (node, owned) in map.nodes().iter().zip(map.slots_owned()) {
        let share = f64::from(owned.preferred) * 100.0 / f64::from(SLOT_COUNT);
        // Where slots have several owners: those it is preferred for, of those it owns.
        let slots =
            if owned.total == owned.preferred { owned.total.to_string() } else { format!("{}/{}", owned.preferred, owned.total) };
        rows.add_row(vec![
            node.id.clone(),
            location(node),
            node.state.as_str().to_owned(),
            node.weight.to_string(),
            slots,
            format!("{share:.1} %"),
        ]);
    }
    say(&format!("epoch {}\n{rows}", map.epoch()))
}

/// A node, and how many slots it owns.
#[derive(Serialize)]
pub(crate) struct Owning<'a> {
    #[serde(flatten)]
    node: &'a Node,
    slots_preferred: u32,
    slots_owned: u32,
}

pub(crate) fn owning(map: &SlotMap) -> Vec<Owning<'_>> {
    let nodes = map.nodes().iter().zip(map.slots_owned());
    nodes.map(|(node, owned)| Owning { node, slots_preferred: owned.preferred, slots_owned: owned.total }).collect()
}

fn location(node: &Node) -> String {
    node.uri.clone().unwrap_or_else(|| "this connection".to_owned())
}
