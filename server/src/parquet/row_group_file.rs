//! One row group as a Parquet file of its own: the column chunks as they are, and a footer that shows only them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{ColumnChunkMetaData, FileMetaData, ParquetMetaData, ParquetMetaDataWriter, RowGroupMetaData};
use parquet::schema::types::{SchemaDescriptor, Type};

use super::footer::Footer;
use crate::object::Segments;

const MAGIC: &[u8] = b"PAR1";

/// A Parquet file of one row group.
#[derive(Clone, Debug)]
pub struct RowGroupFile {
    /// The object that it is of.
    pub url: Arc<str>,
    /// Its number there.
    pub row_group: u32,
    /// Its rows.
    pub rows: usize,
    /// The file's bytes, in order. Those of the column chunks are shared with whatever held them.
    pub parts: Vec<Bytes>,
}

/// Where a chunk lies in the new file.
#[derive(Clone, Copy)]
struct Moved {
    from: u64,
    to: u64,
}

impl Moved {
    /// A position within the chunk.
    fn offset(self, old: i64) -> Option<i64> {
        let within = u64::try_from(old).ok()?.checked_sub(self.from)?;
        i64::try_from(within.checked_add(self.to)?).ok()
    }
}

/// A file that lacks the column chunks' bytes.
pub struct RowGroupLayout {
    file: RowGroupFile,
    /// Where the chunks lie in the object, in the order of the new file.
    ranges: Vec<Range<u64>>,
    footer: Bytes,
}

/// A file of root columns `columns` of a row group, in this order; one that is asked for twice is there twice, over the same
/// bytes. Neither statistics nor indexes come along. `None` where the object's footer says what cannot be said of a new file.
pub fn row_group_layout(footer: &Footer, row_group: u32, columns: &[usize]) -> Option<RowGroupLayout> {
    let group = footer.metadata.row_group(row_group as usize);
    let mut end = MAGIC.len() as u64;
    let (mut ranges, mut chunks) = (Vec::new(), Vec::new());
    let mut places: BTreeMap<usize, Moved> = BTreeMap::new();
    for &column in columns {
        for (leaf, range) in footer.leaves(column).zip(footer.chunk_ranges(row_group, column)) {
            let place = *places.entry(leaf).or_insert_with(|| {
                let place = Moved { from: range.start, to: end };
                end += range.end - range.start;
                ranges.push(range);
                place
            });
            chunks.push(moved_chunk(group.column(leaf), place)?);
        }
    }
    let metadata = metadata(footer, group, columns, chunks).ok()?;
    let mut footer_bytes = Vec::new();
    ParquetMetaDataWriter::new(&mut footer_bytes, &metadata).finish().ok()?;
    let rows = footer.row_group_rows(row_group);
    let file = RowGroupFile { url: footer.object.shared_url(), row_group, rows, parts: vec![Bytes::from_static(MAGIC)] };
    Some(RowGroupLayout { file, ranges, footer: footer_bytes.into() })
}

impl RowGroupLayout {
    /// Bytes of the file.
    pub fn total_bytes(&self) -> u64 {
        let chunks = self.ranges.iter().map(|range| range.end - range.start);
        chunks.fold((MAGIC.len() + self.footer.len()) as u64, u64::saturating_add)
    }

    /// The file, of an object's bytes; `None` when they are not all there.
    pub fn fill(self, bytes: &Segments) -> Option<RowGroupFile> {
        let mut file = self.file;
        for range in self.ranges {
            file.parts.push(bytes.get(range)?);
        }
        file.parts.push(self.footer);
        Some(file)
    }
}

/// What readers need to know of a chunk, elsewhere; `None` if its pages lie outside it.
fn moved_chunk(chunk: &ColumnChunkMetaData, moved: Moved) -> Option<ColumnChunkMetaData> {
    let data_page = moved.offset(chunk.data_page_offset())?;
    let dictionary_page = match chunk.dictionary_page_offset() {
        Some(offset) => Some(moved.offset(offset)?),
        None => None,
    };
    ColumnChunkMetaData::builder(chunk.column_descr_ptr())
        .set_encodings_mask(*chunk.encodings_mask())
        .set_compression_codec(chunk.compression_codec())
        .set_num_values(chunk.num_values())
        .set_total_compressed_size(chunk.compressed_size())
        .set_total_uncompressed_size(chunk.uncompressed_size())
        .set_unencoded_byte_array_data_bytes(chunk.unencoded_byte_array_data_bytes())
        .set_data_page_offset(data_page)
        .set_dictionary_page_offset(dictionary_page)
        .build()
        .ok()
}

fn metadata(
    footer: &Footer,
    group: &RowGroupMetaData,
    columns: &[usize],
    chunks: Vec<ColumnChunkMetaData>,
) -> ParquetResult<ParquetMetaData> {
    let file = footer.metadata.file_metadata();
    let root = file.schema_descr().root_schema();
    let fields = columns.iter().map(|&column| Arc::clone(&root.get_fields()[column])).collect();
    let schema = Type::group_type_builder(root.name()).with_fields(fields).build()?;
    let schema = Arc::new(SchemaDescriptor::new(Arc::new(schema)));
    let size = chunks.iter().map(ColumnChunkMetaData::uncompressed_size).fold(0, i64::saturating_add);
    let group = RowGroupMetaData::builder(Arc::clone(&schema))
        .set_num_rows(group.num_rows())
        .set_total_byte_size(size)
        .set_column_metadata(chunks)
        .build()?;
    let created_by = file.created_by().map(ToOwned::to_owned);
    // No embedded Arrow schema: it shows all columns, and what the reader wants is announced to it otherwise.
    let file = FileMetaData::new(file.version(), group.num_rows(), created_by, None, schema, None);
    Ok(ParquetMetaData::new(file, vec![group]))
}
