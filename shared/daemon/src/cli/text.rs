//! Reports as text for people: columns, elapsed times, links.

use std::fmt::Debug;
use std::time::Duration;

use crate::config::{format_duration, format_size};
use crate::control::{ByteCounts, FlowCounts, LinkReport};

/// Rows as aligned columns, two spaces apart.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell_width =
        |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter()
                .map(|row| cell_width(row, column))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A time that has passed, as exact as a person cares: `41ms`, `1.2s`, `1m33s`, `2h5m`, `3d4h`.
pub fn elapsed(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format_duration(Duration::from_secs(ms / 1_000)),
        3_600_000..86_400_000 => format_duration(Duration::from_secs(ms / 60_000 * 60)),
        86_400_000.. => format_duration(Duration::from_secs(ms / 3_600_000 * 3_600)),
    }
}

/// Bytes in both directions.
pub fn both_ways(bytes: ByteCounts) -> String {
    format!(
        "{} up, {} down",
        format_size(bytes.up),
        format_size(bytes.down)
    )
}

/// Flows by protocol, those that there are.
pub fn flow_counts(flows: FlowCounts) -> String {
    let kinds = [(flows.tcp, "tcp"), (flows.udp, "udp"), (flows.icmp, "icmp")];
    let some: Vec<String> = kinds
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, kind)| format!("{count} {kind}"))
        .collect();
    if some.is_empty() {
        "none".to_owned()
    } else {
        some.join(", ")
    }
}

/// A link in one line.
pub fn link_line(link: &LinkReport) -> String {
    let mut line = format!("{} {} -> {}", link.transport, link.local, link.remote);
    if let Some(interface) = &link.interface {
        line.push_str(&format!(" on {interface}"));
    }
    line.push_str(&format!(", up {}", elapsed(link.up_ms)));
    if let Some(rtt_us) = link.rtt_us {
        line.push_str(&format!(
            ", rtt {}.{} ms",
            rtt_us / 1_000,
            rtt_us % 1_000 / 100
        ));
    }
    if let Some(congestion_control) = &link.congestion_control {
        line.push_str(&format!(", {congestion_control}"));
    }
    line
}

/// The name of a state, as in JSON.
pub fn state_name(state: impl Debug) -> String {
    format!("{state:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();

        let text = columns(&[row(["ID", "STATE"]), row(["1234", "open"]), row(["5", ""])]);

        assert_eq!(text, "ID    STATE\n1234  open\n5\n");
    }

    #[test]
    fn elapsed_times_get_coarser_as_they_grow() {
        for (ms, text) in [
            (0, "0ms"),
            (41, "41ms"),
            (1_250, "1.2s"),
            (93_400, "1m33s"),
            (7_530_000, "2h5m"),
            (273_600_000, "3d4h"),
        ] {
            assert_eq!(elapsed(ms), text);
        }
    }
}
