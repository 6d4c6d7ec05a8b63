//! Sets of many values as Bloom filters.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, BooleanArray, BooleanBuilder};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::common::{Result as PlanResult, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use parquet::bloom_filter::Sbbf;

/// How many of the values that are not in the set are taken to be, at most.
const FALSE_POSITIVES: f64 = 0.01;

/// The filter of these values, if they are of a type it knows.
pub(super) fn write(values: &ArrayRef) -> Option<Vec<u8>> {
    let mut filter = Sbbf::new_with_ndv_fpp(values.len() as u64, FALSE_POSITIVES).ok()?;
    each(values, |value| {
        if let Some(bytes) = value {
            filter.insert(bytes);
        }
    })?;
    let mut bytes = Vec::new();
    filter.write(&mut bytes).ok()?;
    Some(bytes)
}

/// Calls `f` with each value as plain Parquet has it.
fn each(values: &dyn Array, mut f: impl FnMut(Option<&[u8]>)) -> Option<()> {
    macro_rules! numbers {
        ($type:ty, $wide:ty) => {
            values
                .as_primitive::<$type>()
                .iter()
                .for_each(|value| f(value.map(|value| (value as $wide).to_le_bytes()).as_ref().map(|b| &b[..])))
        };
    }
    match values.data_type() {
        DataType::Int8 => numbers!(Int8Type, i32),
        DataType::Int16 => numbers!(Int16Type, i32),
        DataType::Int32 => numbers!(Int32Type, i32),
        DataType::Int64 => numbers!(Int64Type, i64),
        DataType::UInt8 => numbers!(UInt8Type, u32),
        DataType::UInt16 => numbers!(UInt16Type, u32),
        DataType::UInt32 => numbers!(UInt32Type, u32),
        DataType::UInt64 => numbers!(UInt64Type, u64),
        DataType::Date32 => numbers!(Date32Type, i32),
        DataType::Date64 => numbers!(Date64Type, i64),
        DataType::Timestamp(TimeUnit::Second, _) => numbers!(TimestampSecondType, i64),
        DataType::Timestamp(TimeUnit::Millisecond, _) => numbers!(TimestampMillisecondType, i64),
        DataType::Timestamp(TimeUnit::Microsecond, _) => numbers!(TimestampMicrosecondType, i64),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => numbers!(TimestampNanosecondType, i64),
        DataType::Utf8 => values.as_string::<i32>().iter().for_each(|value| f(value.map(str::as_bytes))),
        DataType::LargeUtf8 => values.as_string::<i64>().iter().for_each(|value| f(value.map(str::as_bytes))),
        DataType::Utf8View => values.as_string_view().iter().for_each(|value| f(value.map(str::as_bytes))),
        DataType::Binary => values.as_binary::<i32>().iter().for_each(&mut f),
        DataType::LargeBinary => values.as_binary::<i64>().iter().for_each(&mut f),
        DataType::BinaryView => values.as_binary_view().iter().for_each(&mut f),
        _ => return None,
    }
    Some(())
}

/// Membership as a function of one value.
pub(super) struct InBloom {
    filter: Sbbf,
    bytes: Arc<[u8]>,
    signature: Signature,
}

impl InBloom {
    /// Reads a filter.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        let filter = Sbbf::from_bytes(bytes).ok().filter(|filter| filter.num_blocks() > 0)?;
        Some(Self { filter, bytes: bytes.into(), signature: Signature::any(1, Volatility::Immutable) })
    }
}

impl std::fmt::Debug for InBloom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InBloom({} bytes)", self.bytes.len())
    }
}

impl PartialEq for InBloom {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for InBloom {}

impl Hash for InBloom {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl ScalarUDFImpl for InBloom {
    fn name(&self) -> &'static str {
        "in_bloom_filter"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> PlanResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        let [value] = ColumnarValue::values_to_arrays(&args.args)?.try_into().or_else(|_| exec_err!("one argument"))?;
        Ok(ColumnarValue::Array(Arc::new(self.check(&value)?)))
    }
}

impl InBloom {
    fn check(&self, values: &ArrayRef) -> PlanResult<BooleanArray> {
        if let Some(dictionary) = values.as_any_dictionary_opt() {
            let found = self.check(dictionary.values())?;
            let found = arrow::compute::take(&found, dictionary.keys(), None)?;
            return Ok(found.as_boolean().clone());
        }
        let mut found = BooleanBuilder::with_capacity(values.len());
        let known = each(values, |value| found.append_option(value.map(|value| self.filter.check(value))));
        if known.is_none() {
            return exec_err!("no Bloom filter of values of type {}", values.data_type());
        }
        Ok(found.finish())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Int32Array, Int64Array, StringArray, StringViewArray};
    use arrow::datatypes::Int32Type as Key;

    use super::*;

    #[test]
    fn values_of_the_set_are_found_in_every_form() {
        let set: ArrayRef = Arc::new(StringArray::from_iter_values((0..5_000).map(|i| format!("value-{i}"))));
        let filter = InBloom::new(&write(&set).unwrap()).unwrap();
        let values = || (0..10_000).map(|i| (i % 7 != 0).then(|| format!("value-{i}")));
        let plain: ArrayRef = Arc::new(values().collect::<StringArray>());
        let found = filter.check(&plain).unwrap();
        for row in 0..10_000 {
            assert_eq!(found.is_null(row), row % 7 == 0, "{row}");
            assert!(row >= 5_000 || found.is_null(row) || found.value(row), "{row}");
        }
        assert!(found.true_count() < 5_000 + 200, "{}", found.true_count());
        let view: ArrayRef = Arc::new(values().collect::<StringViewArray>());
        assert_eq!(filter.check(&view).unwrap(), found);
        let owned: Vec<_> = values().collect();
        let dictionary: ArrayRef = Arc::new(owned.iter().map(Option::as_deref).collect::<DictionaryArray<Key>>());
        assert_eq!(filter.check(&dictionary).unwrap(), found);
    }

    #[test]
    fn numbers_of_other_widths_are_other_values_and_refused_where_unknown() {
        let set: ArrayRef = Arc::new(Int64Array::from_iter_values(0..2_000));
        let filter = InBloom::new(&write(&set).unwrap()).unwrap();
        assert_eq!(filter.check(&set).unwrap().true_count(), 2_000);
        let floats: ArrayRef = Arc::new(arrow::array::Float64Array::from(vec![1.0]));
        assert!(write(&floats).is_none() && filter.check(&floats).is_err());
        let bytes = write(&set).unwrap();
        for end in 0..bytes.len() {
            assert!(InBloom::new(&bytes[..end]).is_none(), "{end}");
        }
        // The same numbers in four bytes: but for false positives, none of them.
        let narrow: ArrayRef = Arc::new(Int32Array::from_iter_values(0..2_000));
        assert!(filter.check(&narrow).unwrap().true_count() < 200);
    }
}
