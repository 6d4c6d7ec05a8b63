//! The Arrow schema a file is announced with.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use flightcache_proto::{Error, ErrorKind, Result};

/// A row that is wider cannot be sent.
const MAX_FIXED_BYTES: u64 = 2 << 20;

/// The schema clients see: dictionaries and run-end encodings, which are ways of storing values, give way to the values'
/// type at every level. Frames then stay bounded whatever the size of a dictionary.
pub fn announced_schema(schema: &Schema) -> Schema {
    Schema::new_with_metadata(announced_fields(schema.fields()), schema.metadata().clone())
}

fn announced_fields(fields: &Fields) -> Fields {
    fields.iter().map(announced_field).collect()
}

fn announced_field(field: &FieldRef) -> FieldRef {
    let data_type = announced_type(field.data_type());
    if &data_type == field.data_type() {
        return Arc::clone(field);
    }
    Arc::new(Field::new(field.name(), data_type, field.is_nullable()).with_metadata(field.metadata().clone()))
}

fn announced_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => announced_type(values),
        DataType::RunEndEncoded(_, values) => announced_type(values.data_type()),
        DataType::List(field) => DataType::List(announced_field(field)),
        DataType::LargeList(field) => DataType::LargeList(announced_field(field)),
        DataType::ListView(field) => DataType::ListView(announced_field(field)),
        DataType::LargeListView(field) => DataType::LargeListView(announced_field(field)),
        DataType::FixedSizeList(field, len) => DataType::FixedSizeList(announced_field(field), *len),
        DataType::Struct(fields) => DataType::Struct(announced_fields(fields)),
        DataType::Map(field, sorted) => DataType::Map(announced_field(field), *sorted),
        other => other.clone(),
    }
}

/// Refuses types of which a single value, even NULL, takes more than can be sent.
pub fn check_widths(schema: &Schema) -> Result<()> {
    match schema.fields().iter().find(|field| fixed_bytes(field.data_type()) > MAX_FIXED_BYTES) {
        None => Ok(()),
        Some(field) => {
            let message = format!(
                "column {:?}: each value takes {} bytes, the bound is {MAX_FIXED_BYTES}",
                field.name(),
                fixed_bytes(field.data_type())
            );
            Err(Error::new(ErrorKind::Unsupported, message))
        }
    }
}

/// Bytes a value takes though it may be NULL or empty; of lists, what an element does.
pub fn fixed_bytes(data_type: &DataType) -> u64 {
    match data_type {
        DataType::FixedSizeBinary(width) => u64::from(width.unsigned_abs()),
        DataType::FixedSizeList(field, len) => fixed_bytes(field.data_type()).saturating_mul(u64::from(len.unsigned_abs())),
        DataType::Struct(fields) => fields.iter().map(|field| fixed_bytes(field.data_type())).fold(1, u64::saturating_add),
        DataType::List(field) | DataType::LargeList(field) | DataType::ListView(field) | DataType::LargeListView(field) => {
            fixed_bytes(field.data_type()).max(8)
        }
        DataType::Map(field, _) => fixed_bytes(field.data_type()).max(8),
        other => other.primitive_width().unwrap_or(8) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_values_are_refused_by_name() {
        let list = DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Int64, true)), i32::MAX);
        for wide in
            [DataType::FixedSizeBinary(i32::MAX), list.clone(), DataType::Struct(vec![Field::new("x", list, true)].into())]
        {
            let error = check_widths(&Schema::new(vec![Field::new("w", wide, true)])).unwrap_err();
            assert!(error.kind == ErrorKind::Unsupported && error.message.contains("\"w\""), "{error}");
        }
        assert!(check_widths(&Schema::new(vec![Field::new("b", DataType::FixedSizeBinary(16), true)])).is_ok());
    }

    #[test]
    fn dictionaries_give_way_at_every_level() {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
        let list = DataType::List(Arc::new(Field::new("item", dictionary.clone(), true)));
        let schema = Schema::new(vec![
            Field::new("d", dictionary, false),
            Field::new("l", list, true),
            Field::new("i", DataType::Int64, true),
        ]);
        let announced = announced_schema(&schema);
        assert_eq!(announced.field(0), &Field::new("d", DataType::Utf8, false));
        assert_eq!(announced.field(1).data_type(), &DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))));
        assert_eq!(announced.field(2), schema.field(2));
    }
}
