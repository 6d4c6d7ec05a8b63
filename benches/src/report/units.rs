//! Numbers as a person reads them.

use bytesize::ByteSize;

/// Between groups of three digits: narrow, and no line breaks there.
const GROUP: char = '\u{202f}';
const NONE: &str = "–";

/// About three significant digits: `0.42`, `12.3`, `1 804`.
pub(super) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if !size.is_finite() => return NONE.into(),
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        size if size < 1e15 => return grouped(&format!("{value:.0}")),
        _ => return format!("{value:.2e}"),
    };
    format!("{value:.decimals$}")
}

/// An exact count: `10 000`.
pub(super) fn count(value: u64) -> String {
    grouped(&value.to_string())
}

/// Binary units: `11.3 GiB`.
pub(super) fn bytes(value: u64) -> String {
    ByteSize::b(value).display().iec().to_string()
}

/// A share of 1 in percent: `83.2 %`.
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1}\u{202f}%", share * 100.0) } else { NONE.into() }
}

/// How many times faster: `12.3×`.
pub(super) fn ratio(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map_or(NONE.into(), |value| number(value) + "×")
}

/// A tick of an axis: a multiple of 1, 2 or 5 of a power of ten, without needless zeros.
pub(super) fn tick(value: f64) -> String {
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    if magnitude >= 6 {
        return format!("{:.0}e{magnitude}", value / 10_f64.powi(magnitude));
    }
    let text = format!("{value:.*}", (1 - magnitude).clamp(0, 12) as usize);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    grouped(text)
}

fn grouped(text: &str) -> String {
    let whole = text.find('.').unwrap_or(text.len());
    let first = usize::from(text.starts_with('-'));
    let mut result = String::with_capacity(text.len() + 4);
    for (at, digit) in text.char_indices() {
        if at > first && at < whole && (whole - at).is_multiple_of(3) {
            result.push(GROUP);
        }
        result.push(digit);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let texts = [0.0, 0.424, 9.999, 12.34, 99.96, 1_804.4, -1_234_567.0].map(number);
        assert_eq!(texts, ["0.00", "0.42", "10.0", "12.3", "100", "1\u{202f}804", "-1\u{202f}234\u{202f}567"]);
        assert_eq!([f64::NAN, f64::INFINITY].map(number), ["–", "–"]);
        assert_eq!(number(1e300), "1.00e300");
    }

    #[test]
    fn ticks_have_no_needless_zeros() {
        let texts = [0.0, 0.002, 0.5, 1.2, 50.0, 1_200.0, 20_000.0, 2e6].map(tick);
        assert_eq!(texts, ["0", "0.002", "0.5", "1.2", "50", "1\u{202f}200", "20\u{202f}000", "2e6"]);
    }

    #[test]
    fn units_and_absent_values() {
        assert_eq!(bytes(12_133_000_000), "11.3 GiB");
        assert_eq!(count(10_000), "10\u{202f}000");
        assert_eq!(percent(0.8321), "83.2\u{202f}%");
        assert_eq!(percent(f64::NAN), "–");
        assert_eq!(ratio(Some(12.34)), "12.3×");
        assert_eq!([ratio(None), ratio(Some(f64::INFINITY))], ["–", "–"]);
    }
}
