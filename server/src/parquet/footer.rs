//! A file's metadata, parsed once: the footer, the page index, the announced schema.

use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use bytes::Bytes;
use flightcache_proto::action::MAX_TOLD_FOOTER_BYTES;
use flightcache_proto::{Error, ErrorKind, ObjectId, Result, Version, thrift};
use parquet::DecodeResult;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_schema};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataPushDecoder, RowGroupMetaData};
use xxhash_rust::xxh3::xxh3_64;

use super::schema::{announced_schema, check_widths};
use crate::admin::ScanMeter;
use crate::object::{FetchLimits, ObjectRef, Segments, Suffix};

/// Metadata larger than this is refused.
const MAX_METADATA_BYTES: u64 = 256 << 20;
/// Longer values of fixed length could not be sent.
const MAX_TYPE_LENGTH: i32 = 2 << 20;

/// One version of one object: what its footer says.
pub struct Footer {
    /// The object.
    pub object: ObjectRef,
    /// The object and its version; `None` when the store gives none, and nothing of it may be cached.
    pub id: Option<Arc<ObjectId>>,
    /// Size of the object, in bytes.
    pub size: u64,
    /// Row groups, column chunks, page index.
    pub metadata: Arc<ParquetMetaData>,
    /// The schema it is announced with, one field a root column.
    pub schema: SchemaRef,
    /// The leaf columns of each root column.
    leaves: Vec<Range<usize>>,
    /// For readers that give the announced types, and for those that give strings as dictionaries.
    readers: [ArrowReaderMetadata; 2],
    /// Bytes from the start of the metadata to the end of the object: what a suffix read has to cover.
    pub tail_bytes: u64,
    /// The bytes that it was read of, page index included, for other servers; `None` where they are not kept.
    pub tail: Option<Segments>,
    /// Another server told it, not the store.
    pub is_told: bool,
}

/// How strings are to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// In the announced type.
    Plain,
    /// As dictionaries.
    Dictionaries,
}

/// What a read of the footer gave.
pub(super) enum FooterRead {
    NotModified,
    Read {
        footer: Box<Footer>,
        /// The whole object, if the first read brought that.
        whole: Option<Bytes>,
    },
}

impl Footer {
    /// The version, if the object has one.
    pub fn version(&self) -> Option<&Version> {
        self.id.as_ref().map(|id| &id.version)
    }

    /// The leaf columns of root column `column`.
    pub fn leaves(&self, column: usize) -> Range<usize> {
        self.leaves[column].clone()
    }

    /// Rows of row group `index`.
    pub fn row_group_rows(&self, index: u32) -> usize {
        self.metadata.row_group(index as usize).num_rows() as usize
    }

    /// The byte ranges of root column `column` in row group `row_group`.
    pub fn chunk_ranges(&self, row_group: u32, column: usize) -> impl Iterator<Item = Range<u64>> + '_ {
        let group = self.metadata.row_group(row_group as usize);
        self.leaves(column).map(move |leaf| {
            let (start, len) = group.column(leaf).byte_range();
            start..start + len
        })
    }

    /// Compressed bytes of root column `column` in row group `row_group`.
    pub fn compressed_bytes(&self, row_group: u32, column: usize) -> u64 {
        self.chunk_ranges(row_group, column).map(|range| range.end - range.start).sum()
    }

    /// An estimate of the decoded size of a chunk, in bytes, on the high side for what the metadata can tell.
    pub fn decoded_bytes_estimate(&self, row_group: u32, column: usize) -> u64 {
        let group = self.metadata.row_group(row_group as usize);
        self.leaves(column)
            .map(|leaf| {
                let chunk = group.column(leaf);
                let values = u64::try_from(chunk.num_values()).unwrap_or(0);
                let width = match chunk.column_descr().physical_type() {
                    parquet::basic::Type::BOOLEAN => 1,
                    parquet::basic::Type::INT32 | parquet::basic::Type::FLOAT => 4,
                    // For bytes: their offset, or half a view.
                    parquet::basic::Type::INT64
                    | parquet::basic::Type::DOUBLE
                    | parquet::basic::Type::INT96
                    | parquet::basic::Type::BYTE_ARRAY => 8,
                    parquet::basic::Type::FIXED_LEN_BYTE_ARRAY => {
                        u64::try_from(chunk.column_descr().type_length()).unwrap_or(16).max(16)
                    }
                };
                let stated = chunk.unencoded_byte_array_data_bytes().and_then(|bytes| u64::try_from(bytes).ok());
                let encoded = chunk.uncompressed_size().unsigned_abs();
                let text = match chunk.column_descr().physical_type() {
                    parquet::basic::Type::BYTE_ARRAY if self.rests_as_dictionary(row_group, column) => encoded,
                    // A dictionary that is unfolded while it is decoded is a guess, which decoding corrects.
                    parquet::basic::Type::BYTE_ARRAY => stated.unwrap_or(encoded.saturating_mul(4)),
                    _ => 0,
                };
                // Values, their offsets for nested columns, validity.
                values
                    .saturating_mul(width + u64::from(chunk.column_descr().max_rep_level() > 0) * 4)
                    .saturating_add(text)
                    .saturating_add(values / 8)
            })
            .fold(64, u64::saturating_add)
    }

    /// Whether a chunk is decoded into a dictionary: strings whose pages are all dictionary-encoded.
    pub(super) fn rests_as_dictionary(&self, row_group: u32, column: usize) -> bool {
        let group = self.metadata.row_group(row_group as usize);
        is_string(self.schema.field(column).data_type())
            && self.leaves(column).all(|leaf| is_dictionary_encoded(group.column(leaf)))
    }

    /// Whether the decoded size of a chunk is a guess: bytes behind a dictionary that is unfolded, of no stated size.
    pub(super) fn is_size_unknown(&self, row_group: u32, column: usize) -> bool {
        let group = self.metadata.row_group(row_group as usize);
        !self.rests_as_dictionary(row_group, column)
            && self.leaves(column).any(|leaf| {
                let chunk = group.column(leaf);
                chunk.column_descr().physical_type() == parquet::basic::Type::BYTE_ARRAY
                    && chunk.dictionary_page_offset().is_some()
                    && chunk.unencoded_byte_array_data_bytes().is_none()
            })
    }

    /// Whether values of a chunk share their beginnings, so that they may take many times their encoded bytes, and nothing
    /// states how many.
    pub fn shares_prefixes(&self, row_group: u32, column: usize) -> bool {
        let group = self.metadata.row_group(row_group as usize);
        self.leaves(column).any(|leaf| {
            let chunk = group.column(leaf);
            chunk.column_descr().physical_type() == parquet::basic::Type::BYTE_ARRAY
                && chunk.encodings_mask().is_set(parquet::basic::Encoding::DELTA_BYTE_ARRAY)
                && chunk.unencoded_byte_array_data_bytes().is_none()
        })
    }

    /// Bytes this footer holds in memory.
    pub fn weight_bytes(&self) -> usize {
        // Arrow fields are a few hundred bytes each: name, type, metadata, reference counts.
        self.metadata.memory_size()
            + self.schema.flattened_fields().len() * 3 * 256
            + self.object.url().len()
            + 512
            + self.tail.as_ref().map_or(0, |tail| tail.len() as usize)
    }

    /// Reads the footer of the current version, unless that is `known`: one suffix read of `hint_bytes`, more when it is longer.
    /// Its bytes are kept if it `keeps_tail`.
    pub(super) async fn read(
        object: &ObjectRef,
        known: Option<&Version>,
        hint_bytes: u64,
        keeps_tail: bool,
        limits: &FetchLimits,
        meter: &ScanMeter,
    ) -> Result<FooterRead> {
        let (bytes, size, version) = match object.suffix(hint_bytes, known, limits, meter).await? {
            Suffix::NotModified => return Ok(FooterRead::NotModified),
            Suffix::Read { bytes, size, version } => (bytes, size, version),
        };
        let corrupt = |error: ParquetError| parquet_error(object.url(), "footer", &error);
        let whole = (bytes.len() as u64 == size).then(|| bytes.clone());
        let mut pieces = vec![(size.saturating_sub(bytes.len() as u64), bytes)];
        let mut policy = PageIndexPolicy::Optional;
        // Three asks at most: the footer's length, the footer, the page index; one more when the page index is unusable.
        for _ in 0..5 {
            let parse_pieces = pieces.clone();
            let parsed = tokio::task::spawn_blocking(move || parse(size, &parse_pieces, policy)).await;
            let missing = match parsed {
                Ok(Ok(DecodeResult::Data(metadata))) => {
                    let tail_bytes = pieces.iter().map(|(start, _)| size - start).max().unwrap_or(0);
                    // Whoever reads it of a tail expects the page index there.
                    let tail =
                        (keeps_tail && policy == PageIndexPolicy::Optional).then(|| tail(size, &metadata, &pieces)).flatten();
                    let mut footer = Self::new(object, version, size, metadata, tail_bytes, &pieces)?;
                    footer.tail = tail;
                    return Ok(FooterRead::Read { footer: Box::new(footer), whole });
                }
                Ok(Ok(DecodeResult::NeedsData(ranges))) => ranges,
                Ok(Ok(DecodeResult::Finished)) => {
                    return Err(Error::internal(format!("{}: footer decoder ended early", object.url())));
                }
                // Files with a broken page index are read without it.
                Ok(Err(_)) if policy == PageIndexPolicy::Optional => {
                    policy = PageIndexPolicy::Skip;
                    continue;
                }
                Ok(Err(error)) => return Err(corrupt(error)),
                Err(panic) => return Err(decoder_panic(object.url(), "footer", panic)),
            };
            let wanted: u64 = missing.iter().map(|range| range.end.saturating_sub(range.start)).sum();
            if wanted > MAX_METADATA_BYTES {
                let message = format!("{}: {wanted} bytes of metadata, the bound is {MAX_METADATA_BYTES}", object.url());
                return Err(Error::new(ErrorKind::ResourceExhausted, message));
            }
            if missing.iter().any(|range| range.end > size || range.start >= range.end) {
                return Err(Error::new(ErrorKind::Corrupt, format!("{}: the footer points outside the file", object.url())));
            }
            let segments = object.ranges(version.as_ref(), &missing, limits, meter).await?;
            for range in missing {
                let bytes = segments.get(range.clone()).ok_or_else(|| Error::internal("a fetched range is missing"))?;
                pieces.push((range.start, bytes));
            }
        }
        Err(Error::new(ErrorKind::Corrupt, format!("{}: the footer cannot be assembled", object.url())))
    }

    /// The footer of a version whose tail another server told.
    pub(super) async fn of_tail(object: &ObjectRef, version: Version, size: u64, tail: Segments) -> Result<Self> {
        let object = object.clone();
        let url = object.shared_url();
        let read = move || {
            let metadata = match parse(size, tail.pieces(), PageIndexPolicy::Optional) {
                Ok(DecodeResult::Data(metadata)) => metadata,
                Ok(_) => {
                    return Err(Error::new(ErrorKind::Corrupt, format!("{}: parts of its footer are missing", object.url())));
                }
                Err(error) => return Err(parquet_error(object.url(), "footer", &error)),
            };
            let tail_bytes = tail.pieces().first().map_or(0, |(start, _)| size - start);
            let footer = Self::new(&object, Some(version), size, metadata, tail_bytes, tail.pieces())?;
            Ok(Self { tail: Some(tail), is_told: true, ..footer })
        };
        // What another server tells may have a decoder panic, as anything from outside.
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|panic| Err(decoder_panic(&url, "footer", panic)))
    }

    fn new(
        object: &ObjectRef,
        version: Option<Version>,
        size: u64,
        metadata: ParquetMetaData,
        tail_bytes: u64,
        pieces: &[(u64, Bytes)],
    ) -> Result<Self> {
        let file = metadata.file_metadata();
        let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())
            // An embedded Arrow schema that does not fit the file is only a hint.
            .or_else(|_| parquet_to_arrow_schema(file.schema_descr(), None))
            .map_err(|error| parquet_error(object.url(), "schema", &error))?;
        let schema = Arc::new(announced_schema(&schema));
        let descr = file.schema_descr();
        let mut leaves = vec![0..0; descr.root_schema().get_fields().len()];
        for leaf in 0..descr.num_columns() {
            let range = &mut leaves[descr.get_column_root_idx(leaf)];
            *range = if range.start == range.end { leaf..leaf + 1 } else { range.start..leaf + 1 };
        }
        if leaves.len() != schema.fields().len() {
            return Err(Error::new(ErrorKind::Unsupported, format!("{}: some columns have no Arrow type", object.url())));
        }
        check(&metadata, size, object.url())?;
        check_widths(&schema).map_err(|e| Error::new(e.kind, format!("{}: {}", object.url(), e.message)))?;
        let own = footer_bytes(size, pieces).ok_or_else(|| Error::internal("a footer was parsed of bytes that are not there"))?;
        let id = version.map(|version| Arc::new(ObjectId { url: object.shared_url(), version, footer: xxh3_64(&own) }));
        let metadata = Arc::new(metadata);
        let plain = reader_metadata(&metadata, &schema).map_err(|error| parquet_error(object.url(), "schema", &error))?;
        let dictionaries = reader_metadata(&metadata, &with_dictionaries(&schema)).unwrap_or_else(|_| plain.clone());
        let readers = [plain, dictionaries];
        let object = object.clone();
        Ok(Self { object, id, size, metadata, schema, leaves, readers, tail_bytes, tail: None, is_told: false })
    }

    pub(super) fn reader_metadata(&self, rest: Rest) -> &ArrowReaderMetadata {
        &self.readers[usize::from(rest == Rest::Dictionaries)]
    }

    /// Whether a reader that is given the announced schema gives its types, so that nothing is left to cast.
    pub fn reads_as_announced(&self) -> bool {
        Arc::ptr_eq(self.reader_metadata(Rest::Plain).schema(), &self.schema)
    }

    /// The projection mask of one root column.
    pub(super) fn mask(&self, column: usize) -> ProjectionMask {
        ProjectionMask::leaves(self.metadata.file_metadata().schema_descr(), self.leaves(column))
    }
}

/// What a reader needs to give the types of `schema`, or, where the file does not allow that, its own.
fn reader_metadata(metadata: &Arc<ParquetMetaData>, schema: &SchemaRef) -> Result<ArrowReaderMetadata, ParquetError> {
    ArrowReaderMetadata::try_new(Arc::clone(metadata), ArrowReaderOptions::new().with_schema(Arc::clone(schema)))
        .or_else(|_| ArrowReaderMetadata::try_new(Arc::clone(metadata), ArrowReaderOptions::new()))
        .or_else(|_| ArrowReaderMetadata::try_new(Arc::clone(metadata), ArrowReaderOptions::new().with_skip_arrow_metadata(true)))
}

/// The schema with every root string column as a dictionary.
fn with_dictionaries(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let values = match field.data_type() {
            DataType::LargeUtf8 => DataType::LargeUtf8,
            data_type if is_string(data_type) => DataType::Utf8,
            _ => return Arc::clone(field),
        };
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(values));
        Arc::new(Field::new(field.name(), dictionary, field.is_nullable()).with_metadata(field.metadata().clone()))
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Fields>(), schema.metadata().clone()))
}

/// Whether every data page of a chunk is dictionary-encoded.
pub(super) fn is_dictionary_encoded(chunk: &parquet::file::metadata::ColumnChunkMetaData) -> bool {
    use parquet::basic::Encoding::{PLAIN_DICTIONARY, RLE_DICTIONARY};
    chunk.dictionary_page_offset().is_some()
        && chunk.page_encoding_stats_mask().is_some_and(|mask| mask.is_only(PLAIN_DICTIONARY) || mask.is_only(RLE_DICTIONARY))
}

/// Whether a type holds strings that may rest as dictionaries in the cache.
pub(super) fn is_string(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn parse(size: u64, pieces: &[(u64, Bytes)], policy: PageIndexPolicy) -> Result<DecodeResult<ParquetMetaData>, ParquetError> {
    if footer_bytes(size, pieces).is_some_and(|bytes| !thrift::is_plausible(&bytes)) {
        return Err(ParquetError::General("its lengths and sizes do not fit its bytes".to_owned()));
    }
    let mut decoder = ParquetMetaDataPushDecoder::try_new(size)?.with_page_index_policy(policy);
    for (start, bytes) in pieces {
        decoder.push_range(*start..*start + bytes.len() as u64, bytes.clone())?;
    }
    decoder.try_decode()
}

/// A copy of the bytes that a footer is parsed of: the page index, the footer's own, and its length; `None` if they are very many.
fn tail(size: u64, metadata: &ParquetMetaData, pieces: &[(u64, Bytes)]) -> Option<Segments> {
    let own = size.checked_sub(8 + footer_bytes(size, pieces)?.len() as u64)?..size - 8;
    let chunks = metadata.row_groups().iter().flat_map(RowGroupMetaData::columns);
    let indexes = chunks.flat_map(|chunk| {
        [(chunk.column_index_offset(), chunk.column_index_length()), (chunk.offset_index_offset(), chunk.offset_index_length())]
    });
    let indexes = indexes.filter_map(|(start, len)| {
        let (start, len) = (u64::try_from(start?).ok()?, u64::try_from(len?).ok()?);
        Some(start..start.checked_add(len)?)
    });
    // The decoder asks for all of them in one.
    let index = indexes.reduce(|all, index| all.start.min(index.start)..all.end.max(index.end));
    let ranges = index.into_iter().filter(|index| index.start < index.end).chain([own, size - 8..size]);
    let parts: Option<Vec<Bytes>> = ranges.clone().map(|range| slice(pieces, range.start, range.end - range.start)).collect();
    let parts = parts.filter(|parts| parts.iter().map(|part| part.len() as u64).sum::<u64>() <= MAX_TOLD_FOOTER_BYTES)?;
    // Copies: a slice would keep all that was read in memory.
    let copy = |(range, part): (Range<u64>, Bytes)| Segments::at(range.start, Bytes::copy_from_slice(&part));
    Some(Segments::join(ranges.zip(parts).map(copy)))
}

/// The footer's own bytes, if a piece holds them: the decoder needs them in one, too.
fn footer_bytes(size: u64, pieces: &[(u64, Bytes)]) -> Option<Bytes> {
    let stated: [u8; 4] = slice(pieces, size.checked_sub(8)?, 4)?.as_ref().try_into().ok()?;
    let len = u64::from(u32::from_le_bytes(stated));
    slice(pieces, (size - 8).checked_sub(len)?, len)
}

fn slice(pieces: &[(u64, Bytes)], start: u64, len: u64) -> Option<Bytes> {
    pieces.iter().find_map(|(at, bytes)| {
        let from = usize::try_from(start.checked_sub(*at)?).ok()?;
        let to = from.checked_add(usize::try_from(len).ok()?)?;
        (to <= bytes.len()).then(|| bytes.slice(from..to))
    })
}

/// What later code relies on: sizes and ranges that are possible.
fn check(metadata: &ParquetMetaData, size: u64, url: &str) -> Result<()> {
    let corrupt = |what: String| Err(Error::new(ErrorKind::Corrupt, format!("{url}: {what}")));
    let descr = metadata.file_metadata().schema_descr();
    let columns = descr.num_columns();
    if let Some(wide) = descr.columns().iter().find(|column| column.type_length() > MAX_TYPE_LENGTH) {
        let message = format!("{url}: column {}: values of {} bytes; at most {MAX_TYPE_LENGTH}", wide.path(), wide.type_length());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    for (index, group) in metadata.row_groups().iter().enumerate() {
        if group.num_rows() < 0 || group.num_rows() > i64::from(u32::MAX) {
            return corrupt(format!("row group {index} states {} rows", group.num_rows()));
        }
        if group.num_columns() != columns {
            return corrupt(format!("row group {index} has {} of {columns} columns", group.num_columns()));
        }
        for chunk in group.columns() {
            let dictionary = chunk.dictionary_page_offset();
            // Some writers state 0 for none.
            let start = dictionary.filter(|offset| *offset != 0).unwrap_or(chunk.data_page_offset());
            let end = start.checked_add(chunk.compressed_size());
            let inside = start >= 0 && chunk.compressed_size() >= 0 && end.is_some_and(|end| end.unsigned_abs() <= size);
            if !inside || chunk.num_values() < 0 || chunk.uncompressed_size() < 0 {
                return corrupt(format!("row group {index}, column {}: pages outside the file", chunk.column_path()));
            }
            // A row takes one value of each column at least, be it NULL; readers make room for as many.
            if chunk.num_values() < group.num_rows() {
                let (values, rows) = (chunk.num_values(), group.num_rows());
                return corrupt(format!("row group {index}, column {}: {values} values for {rows} rows", chunk.column_path()));
            }
        }
    }
    Ok(())
}

/// The typed error of a failure to read Parquet.
pub(super) fn parquet_error(url: &str, what: &str, error: &ParquetError) -> Error {
    let kind = match error {
        ParquetError::NYI(_) => ErrorKind::Unsupported,
        _ => ErrorKind::Corrupt,
    };
    Error::new(kind, format!("{url} {what}: {error}"))
}

/// The typed error of a decoder that panicked on a file.
pub(crate) fn decoder_panic(url: &str, what: &str, error: tokio::task::JoinError) -> Error {
    if error.is_cancelled() {
        return Error::new(ErrorKind::Cancelled, format!("{url} {what}: cancelled"));
    }
    let panic = error.into_panic();
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Error::new(ErrorKind::Corrupt, format!("{url} {what}: the decoder gave up: {}", text.unwrap_or("no reason given")))
}
