//! Hive-style `key=value/` directories as typed columns.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field};
use chrono::NaiveDate;
use datafusion::scalar::ScalarValue;
use percent_encoding::percent_decode_str;

/// One directory's value; `None` is `__HIVE_DEFAULT_PARTITION__`, NULL.
type HiveValue = Option<String>;

/// The partition columns of a set of objects, in the order in which their directories nest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HiveColumns {
    fields: Vec<Field>,
}

/// The `key=value` directories of a key (its last segment, the file, aside).
fn directories(key: &str) -> impl Iterator<Item = (String, HiveValue)> {
    let (directories, _file) = key.rsplit_once('/').unwrap_or(("", key));
    directories.split('/').filter_map(|segment| {
        let (name, value) = segment.split_once('=')?;
        if name.is_empty() {
            return None;
        }
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        Some((decode(name), (value != "__HIVE_DEFAULT_PARTITION__").then(|| decode(value))))
    })
}

impl HiveColumns {
    /// The columns of these keys. A column is `Int64` or `Date32` when every value reads as one, `Utf8` otherwise; where
    /// an object lacks the directory, its value is NULL.
    pub fn infer<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        let mut names = Vec::new();
        let mut types: BTreeMap<String, Option<DataType>> = BTreeMap::new();
        for key in keys {
            for (name, value) in directories(key) {
                if !types.contains_key(&name) {
                    names.push(name.clone());
                }
                let so_far = types.entry(name).or_default();
                if let Some(value) = value {
                    let seen = type_of(&value);
                    *so_far = Some(match so_far.take() {
                        Some(earlier) if earlier != seen => DataType::Utf8,
                        _ => seen,
                    });
                }
            }
        }
        let fields = names.into_iter().map(|name| {
            let data_type = types.remove(&name).flatten().unwrap_or(DataType::Utf8);
            Field::new(name, data_type, true)
        });
        Self { fields: fields.collect() }
    }

    /// The columns.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }
}

fn type_of(value: &str) -> DataType {
    if value.parse::<i64>().is_ok() {
        DataType::Int64
    } else if date(value).is_some() {
        DataType::Date32
    } else {
        DataType::Utf8
    }
}

fn date(value: &str) -> Option<NaiveDate> {
    (value.len() == 10).then(|| NaiveDate::parse_from_str(value, "%Y-%m-%d").ok())?
}

/// The value of a partition column for an object, or `None` where the key has no such directory.
pub(crate) fn value_of(key: &str, name: &str, data_type: &DataType) -> Option<ScalarValue> {
    let (_, value) = directories(key).filter(|(n, _)| n == name).last()?;
    Some(match (data_type, value) {
        (DataType::Int64, value) => ScalarValue::Int64(value.and_then(|v| v.parse().ok())),
        (DataType::Date32, value) => {
            ScalarValue::Date32(value.and_then(|v| date(&v)).map(arrow::datatypes::Date32Type::from_naive_date))
        }
        (_, value) => ScalarValue::Utf8(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_the_narrowest_that_hold_every_value() {
        let keys = ["t/year=2024/day=2024-01-02/k=1/a.parquet", "t/year=-5/day=2024-01-03/k=x%2Fy/b.parquet"];
        let columns = HiveColumns::infer(keys);
        let types: Vec<_> = columns.fields().iter().map(|f| (f.name().as_str(), f.data_type().clone())).collect();
        assert_eq!(types, [("year", DataType::Int64), ("day", DataType::Date32), ("k", DataType::Utf8)]);
        assert_eq!(value_of(keys[1], "year", &DataType::Int64), Some(ScalarValue::Int64(Some(-5))));
        assert_eq!(value_of(keys[1], "k", &DataType::Utf8), Some(ScalarValue::Utf8(Some("x/y".into()))));
        assert_eq!(value_of(keys[0], "day", &DataType::Date32), Some(ScalarValue::Date32(Some(19_724))));
        assert_eq!(value_of(keys[0], "none", &DataType::Utf8), None);
    }

    #[test]
    fn default_partition_is_null_and_file_names_do_not_count() {
        let columns = HiveColumns::infer(["k=__HIVE_DEFAULT_PARTITION__/x=1.parquet", "k=7/y.parquet"]);
        assert_eq!(columns.fields(), [Field::new("k", DataType::Int64, true)]);
        let null = value_of("k=__HIVE_DEFAULT_PARTITION__/x", "k", &DataType::Int64);
        assert_eq!(null, Some(ScalarValue::Int64(None)));
    }
}
