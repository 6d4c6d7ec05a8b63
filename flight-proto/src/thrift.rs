//! A look at Thrift bytes before the Parquet reader trusts them: the reader makes room for as many row groups as a list states.
//!
//! The compact protocol, as the Thrift specification describes it (`thrift-compact-protocol.md`).

/// Structures in structures; a footer's own go seven deep.
const MAX_DEPTH: u32 = 32;

/// Whether the bytes begin with a structure all of whose lengths and list sizes fit the bytes that are there.
pub fn is_plausible(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    skip(&mut rest, STRUCT, MAX_DEPTH).is_some()
}

const BOOLEANS: [u8; 2] = [1, 2];
const BYTE: u8 = 3;
const VARINTS: [u8; 3] = [4, 5, 6];
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LISTS: [u8; 2] = [9, 10];
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// Moves past a value of type `kind`.
fn skip(rest: &mut &[u8], kind: u8, depth: u32) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match kind {
        // In a list; a field's boolean is its type.
        _ if BOOLEANS.contains(&kind) || kind == BYTE => take(rest, 1),
        _ if VARINTS.contains(&kind) => varint(rest).map(drop),
        DOUBLE => take(rest, 8),
        UUID => take(rest, 16),
        BINARY => {
            let len = varint(rest)?;
            take(rest, usize::try_from(len).ok()?)
        }
        _ if LISTS.contains(&kind) => {
            let head = byte(rest)?;
            let size = if head >> 4 == 15 { varint(rest)? } else { u64::from(head >> 4) };
            // Every element takes a byte at least.
            if size > rest.len() as u64 {
                return None;
            }
            (0..size).try_for_each(|_| skip(rest, head & 15, depth))
        }
        MAP => {
            let size = varint(rest)?;
            if size == 0 {
                return Some(());
            }
            let kinds = byte(rest)?;
            if size > rest.len() as u64 {
                return None;
            }
            (0..size).try_for_each(|_| skip(rest, kinds >> 4, depth).and_then(|()| skip(rest, kinds & 15, depth)))
        }
        STRUCT => loop {
            let head = byte(rest)?;
            if head == 0 {
                return Some(());
            }
            if head >> 4 == 0 {
                varint(rest)?;
            }
            if !BOOLEANS.contains(&(head & 15)) {
                skip(rest, head & 15, depth)?;
            }
        },
        _ => None,
    }
}

fn take(rest: &mut &[u8], len: usize) -> Option<()> {
    *rest = rest.get(len..)?;
    Some(())
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, more) = rest.split_first()?;
    *rest = more;
    Some(*first)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let next = byte(rest)?;
        value |= u64::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_beyond_the_bytes_are_refused() {
        // Field 4, a list of structures: two, of which each ends at once; then the end.
        assert!(is_plausible(&[0x49, 0x2c, 0, 0, 0]));
        assert!(!is_plausible(&[0x49, 0x2c, 0, 0]));
        // The same list, stating 2^31 - 1.
        assert!(!is_plausible(&[0x49, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0, 0]));
        // A string longer than what is left.
        assert!(!is_plausible(&[0x18, 0x05, b'a', 0]));
        assert!(!is_plausible(&[0x1c; 100]), "structures without end");
        assert!(!is_plausible(&[]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            is_plausible(&bytes);
        }
    }
}
