//! Tables for people.

use bytesize::ByteSize;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use flightcache::action::{ObjectInfo, Stats};
use flightcache::{Result, SlotMap};

use crate::output::say;

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
    let bytes = |bytes: u64| ByteSize(bytes).to_string();
    let looked_up = stats.chunks_hit + stats.chunks_missed;
    let hit_rate =
        if looked_up == 0 { "–".to_owned() } else { format!("{:.1} %", stats.chunks_hit as f64 * 100.0 / looked_up as f64) };
    let figures = [
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
        ("served", format!("{} in {} scans", bytes(stats.served_bytes), stats.scans)),
    ];
    for (name, value) in figures {
        rows.add_row(vec![name.to_owned(), value]);
    }
    say(&rows.to_string())
}

pub(crate) fn slots(map: &SlotMap) -> Result<()> {
    let mut rows = table(&["slots", "node", "location"], 3);
    for range in map.ranges() {
        for &owner in &range.owners {
            let node = &map.nodes()[owner as usize];
            rows.add_row(vec![
                format!("{}–{}", range.start, range.end),
                node.id.clone(),
                node.uri.clone().unwrap_or_else(|| "this connection".to_owned()),
            ]);
        }
    }
    say(&format!("epoch {}\n{rows}", map.epoch()))
}
