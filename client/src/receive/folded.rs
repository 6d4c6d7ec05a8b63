//! Columns that come as dictionaries, unfolded into the announced types.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, Int32Array, RecordBatch, RecordBatchOptions};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Int32Type, SchemaRef};
use flightcache_proto::accept::FOLDED_SCHEMA;

/// Bytes that the values of one batch's column may take, unless views share them: a server sends batches of about 1 MiB.
const MAX_UNFOLDED_BYTES: usize = 256 << 20;

/// How the batches come, and the dictionaries they refer to.
#[derive(Debug)]
pub(super) struct Folded {
    /// As it was sent.
    pub(super) schema: SchemaRef,
    /// As they came, by number.
    pub(super) dictionaries: HashMap<i64, ArrayRef>,
    /// The same in the announced type of their column.
    values: HashMap<i64, ArrayRef>,
}

/// Whether a schema tells how the columns come, and not what they are.
pub(super) fn is_folded(schema: &SchemaRef) -> bool {
    schema.metadata().contains_key(FOLDED_SCHEMA)
}

impl Folded {
    /// The columns of `announced`, some as dictionaries of strings.
    pub(super) fn new(schema: SchemaRef, announced: &SchemaRef) -> Result<Self, String> {
        let fits = |(folded, announced): (&DataType, &DataType)| match folded {
            DataType::Dictionary(keys, values) => **keys == DataType::Int32 && values.is_string() && announced.is_string(),
            same => same == announced,
        };
        let types = |schema: &SchemaRef| schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
        let (folded, announced) = (types(&schema), types(announced));
        if folded.len() != announced.len() || !folded.iter().zip(&announced).all(fits) {
            return Err("its columns come in other types than were announced".to_owned());
        }
        Ok(Self { schema, dictionaries: HashMap::new(), values: HashMap::new() })
    }

    /// Takes what came of a dictionary since.
    pub(super) fn renew(&mut self, id: i64, announced: &SchemaRef) -> Result<(), String> {
        let dictionary = self.dictionaries.get(&id).ok_or("a dictionary is missing")?;
        let columns = self.schema.fields().iter().zip(announced.fields());
        let mut types = columns.filter(|(folded, _)| matches!(folded.data_type(), DataType::Dictionary(..)));
        let column = usize::try_from(id).ok().and_then(|id| types.nth(id)).ok_or("a dictionary of no column")?;
        let values = cast(dictionary, column.1.data_type()).map_err(|e| e.to_string())?;
        // Values that all fit into their views need no buffer that each batch would hold.
        let values = values.as_string_view_opt().map_or_else(|| Arc::clone(&values), |views| Arc::new(views.gc()));
        self.values.insert(id, values);
        Ok(())
    }

    /// A batch as it came, in the announced types.
    pub(super) fn unfold(&self, batch: &RecordBatch, announced: &SchemaRef) -> Result<RecordBatch, String> {
        let mut number = 0;
        let columns = batch.columns().iter().map(|column| {
            let Some(dictionary) = column.as_dictionary_opt::<Int32Type>() else { return Ok(Arc::clone(column)) };
            let values = self.values.get(&number).ok_or("a batch came before its dictionary")?;
            number += 1;
            let keys = dictionary.keys();
            if !matches!(values.data_type(), DataType::Utf8View) && unfolded_bytes(values, keys) > MAX_UNFOLDED_BYTES {
                return Err("a column takes more than 256 MiB".to_owned());
            }
            take(values, keys, None).map_err(|e| e.to_string())
        });
        let columns = columns.collect::<Result<Vec<_>, String>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(announced), columns, &options).map_err(|e| e.to_string())
    }
}

/// Bytes of the values that keys refer to; a bound where that does.
fn unfolded_bytes(values: &ArrayRef, keys: &Int32Array) -> usize {
    let lengths: Vec<usize> = match values.data_type() {
        DataType::Utf8 => values.as_string::<i32>().offsets().lengths().collect(),
        _ => values.as_string::<i64>().offsets().lengths().collect(),
    };
    let bound = lengths.iter().max().map_or(0, |longest| longest.saturating_mul(keys.len()));
    if bound <= MAX_UNFOLDED_BYTES {
        return bound;
    }
    keys.iter().flatten().map(|key| lengths.get(key as usize).copied().unwrap_or(0)).fold(0, usize::saturating_add)
}
