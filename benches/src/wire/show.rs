//! Figures as tables in the terminal.

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table};

use crate::report::{WireMemory, WirePoint, WireRate};

pub(super) fn points(points: &[WirePoint]) -> Table {
    let header = [
        "data",
        "server → client",
        "batch\nrows",
        "GiB/s",
        "server\nCPU-s/GiB",
        "client\nCPU-s/GiB",
        "/ raw TCP",
        "/ pyarrow\n→ pyarrow",
    ];
    let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    let mut table = table(&header, 2);
    for point in points {
        table.add_row([
            point.data.clone(),
            point.side.clone(),
            point.batch_rows.map_or_else(String::new, |rows| rows.to_string()),
            format!("{:.2}", point.gib_per_s),
            format!("{:.3}", point.server_cpu_s_per_gib),
            format!("{:.3}", point.client_cpu_s_per_gib),
            ratio(point.to_raw),
            ratio(point.to_pyarrow),
        ]);
    }
    table
}

pub(super) fn rates(rates: &[WireRate]) -> Table {
    let mut table = table(&["1 KiB, server → client", "in flight", "requests/s", "server CPU, µs", "client CPU, µs"], 1);
    for rate in rates {
        table.add_row([
            rate.side.clone(),
            rate.in_flight.to_string(),
            format!("{:.0}", rate.requests_per_s),
            format!("{:.1}", rate.server_cpu_us),
            format!("{:.1}", rate.client_cpu_us),
        ]);
    }
    table
}

pub(super) fn memory(memory: &[WireMemory]) -> Table {
    let mut table = table(&["residency", "accounted", "RSS idle", "RSS full", "RSS peak", "growth / accounted"], 1);
    for memory in memory {
        let sizes = [memory.accounted_bytes, memory.idle_rss_bytes, memory.rss_bytes, memory.peak_rss_bytes];
        let sizes = sizes.map(|size| ByteSize(size).display().iec().to_string());
        let ratio = format!("{:.2}", memory.rss_to_accounted());
        table.add_row([memory.residency.clone()].into_iter().chain(sizes).chain([ratio]));
    }
    table
}

fn table(header: &[&str], names: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    table.column_iter_mut().skip(names).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}
