//! Random predicates over random types: a table of the cache, and native Parquet that is read through it by rule, give the rows that
//! `DataFusion` finds among all rows of the same Parquet.

use std::sync::Arc;

use arrow::array::types::Float16Type;
use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, TimeUnit};
use arrow::util::display::array_value_to_string;
use arrow::util::pretty::pretty_format_batches;
use bytes::Bytes;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::functions::core::expr_ext::FieldAccessor as _;
use datafusion::functions_nested::expr_fn::{array_has, cardinality};
use datafusion::logical_expr::{Expr, Operator, binary_expr, cast, col, lit, try_cast};
use datafusion::physical_plan::displayable;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use flightcache::datafusion::with_rules;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::store::shared;
use crate::support::{Cache, values};

const ROWS: usize = 600;
const COLUMNS: usize = 6;
const FILTERS: usize = 25;

struct Random(TestRng);

impl Random {
    fn of_seed(seed: u64) -> Self {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn of<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())].clone()
    }

    /// Small ones mostly, so that values meet; of the type's range all the same.
    fn integer(&mut self, least: i64, greatest: i64) -> i64 {
        match self.below(12) {
            0 => self.of(&[least, greatest, 0]),
            1 => least.max(self.0.next_u64() as i64).min(greatest),
            _ => (self.below(41) as i64 - 20).clamp(least, greatest),
        }
    }

    fn float(&mut self) -> f64 {
        let special = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e300, 5e-324];
        if self.one_in(4) { self.of(&special) } else { (self.below(41) as f64 - 20.0) / 4.0 }
    }

    fn text(&mut self) -> String {
        let words = ["", "a", "alpha", "beta", "Beta", "%", "_x", "\\", "Straße", "日本", "zz", "\u{10FFFF}"];
        let mut text = self.of(&words).to_owned();
        if self.one_in(3) {
            text += self.of(&words);
        }
        // Writers cut statistics of long values short.
        if self.one_in(9) { text.repeat(40) } else { text }
    }

    fn data_type(&mut self) -> DataType {
        use DataType as T;
        let item = |data_type| Arc::new(Field::new_list_field(data_type, true));
        let zones = [None, Some("UTC".into()), Some("+02:00".into()), Some("America/New_York".into())];
        match self.below(22) {
            0 => self.of(&[T::Int8, T::Int16, T::Int32, T::Int64]),
            1 => self.of(&[T::UInt8, T::UInt16, T::UInt32, T::UInt64]),
            2 | 3 => self.of(&[T::Float16, T::Float32, T::Float64]),
            4 | 5 => self.of(&[T::Decimal128(5, 2), T::Decimal128(18, 0), T::Decimal128(38, 10), T::Decimal256(50, 3)]),
            6 => self.of(&[T::Date32, T::Date64]),
            7 => self.of(&[T::Time32(TimeUnit::Millisecond), T::Time64(TimeUnit::Microsecond), T::Time64(TimeUnit::Nanosecond)]),
            8..=10 => {
                let unit = self.of(&[TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond]);
                T::Timestamp(unit, self.of(&zones))
            }
            11 => T::Duration(TimeUnit::Microsecond),
            12 | 13 => self.of(&[T::Utf8, T::LargeUtf8, T::Utf8View]),
            14 => self.of(&[T::Binary, T::LargeBinary, T::BinaryView, T::FixedSizeBinary(3)]),
            15 => T::Boolean,
            16 | 17 => {
                let values = self.of(&[T::Utf8, T::Int64, T::Binary]);
                T::Dictionary(Box::new(self.of(&[T::Int16, T::Int32])), Box::new(values))
            }
            18 | 19 => self.of(&[T::List(item(T::Int32)), T::LargeList(item(T::Utf8)), T::List(item(T::Float64))]),
            _ => {
                let fields = [("a", T::Int64), ("b", T::Utf8), ("c", T::Float64)];
                T::Struct(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec().into())
            }
        }
    }

    fn value(&mut self, data_type: &DataType) -> ScalarValue {
        use {DataType as T, ScalarValue as S};
        if self.one_in(7) {
            return S::try_from(data_type).unwrap();
        }
        match data_type {
            T::Boolean => S::from(self.one_in(2)),
            T::Int8 => S::from(self.integer(i8::MIN.into(), i8::MAX.into()) as i8),
            T::Int16 => S::from(self.integer(i16::MIN.into(), i16::MAX.into()) as i16),
            T::Int32 => S::from(self.integer(i32::MIN.into(), i32::MAX.into()) as i32),
            T::Int64 => S::from(self.integer(i64::MIN, i64::MAX)),
            T::UInt8 => S::from(self.integer(0, u8::MAX.into()) as u8),
            T::UInt16 => S::from(self.integer(0, u16::MAX.into()) as u16),
            T::UInt32 => S::from(self.integer(0, u32::MAX.into()) as u32),
            T::UInt64 => S::from(if self.one_in(20) { u64::MAX } else { self.integer(0, i64::MAX) as u64 }),
            T::Float16 => S::Float16(Some(<Float16Type as ArrowPrimitiveType>::Native::from_f64(self.float()))),
            T::Float32 => S::from(self.float() as f32),
            T::Float64 => S::from(self.float()),
            T::Decimal128(precision, scale) => {
                let most = 10_i64.saturating_pow(u32::from(*precision).min(18)) - 1;
                S::Decimal128(Some(self.integer(-most, most).into()), *precision, *scale)
            }
            T::Decimal256(precision, scale) => {
                let value = self.integer(-(10_i64.pow(18)), 10_i64.pow(18));
                S::Decimal256(Some(arrow::datatypes::i256::from_i128(value.into())), *precision, *scale)
            }
            T::Date32 => S::Date32(Some(self.integer(-800_000, 800_000) as i32)),
            T::Date64 => S::Date64(Some(self.integer(-800_000, 800_000) * 86_400_000)),
            T::Time32(_) => S::Time32Millisecond(Some(self.integer(0, 86_399_999) as i32)),
            T::Time64(TimeUnit::Microsecond) => S::Time64Microsecond(Some(self.integer(0, 86_399_999_999))),
            T::Time64(_) => S::Time64Nanosecond(Some(self.integer(0, 86_399_999_999_999))),
            T::Timestamp(unit, zone) => {
                let of_unit = [1, 1_000, 1_000_000, 1_000_000_000][*unit as usize];
                let value = Some(self.integer(-8_000_000_000, 8_000_000_000) * of_unit);
                match unit {
                    TimeUnit::Second => S::TimestampSecond(value, zone.clone()),
                    TimeUnit::Millisecond => S::TimestampMillisecond(value, zone.clone()),
                    TimeUnit::Microsecond => S::TimestampMicrosecond(value, zone.clone()),
                    TimeUnit::Nanosecond => S::TimestampNanosecond(value, zone.clone()),
                }
            }
            T::Duration(_) => S::DurationMicrosecond(Some(self.integer(-1_000_000, 1_000_000))),
            T::Utf8 => S::Utf8(Some(self.text())),
            T::LargeUtf8 => S::LargeUtf8(Some(self.text())),
            T::Utf8View => S::Utf8View(Some(self.text())),
            T::Binary => S::Binary(Some(self.text().into_bytes())),
            T::LargeBinary => S::LargeBinary(Some(self.text().into_bytes())),
            T::BinaryView => S::BinaryView(Some(self.text().into_bytes())),
            T::FixedSizeBinary(width) => {
                let bytes = (0..*width).map(|_| self.of(&[0, 1, 255])).collect();
                S::FixedSizeBinary(*width, Some(bytes))
            }
            T::Dictionary(keys, values) => S::Dictionary(keys.clone(), Box::new(self.value(values))),
            T::List(item) => {
                let values: Vec<_> = (0..self.below(4)).map(|_| self.value(item.data_type())).collect();
                S::List(S::new_list(&values, item.data_type(), true))
            }
            T::LargeList(item) => {
                let values: Vec<_> = (0..self.below(4)).map(|_| self.value(item.data_type())).collect();
                S::LargeList(S::new_large_list(&values, item.data_type()))
            }
            T::Struct(fields) => {
                let values: Vec<ArrayRef> =
                    fields.iter().map(|field| self.value(field.data_type()).to_array().unwrap()).collect();
                S::Struct(Arc::new(arrow::array::StructArray::new(fields.clone(), values, None)))
            }
            other => panic!("{other} is not drawn"),
        }
    }

    /// A row number, then columns of random types. Some are sorted, so that statistics rule row groups out.
    fn table(&mut self) -> RecordBatch {
        let ids: ArrayRef = Arc::new((0..ROWS as i64).collect::<Int64Array>());
        let mut columns = vec![("id".to_owned(), ids, true)];
        for number in 0..COLUMNS {
            let data_type = self.data_type();
            let values = ScalarValue::iter_to_array((0..ROWS).map(|_| self.value(&data_type))).unwrap();
            let sorted = if self.one_in(2) { arrow::compute::sort(&values, None).ok() } else { None };
            columns.push((format!("c{number}"), sorted.unwrap_or(values), true));
        }
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    /// A value of a column, or one it may have.
    fn literal(&mut self, column: &ArrayRef) -> ScalarValue {
        if self.one_in(2) {
            self.value(column.data_type())
        } else {
            ScalarValue::try_from_array(column, self.below(ROWS)).unwrap()
        }
    }

    fn comparison(&mut self) -> Operator {
        self.of(&[
            Operator::Eq,
            Operator::NotEq,
            Operator::Lt,
            Operator::LtEq,
            Operator::Gt,
            Operator::GtEq,
            Operator::IsDistinctFrom,
            Operator::IsNotDistinctFrom,
        ])
    }

    fn filter(&mut self, table: &RecordBatch, depth: usize) -> Expr {
        if depth > 0 && self.one_in(2) {
            let one = self.filter(table, depth - 1);
            return match self.below(3) {
                0 => one.and(self.filter(table, depth - 1)),
                1 => one.or(self.filter(table, depth - 1)),
                _ => !one,
            };
        }
        let number = 1 + self.below(COLUMNS);
        let column = || col(format!("c{}", number - 1));
        let values = table.column(number);
        let data_type = values.data_type();
        let plain = match data_type {
            DataType::Dictionary(_, values) => values,
            other => other,
        };
        match (self.below(10), plain) {
            (0, _) => self.of(&[column().is_null(), column().is_not_null()]),
            (1, _) => {
                let list = (0..self.of(&[1, 3, 40])).map(|_| lit(self.literal(values))).collect();
                column().in_list(list, self.one_in(3))
            }
            (2, _) => column().between(lit(self.literal(values)), lit(self.literal(values))),
            (3, DataType::Int64) => binary_expr(column() % lit(5_i64), self.comparison(), lit(2_i64)),
            (3, DataType::Boolean) => column(),
            (3, text) if text.is_string() => {
                let pattern = lit(self.of(&["a%", "%a", "_lpha", "%", "", "beta", "%\\%%", "Straß_", "B%"]));
                let like = [Expr::like, Expr::ilike, Expr::not_like, Expr::not_ilike];
                self.of(&like)(column(), pattern)
            }
            (3, number) if number.is_numeric() => {
                let text = array_value_to_string(values, self.below(ROWS)).unwrap();
                binary_expr(try_cast(column(), DataType::Utf8), self.comparison(), lit(text))
            }
            (4, DataType::Int8 | DataType::UInt8 | DataType::Int32 | DataType::UInt32) => {
                binary_expr(cast(column(), DataType::Int64), self.comparison(), lit(self.integer(-20, 300)))
            }
            (4, DataType::Timestamp(..)) => {
                let day = ScalarValue::Date32(Some(self.integer(-90_000, 90_000) as i32));
                binary_expr(try_cast(column(), DataType::Date32), self.comparison(), lit(day))
            }
            (3..6, DataType::List(item) | DataType::LargeList(item)) => {
                let item = lit(self.value(item.data_type()));
                self.of(&[array_has(column(), item), binary_expr(cardinality(column()), Operator::Gt, lit(1_u64))])
            }
            (3..8, DataType::Struct(fields)) => {
                let field = self.of(fields);
                let value = lit(self.value(field.data_type()));
                binary_expr(column().field(field.name().as_str()), self.comparison(), value)
            }
            _ => binary_expr(column(), self.comparison(), lit(self.literal(values))),
        }
    }
}

fn parquet(table: &RecordBatch) -> Bytes {
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(100))
        .set_data_page_row_count_limit(40)
        .set_write_batch_size(20)
        .set_bloom_filter_enabled(true)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), table.schema(), Some(properties)).unwrap();
    writer.write(table).unwrap();
    writer.into_inner().unwrap().into()
}

/// The rows that pass, and what was planned.
async fn ask(context: &SessionContext, filter: &Expr) -> (Result<Vec<i64>, String>, String) {
    let mut shown = String::new();
    let asked = async {
        let frame = context.table("t").await?.filter(filter.clone())?.select_columns(&["id"])?;
        let plan = frame.create_physical_plan().await?;
        shown = displayable(plan.as_ref()).indent(false).to_string();
        datafusion::physical_plan::collect(plan, context.task_ctx()).await
    };
    let rows: datafusion::common::Result<Vec<RecordBatch>> = asked.await;
    let mut ids = rows.map(|rows| values(&rows)).map_err(|e| e.strip_backtrace());
    if let Ok(ids) = &mut ids {
        ids.sort_unstable();
    }
    (ids, shown)
}

/// `FLIGHTCACHE_TEST_SEEDS=100..200` draws others.
#[tokio::test(flavor = "multi_thread")]
async fn random_predicates_over_random_types_select_what_datafusion_selects() {
    let seeds = std::env::var("FLIGHTCACHE_TEST_SEEDS").unwrap_or_else(|_| "0..8".to_owned());
    let (first, end) = seeds.split_once("..").expect("FLIGHTCACHE_TEST_SEEDS is like 0..8");
    let (mut asked, mut failed, mut selected, mut pushed) = (0, 0, 0, 0);
    let cache = Cache::start().await;
    for seed in first.parse::<u64>().unwrap()..end.parse().unwrap() {
        let mut random = Random::of_seed(seed);
        let table = random.table();
        cache.store.put("t.parquet", parquet(&table)).await;
        cache.client.evict("s3://lake/").await.unwrap();
        let state =
            || SessionStateBuilder::new().with_config(SessionConfig::new().with_target_partitions(2)).with_default_features();
        let ours = SessionContext::new_with_state(state().build());
        ours.register_table("t", cache.client.table("s3://lake/t.parquet").await.unwrap()).unwrap();
        let ruled = with_rules(state(), Some(cache.client.reroute().await.unwrap()));
        let ruled = SessionContext::new_with_state(ruled.build());
        ruled.register_object_store(&url::Url::parse("s3://lake").unwrap(), shared(&cache.store));
        ruled.register_parquet("t", "s3://lake/t.parquet", ParquetReadOptions::default()).await.unwrap();
        // Rows in memory: native scans that prune leave out NaN, which writers keep out of statistics.
        let native = SessionContext::new_with_state(state().build());
        native.register_object_store(&url::Url::parse("s3://lake").unwrap(), shared(&cache.store));
        let rows =
            native.read_parquet("s3://lake/t.parquet", ParquetReadOptions::default()).await.unwrap().collect().await.unwrap();
        let plain = SessionContext::new_with_state(state().build());
        plain.register_table("t", Arc::new(MemTable::try_new(rows[0].schema(), vec![rows]).unwrap())).unwrap();
        for number in 0..FILTERS {
            let filter = random.filter(&table, 3);
            let (expected, _) = ask(&plain, &filter).await;
            for (door, context) in [("table", &ours), ("rule", &ruled)] {
                let (rows, plan) = ask(context, &filter).await;
                let what = || format!("seed {seed}, filter {number}, {door}: {filter}\n{}\n{plan}", table.schema());
                match (&expected, &rows) {
                    (Ok(expected), Ok(rows)) => {
                        let differing = rows.iter().chain(expected).find(|id| rows.contains(id) != expected.contains(id));
                        let row = differing.map(|&id| pretty_format_batches(&[table.slice(id as usize, 1)]).unwrap().to_string());
                        assert!(row.is_none(), "{}\n{}", what(), row.unwrap_or_default());
                    }
                    (Ok(_), Err(error)) => panic!("{error}\n{}", what()),
                    // Where rows are skipped, those that nothing can be made of may be among them.
                    (Err(_), _) => failed += 1,
                }
                asked += 1;
                selected += usize::from(rows.is_ok_and(|rows| !rows.is_empty() && rows.len() < ROWS));
                pushed += usize::from(!plan.contains("FilterExec") && plan.contains("predicate="));
            }
        }
    }
    println!("{asked} asked, {failed} failed, {selected} selected some, {pushed} pushed");
    assert!(failed * 5 < asked && selected * 3 > asked && pushed * 2 > asked, "{asked} {failed} {selected} {pushed}");
    cache.stop().await;
}
