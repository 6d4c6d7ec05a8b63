//! Arrays of every layout: cut anywhere at every level, with nulls, with null buffers that have none.

use std::ops::Range;

use arrow::array::{
    ArrowPrimitiveType, BinaryArray, BinaryViewArray, BooleanArray, FixedSizeBinaryArray, FixedSizeListArray, GenericListArray,
    GenericListViewArray, LargeBinaryArray, LargeStringArray, MapArray, NullArray, OffsetSizeTrait, PrimitiveArray, StringArray,
    StringViewArray, StructArray, UnionArray,
};
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowNativeType as _, Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type,
    DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType, DurationSecondType, Field, FieldRef, Float16Type,
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, IntervalDayTime, IntervalDayTimeType,
    IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType, Time32MillisecondType, Time32SecondType,
    Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type, UnionFields, i256,
};
use proptest::prelude::*;

use super::*;

/// The types whose values lie one after the other, each of a fixed width.
const PRIMITIVES: &[DataType] = &[
    DataType::Int8,
    DataType::Int16,
    DataType::Int32,
    DataType::Int64,
    DataType::UInt8,
    DataType::UInt16,
    DataType::UInt32,
    DataType::UInt64,
    DataType::Float16,
    DataType::Float32,
    DataType::Float64,
    DataType::Date32,
    DataType::Date64,
    DataType::Time32(TimeUnit::Second),
    DataType::Time32(TimeUnit::Millisecond),
    DataType::Time64(TimeUnit::Microsecond),
    DataType::Time64(TimeUnit::Nanosecond),
    DataType::Timestamp(TimeUnit::Second, None),
    DataType::Timestamp(TimeUnit::Millisecond, None),
    DataType::Timestamp(TimeUnit::Microsecond, None),
    DataType::Timestamp(TimeUnit::Nanosecond, None),
    DataType::Duration(TimeUnit::Second),
    DataType::Duration(TimeUnit::Millisecond),
    DataType::Duration(TimeUnit::Microsecond),
    DataType::Duration(TimeUnit::Nanosecond),
    DataType::Interval(IntervalUnit::YearMonth),
    DataType::Interval(IntervalUnit::DayTime),
    DataType::Interval(IntervalUnit::MonthDayNano),
    DataType::Decimal32(9, 2),
    DataType::Decimal64(18, -3),
    DataType::Decimal128(38, 10),
    DataType::Decimal256(76, 38),
];

/// What an array is made of.
#[derive(Clone, Debug)]
enum Shape {
    Flat(Flat),
    List(Box<Shape>),
    LargeList(Box<Shape>),
    ListView(Box<Shape>),
    LargeListView(Box<Shape>),
    FixedSizeList(Box<Shape>, i32),
    Struct(Vec<Shape>),
    Map(Box<Shape>),
    SparseUnion(Vec<Shape>),
    DenseUnion(Vec<Shape>),
}

#[derive(Clone, Copy, Debug)]
enum Flat {
    Null,
    Boolean,
    /// Of one of [`PRIMITIVES`].
    Primitive(usize),
    FixedSizeBinary(i32),
    Utf8,
    LargeUtf8,
    Binary,
    LargeBinary,
    Utf8View,
    BinaryView,
}

/// Numbers that follow from a seed (xorshift64*, Vigna 2016).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 32) as usize % bound
    }

    fn within(&mut self, bound: usize) -> Range<usize> {
        let (a, b) = (self.below(bound + 1), self.below(bound + 1));
        a.min(b)..a.max(b)
    }

    /// None, without nulls, or with some; longer than it need be, so that it begins inside a byte.
    fn nulls(&mut self, len: usize) -> Option<NullBuffer> {
        let skipped = self.below(20);
        let every = match self.below(4) {
            0 => return None,
            1 => usize::MAX,
            2 => 2,
            _ => 7,
        };
        let bits: BooleanBuffer = (0..skipped + len).map(|_| every == usize::MAX || self.below(every) > 0).collect();
        Some(NullBuffer::new(bits.slice(skipped, len)))
    }

    fn text(&mut self) -> String {
        let longest = [3, 12, 13, 40, 300][self.below(5)];
        let len = self.below(longest + 1);
        (0..len).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    fn texts(&mut self, len: usize) -> Vec<Option<String>> {
        (0..len).map(|_| (self.below(5) > 0).then(|| self.text())).collect()
    }

    /// Views into some buffers: they overlap, repeat, leave gaps, and those of null rows point somewhere, too.
    fn views(&mut self, len: usize) -> (ScalarBuffer<u128>, Vec<Buffer>, Option<NullBuffer>) {
        let (count, longest) = [(1, 300), (3, 20_000), (3, 2_000), (40, 60)][self.below(4)];
        let buffers: Vec<Buffer> = (0..count)
            .map(|_| {
                let len = 13 + self.below(longest);
                (0..len).map(|_| b'a' + self.below(26) as u8).collect()
            })
            .collect();
        let dense = self.below(2) == 0;
        let mut at = 0;
        let views = (0..len).map(|_| {
            let index = self.below(count);
            let buffer = &buffers[index];
            let length = [self.below(13), 13 + self.below(30)][self.below(2)].min(buffer.len());
            let offset = if dense { at % (buffer.len() - length + 1) } else { self.below(buffer.len() - length + 1) };
            at += length;
            let bytes = &buffer[offset..offset + length];
            let mut view = [0; 16];
            view[..4].copy_from_slice(&(length as u32).to_le_bytes());
            if length <= 12 {
                view[4..4 + length].copy_from_slice(bytes);
            } else {
                view[4..8].copy_from_slice(&bytes[..4]);
                view[8..12].copy_from_slice(&(index as u32).to_le_bytes());
                view[12..].copy_from_slice(&(offset as u32).to_le_bytes());
            }
            u128::from_le_bytes(view)
        });
        let views = views.collect();
        (views, buffers, self.nulls(len))
    }

    fn offsets<O: OffsetSizeTrait>(&mut self, len: usize, longest: usize) -> OffsetBuffer<O> {
        let mut at = self.below(4);
        let offsets = (0..=len).map(|_| {
            let here = at;
            at += self.below(longest + 1);
            O::usize_as(here)
        });
        OffsetBuffer::new(offsets.collect())
    }

    /// An array of more rows, cut.
    fn array(&mut self, shape: &Shape, len: usize) -> ArrayRef {
        let (before, after) = (self.below(12), self.below(3));
        self.whole(shape, before + len + after).slice(before, len)
    }

    fn whole(&mut self, shape: &Shape, len: usize) -> ArrayRef {
        match shape {
            Shape::Flat(flat) => self.flat(*flat, len),
            Shape::List(values) => Arc::new(self.list::<i32>(values, len)),
            Shape::LargeList(values) => Arc::new(self.list::<i64>(values, len)),
            Shape::ListView(values) => Arc::new(self.list_view::<i32>(values, len)),
            Shape::LargeListView(values) => Arc::new(self.list_view::<i64>(values, len)),
            Shape::FixedSizeList(values, width) => {
                let values = self.array(values, len * *width as usize);
                let nulls = self.nulls(len);
                Arc::new(FixedSizeListArray::try_new_with_length(item(&values), *width, values, nulls, len).unwrap())
            }
            Shape::Struct(columns) => {
                let columns: Vec<_> = columns.iter().map(|column| self.array(column, len)).collect();
                let fields = columns.iter().map(item).collect();
                Arc::new(StructArray::try_new_with_length(fields, columns, self.nulls(len), len).unwrap())
            }
            Shape::Map(values) => {
                let offsets = self.offsets(len, 3);
                let count = *offsets.last().unwrap() as usize;
                let keys: ArrayRef = Arc::new((0..count).map(|_| Some(self.text())).collect::<StringViewArray>());
                let values = self.array(values, count);
                let fields =
                    [Field::new("keys", DataType::Utf8View, false), Field::new("values", values.data_type().clone(), true)];
                let entries = StructArray::new(fields.into_iter().collect(), vec![keys, values], None);
                let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
                Arc::new(MapArray::new(field, offsets, entries, self.nulls(len), false))
            }
            Shape::SparseUnion(children) => {
                let types: ScalarBuffer<i8> = (0..len).map(|_| self.below(children.len()) as i8).collect();
                let children: Vec<_> = children.iter().map(|child| self.array(child, len)).collect();
                Arc::new(UnionArray::try_new(union_fields(&children), types, None, children).unwrap())
            }
            Shape::DenseUnion(children) => {
                let types: ScalarBuffer<i8> = (0..len).map(|_| self.below(children.len()) as i8).collect();
                let mut counts = vec![0; children.len()];
                let offsets = types.iter().map(|at| {
                    counts[*at as usize] += 1;
                    counts[*at as usize] - 1
                });
                let offsets: ScalarBuffer<i32> = offsets.collect();
                let children: Vec<_> =
                    children.iter().zip(&counts).map(|(child, count)| self.array(child, *count as usize + 2)).collect();
                Arc::new(UnionArray::try_new(union_fields(&children), types, Some(offsets), children).unwrap())
            }
        }
    }

    fn list<O: OffsetSizeTrait>(&mut self, values: &Shape, len: usize) -> GenericListArray<O> {
        let offsets = self.offsets::<O>(len, 4);
        let values = self.array(values, offsets.last().unwrap().as_usize() + 2);
        GenericListArray::new(item(&values), offsets, values, self.nulls(len))
    }

    /// In any order, overlapping, with gaps.
    fn list_view<O: OffsetSizeTrait>(&mut self, values: &Shape, len: usize) -> GenericListViewArray<O> {
        let count = 1 + self.below(len * 2 + 200);
        let values = self.array(values, count);
        let rows: Vec<_> = (0..len)
            .map(|_| {
                let start = self.below(count);
                start..start + self.below(6).min(count - start)
            })
            .collect();
        let offsets = rows.iter().map(|row| O::usize_as(row.start)).collect();
        let sizes = rows.iter().map(|row| O::usize_as(row.len())).collect();
        GenericListViewArray::new(item(&values), offsets, sizes, values, self.nulls(len))
    }

    fn flat(&mut self, flat: Flat, len: usize) -> ArrayRef {
        let nulls = self.nulls(len);
        let mut whole = || self.next() as i64;
        let wholes: Vec<i64> = (0..len).map(|_| whole()).collect();
        match flat {
            Flat::Null => Arc::new(NullArray::new(len)),
            Flat::Boolean => Arc::new(BooleanArray::new(wholes.iter().map(|number| number & 1 == 1).collect(), nulls)),
            Flat::Primitive(at) => match &PRIMITIVES[at] {
                DataType::Timestamp(unit, _) if self.below(2) == 0 => {
                    primitive(&DataType::Timestamp(*unit, Some("+02:00".into())), &wholes, nulls)
                }
                data_type => primitive(data_type, &wholes, nulls),
            },
            Flat::FixedSizeBinary(width) => {
                let bytes: Vec<u8> = (0..len * width as usize).map(|_| self.next() as u8).collect();
                Arc::new(FixedSizeBinaryArray::try_new_with_len(width, bytes.into(), nulls, len).unwrap())
            }
            Flat::Utf8 => Arc::new(StringArray::from_iter(self.texts(len))),
            Flat::LargeUtf8 => Arc::new(LargeStringArray::from_iter(self.texts(len))),
            Flat::Binary => Arc::new(BinaryArray::from_iter(self.texts(len))),
            Flat::LargeBinary => Arc::new(LargeBinaryArray::from_iter(self.texts(len))),
            Flat::Utf8View => {
                let (views, buffers, nulls) = self.views(len);
                Arc::new(StringViewArray::new(views, buffers, nulls))
            }
            Flat::BinaryView => {
                let (views, buffers, nulls) = self.views(len);
                Arc::new(BinaryViewArray::new(views, buffers, nulls))
            }
        }
    }
}

/// An array of a type made of any numbers.
fn primitive(data_type: &DataType, wholes: &[i64], nulls: Option<NullBuffer>) -> ArrayRef {
    fn of<T: ArrowPrimitiveType>(
        data_type: &DataType,
        wholes: &[i64],
        nulls: Option<NullBuffer>,
        value: impl Fn(i64) -> T::Native,
    ) -> ArrayRef {
        let values = wholes.iter().map(|whole| value(*whole)).collect();
        Arc::new(PrimitiveArray::<T>::new(values, nulls).with_data_type(data_type.clone()))
    }
    macro_rules! of {
        ($($matched:pat => $type:ty: $value:expr),+ $(,)?) => {
            match data_type {
                $($matched => of::<$type>(data_type, wholes, nulls, $value),)+
                other => panic!("{other} is not among them"),
            }
        };
    }
    of! {
        DataType::Int8 => Int8Type: |whole| whole as i8,
        DataType::Int16 => Int16Type: |whole| whole as i16,
        DataType::Int32 => Int32Type: |whole| whole as i32,
        DataType::Int64 => Int64Type: |whole| whole,
        DataType::UInt8 => UInt8Type: |whole| whole as u8,
        DataType::UInt16 => UInt16Type: |whole| whole as u16,
        DataType::UInt32 => UInt32Type: |whole| whole as u32,
        DataType::UInt64 => UInt64Type: |whole| whole as u64,
        DataType::Float16 => Float16Type: |whole| <Float16Type as ArrowPrimitiveType>::Native::usize_as(whole as usize % 2_000),
        DataType::Float32 => Float32Type: |whole| whole as f32,
        DataType::Float64 => Float64Type: |whole| whole as f64,
        DataType::Date32 => Date32Type: |whole| whole as i32,
        DataType::Date64 => Date64Type: |whole| whole,
        DataType::Time32(TimeUnit::Second) => Time32SecondType: |whole| whole as i32,
        DataType::Time32(_) => Time32MillisecondType: |whole| whole as i32,
        DataType::Time64(TimeUnit::Microsecond) => Time64MicrosecondType: |whole| whole,
        DataType::Time64(_) => Time64NanosecondType: |whole| whole,
        DataType::Timestamp(TimeUnit::Second, _) => TimestampSecondType: |whole| whole,
        DataType::Timestamp(TimeUnit::Millisecond, _) => TimestampMillisecondType: |whole| whole,
        DataType::Timestamp(TimeUnit::Microsecond, _) => TimestampMicrosecondType: |whole| whole,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => TimestampNanosecondType: |whole| whole,
        DataType::Duration(TimeUnit::Second) => DurationSecondType: |whole| whole,
        DataType::Duration(TimeUnit::Millisecond) => DurationMillisecondType: |whole| whole,
        DataType::Duration(TimeUnit::Microsecond) => DurationMicrosecondType: |whole| whole,
        DataType::Duration(TimeUnit::Nanosecond) => DurationNanosecondType: |whole| whole,
        DataType::Interval(IntervalUnit::YearMonth) => IntervalYearMonthType: |whole| whole as i32,
        DataType::Interval(IntervalUnit::DayTime) => IntervalDayTimeType:
            |whole| IntervalDayTime::new(whole as i32, (whole >> 32) as i32),
        DataType::Interval(IntervalUnit::MonthDayNano) => IntervalMonthDayNanoType:
            |whole| IntervalMonthDayNano::new(whole as i32, 1, whole),
        DataType::Decimal32(..) => Decimal32Type: |whole| whole as i32,
        DataType::Decimal64(..) => Decimal64Type: |whole| whole,
        DataType::Decimal128(..) => Decimal128Type: i128::from,
        DataType::Decimal256(..) => Decimal256Type: i256::from,
    }
}

fn item(values: &ArrayRef) -> FieldRef {
    Arc::new(Field::new("item", values.data_type().clone(), true))
}

fn union_fields(children: &[ArrayRef]) -> UnionFields {
    children.iter().enumerate().map(|(at, child)| (at as i8, item(child))).collect()
}

fn flats() -> impl Strategy<Value = Shape> {
    let views = prop_oneof![Just(Flat::Utf8View), Just(Flat::BinaryView)];
    let flat = prop::sample::select(vec![
        Flat::Null,
        Flat::Boolean,
        Flat::FixedSizeBinary(0),
        Flat::FixedSizeBinary(5),
        Flat::Utf8,
        Flat::LargeUtf8,
        Flat::Binary,
        Flat::LargeBinary,
    ]);
    let primitive = (0..PRIMITIVES.len()).prop_map(Flat::Primitive);
    prop_oneof![1 => views, 1 => flat, 1 => primitive].prop_map(Shape::Flat)
}

fn shapes() -> impl Strategy<Value = Shape> {
    flats().prop_recursive(3, 8, 3, |inner| {
        let boxed = || inner.clone().prop_map(Box::new);
        prop_oneof![
            boxed().prop_map(Shape::List),
            boxed().prop_map(Shape::LargeList),
            boxed().prop_map(Shape::ListView),
            boxed().prop_map(Shape::LargeListView),
            (boxed(), 0..4_i32).prop_map(|(values, width)| Shape::FixedSizeList(values, width)),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Shape::Struct),
            boxed().prop_map(Shape::Map),
        ]
    })
}

/// With unions, which Parquet knows none of: `arrow-ipc` writes them, and not right where they are nested or of empty lists.
fn columns() -> impl Strategy<Value = Shape> {
    let some = || {
        let child =
            flats().prop_filter("a copy loses their number", |flat| !matches!(flat, Shape::Flat(Flat::FixedSizeBinary(0))));
        prop::collection::vec(child, 1..3)
    };
    prop_oneof![10 => shapes(), 1 => some().prop_map(Shape::SparseUnion), 1 => some().prop_map(Shape::DenseUnion)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn every_layout_comes_as_it_was(
        shapes in prop::collection::vec(columns(), 1..4),
        rows in prop_oneof![0..20_usize, 0..300_usize],
        seed in 1..u64::MAX,
    ) {
        let mut numbers = Numbers(seed);
        let columns: Vec<_> = shapes.iter().map(|shape| numbers.array(shape, rows)).collect();
        let names = (0..).map(|at: usize| at.to_string());
        let columns = columns.into_iter().map(|column| {
            // The reader takes any union for one that is not nullable.
            let is_nullable = !matches!(column.data_type(), DataType::Union(..));
            (column, is_nullable)
        });
        let columns = names.zip(columns).map(|(name, (column, is_nullable))| (name, column, is_nullable));
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let cut = numbers.within(rows);
        same(&[batch.slice(cut.start, cut.len()), batch], None);
    }
}
