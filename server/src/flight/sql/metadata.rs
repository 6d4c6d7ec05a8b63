//! What there is to know of the server and its tables, as Flight SQL asks for it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{
    Command, CommandGetTables, Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel,
    SqlSupportedCaseSensitivity, SqlSupportedTransaction, SqlTransactionIsolationLevel, XdbcDataType,
};
use flightcache_proto::{Error, Result};
use futures::StreamExt as _;

use super::super::MAX_FRAME_BYTES;
use crate::sql::{CATALOG, MAX_NAME_BYTES, MAX_SQL_BYTES, SCHEMA, Sql};

const TABLE: &str = "TABLE";
/// Tables looked at, at a time.
const TABLES_AT_A_TIME: usize = 8;
const INFORMATION_SCHEMA: &str = "information_schema";

/// The schema of a command's answer, if it asks for such things. Without I/O.
pub(super) fn schema(command: &Command) -> Option<SchemaRef> {
    Some(match command.clone() {
        Command::CommandGetSqlInfo(_) => Arc::new(SqlInfoDataBuilder::schema().clone()),
        Command::CommandGetXdbcTypeInfo(_) => types().ok()?.schema(),
        Command::CommandGetCatalogs(command) => command.into_builder().schema(),
        Command::CommandGetDbSchemas(command) => command.into_builder().schema(),
        Command::CommandGetTables(command) => command.into_builder().schema(),
        Command::CommandGetTableTypes(command) => command.into_builder().schema(),
        Command::CommandGetPrimaryKeys(_) => primary_keys(),
        Command::CommandGetExportedKeys(_) | Command::CommandGetImportedKeys(_) | Command::CommandGetCrossReference(_) => {
            foreign_keys()
        }
        _ => return None,
    })
}

/// A command's answer, if it asks for such things.
pub(super) async fn batch(sql: &Arc<Sql>, command: &Command) -> Result<Option<RecordBatch>> {
    let batch = match command.clone() {
        Command::CommandGetSqlInfo(command) => command.into_builder(info()?).build(),
        Command::CommandGetXdbcTypeInfo(command) => command.into_builder(types()?).build(),
        Command::CommandGetCatalogs(command) => {
            let mut builder = command.into_builder();
            builder.append(CATALOG);
            builder.build()
        }
        Command::CommandGetDbSchemas(command) => {
            let mut builder = command.into_builder();
            builder.append(CATALOG, INFORMATION_SCHEMA);
            builder.append(CATALOG, SCHEMA);
            builder.build()
        }
        Command::CommandGetTables(command) => return tables(sql, command).await.map(Some),
        Command::CommandGetTableTypes(command) => {
            let mut builder = command.into_builder();
            builder.append(TABLE);
            builder.build()
        }
        // There are no keys.
        other => return Ok(schema(&other).map(RecordBatch::new_empty)),
    };
    batch.map(Some).map_err(|e| Error::internal(e.to_string()))
}

/// The tables that a command asks for. Those whose schemas it wants are looked at, and no others.
async fn tables(sql: &Arc<Sql>, command: CommandGetTables) -> Result<RecordBatch> {
    let failed = |e: FlightError| Error::internal(e.to_string());
    let include_schema = command.include_schema;
    let mut builder = CommandGetTables { include_schema: false, ..command.clone() }.into_builder();
    for name in sql.table_names() {
        builder.append(CATALOG, SCHEMA, &name, TABLE, &Schema::empty()).map_err(failed)?;
    }
    let wanted = builder.build().map_err(failed)?;
    if !include_schema {
        return Ok(wanted);
    }
    let mut builder = command.into_builder();
    let names: Vec<String> = wanted.column(2).as_string::<i32>().iter().flatten().map(str::to_owned).collect();
    let mut schemas = futures::stream::iter(names)
        .map(|name| async move {
            // One that cannot be read is listed all the same.
            let schema = sql.table_schema(&name).await.unwrap_or_else(|error| {
                tracing::warn!(name, cause = %error, "a table cannot be read");
                Arc::new(Schema::empty())
            });
            (name, schema)
        })
        .buffered(TABLES_AT_A_TIME);
    while let Some((name, schema)) = schemas.next().await {
        builder.append(CATALOG, SCHEMA, name, TABLE, &schema).map_err(failed)?;
    }
    builder.build().map_err(failed)
}

fn info() -> Result<&'static SqlInfoData> {
    static INFO: LazyLock<std::result::Result<SqlInfoData, String>> = LazyLock::new(|| {
        let mut info = SqlInfoDataBuilder::new();
        info.append(SqlInfo::FlightSqlServerName, "Flightcache");
        info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
        info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
        info.append(SqlInfo::FlightSqlServerReadOnly, true);
        info.append(SqlInfo::FlightSqlServerSql, true);
        info.append(SqlInfo::FlightSqlServerSubstrait, false);
        info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
        info.append(SqlInfo::FlightSqlServerCancel, true);
        info.append(SqlInfo::FlightSqlServerBulkIngestion, false);
        info.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
        info.append(SqlInfo::FlightSqlServerTransactionTimeout, 0_i32);
        info.append(SqlInfo::SqlDdlCatalog, false);
        info.append(SqlInfo::SqlDdlSchema, false);
        info.append(SqlInfo::SqlDdlTable, true);
        info.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32);
        info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
        info.append(SqlInfo::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityUnknown as i32);
        info.append(SqlInfo::SqlAllTablesAreSelectable, true);
        info.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
        info.append(SqlInfo::SqlSearchStringEscape, "\\");
        info.append(SqlInfo::SqlSupportsColumnAliasing, true);
        info.append(SqlInfo::SqlNullPlusNullIsNull, true);
        info.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
        info.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
        info.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
        info.append(SqlInfo::SqlSupportsLikeEscapeClause, true);
        info.append(SqlInfo::SqlSupportsNonNullableColumns, true);
        info.append(SqlInfo::SqlSchemaTerm, "schema");
        info.append(SqlInfo::SqlCatalogTerm, "catalog");
        info.append(SqlInfo::SqlCatalogAtStart, true);
        info.append(SqlInfo::SqlSelectForUpdateSupported, false);
        info.append(SqlInfo::SqlStoredProceduresSupported, false);
        info.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
        info.append(SqlInfo::SqlTransactionsSupported, false);
        info.append(SqlInfo::SqlBatchUpdatesSupported, false);
        info.append(SqlInfo::SqlSavepointsSupported, false);
        info.append(SqlInfo::SqlNamedParametersSupported, true);
        // What JDBC's metadata asks for besides, and takes no silence for an answer.
        let none: &[&str] = &[];
        for names in [
            SqlInfo::SqlKeywords,
            SqlInfo::SqlNumericFunctions,
            SqlInfo::SqlStringFunctions,
            SqlInfo::SqlSystemFunctions,
            SqlInfo::SqlDatetimeFunctions,
        ] {
            info.append(names, none);
        }
        info.append(SqlInfo::SqlExtraNameCharacters, "");
        info.append(SqlInfo::SqlProcedureTerm, "procedure");
        info.append(SqlInfo::SqlSupportsConvert, HashMap::<i32, Vec<i32>>::new());
        for is_so in [
            SqlInfo::SqlSupportsDifferentTableCorrelationNames,
            SqlInfo::SqlSupportsIntegrityEnhancementFacility,
            SqlInfo::SqlMaxRowSizeIncludesBlobs,
            SqlInfo::SqlDataDefinitionCausesTransactionCommit,
            SqlInfo::SqlDataDefinitionsInTransactionsIgnored,
            SqlInfo::SqlLocatorsUpdateCopy,
            SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported,
        ] {
            info.append(is_so, matches!(is_so, SqlInfo::SqlMaxRowSizeIncludesBlobs));
        }
        // Bits, by the enumerations of `FlightSql.proto`.
        for (bits, value) in [
            (SqlInfo::SqlSupportedGroupBy, 0b11),
            (SqlInfo::SqlSupportedGrammar, 0b1),
            (SqlInfo::SqlAnsi92SupportedLevel, 0b1),
            (SqlInfo::SqlSchemasSupportedActions, 0),
            (SqlInfo::SqlCatalogsSupportedActions, 0),
            (SqlInfo::SqlSupportedPositionedCommands, 0),
            (SqlInfo::SqlSupportedSubqueries, 0b111),
            (SqlInfo::SqlSupportedUnions, 0b11),
            (SqlInfo::SqlSupportedTransactionsIsolationLevels, 0b1),
            (SqlInfo::SqlSupportedResultSetTypes, 0b10),
            (SqlInfo::SqlSupportedConcurrenciesForResultSetUnspecified, 0),
            (SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly, 0b10),
            (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0),
            (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0),
            (SqlInfo::SqlOuterJoinsSupportLevel, SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32),
            (SqlInfo::SqlDefaultTransactionIsolation, SqlTransactionIsolationLevel::SqlTransactionNone as i32),
        ] {
            info.append(bits, value);
        }
        // Zero: no bound, or none that is known.
        for (bound, value) in [
            (SqlInfo::SqlMaxBinaryLiteralLength, 0),
            (SqlInfo::SqlMaxCharLiteralLength, 0),
            (SqlInfo::SqlMaxColumnNameLength, 0),
            (SqlInfo::SqlMaxColumnsInGroupBy, 0),
            (SqlInfo::SqlMaxColumnsInIndex, 0),
            (SqlInfo::SqlMaxColumnsInOrderBy, 0),
            (SqlInfo::SqlMaxColumnsInSelect, 0),
            (SqlInfo::SqlMaxColumnsInTable, 0),
            (SqlInfo::SqlMaxConnections, 0),
            (SqlInfo::SqlMaxCursorNameLength, 0),
            (SqlInfo::SqlMaxIndexLength, 0),
            (SqlInfo::SqlDbSchemaNameLength, 0),
            (SqlInfo::SqlMaxProcedureNameLength, 0),
            (SqlInfo::SqlMaxCatalogNameLength, 0),
            // A row goes in one message.
            (SqlInfo::SqlMaxRowSize, MAX_FRAME_BYTES as i64),
            (SqlInfo::SqlMaxStatementLength, MAX_SQL_BYTES as i64),
            (SqlInfo::SqlMaxStatements, 0),
            (SqlInfo::SqlMaxTableNameLength, MAX_NAME_BYTES as i64),
            (SqlInfo::SqlMaxTablesInSelect, 0),
            (SqlInfo::SqlMaxUsernameLength, 0),
        ] {
            info.append(bound, value);
        }
        info.build().map_err(|e| e.to_string())
    });
    INFO.as_ref().map_err(|e| Error::internal(format!("GetSqlInfo: {e}")))
}

fn types() -> Result<&'static XdbcTypeInfoData> {
    static TYPES: LazyLock<std::result::Result<XdbcTypeInfoData, String>> = LazyLock::new(|| {
        let mut types = XdbcTypeInfoDataBuilder::new();
        let number = |type_name: &str, data_type, bits, is_unsigned| XdbcTypeInfo {
            column_size: Some(bits),
            num_prec_radix: Some(2),
            unsigned_attribute: Some(is_unsigned),
            ..of_type(type_name, data_type)
        };
        for info in [
            of_type("BOOLEAN", XdbcDataType::XdbcBit),
            number("TINYINT", XdbcDataType::XdbcTinyint, 8, false),
            number("SMALLINT", XdbcDataType::XdbcSmallint, 16, false),
            number("INTEGER", XdbcDataType::XdbcInteger, 32, false),
            number("BIGINT", XdbcDataType::XdbcBigint, 64, false),
            number("REAL", XdbcDataType::XdbcReal, 24, false),
            number("DOUBLE", XdbcDataType::XdbcDouble, 53, false),
            XdbcTypeInfo {
                column_size: Some(76),
                num_prec_radix: Some(10),
                create_params: Some(vec!["precision".to_owned(), "scale".to_owned()]),
                minimum_scale: Some(0),
                maximum_scale: Some(76),
                fixed_prec_scale: true,
                unsigned_attribute: Some(false),
                ..of_type("DECIMAL", XdbcDataType::XdbcDecimal)
            },
            quoted(of_type("DATE", XdbcDataType::XdbcDate)),
            quoted(of_type("TIME", XdbcDataType::XdbcTime)),
            quoted(of_type("TIMESTAMP", XdbcDataType::XdbcTimestamp)),
            quoted(of_type("INTERVAL", XdbcDataType::XdbcInterval)),
            XdbcTypeInfo { case_sensitive: true, ..quoted(of_type("VARCHAR", XdbcDataType::XdbcVarchar)) },
            of_type("BYTEA", XdbcDataType::XdbcVarbinary),
        ] {
            types.append(info);
        }
        types.build().map_err(|e| e.to_string())
    });
    TYPES.as_ref().map_err(|e| Error::internal(format!("GetXdbcTypeInfo: {e}")))
}

fn of_type(type_name: &str, data_type: XdbcDataType) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: type_name.to_owned(),
        data_type,
        sql_data_type: data_type,
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        auto_increment: Some(false),
        local_type_name: Some(type_name.to_owned()),
        ..XdbcTypeInfo::default()
    }
}

fn quoted(info: XdbcTypeInfo) -> XdbcTypeInfo {
    XdbcTypeInfo { literal_prefix: Some("'".to_owned()), literal_suffix: Some("'".to_owned()), ..info }
}

/// As `FlightSql.proto` has it.
fn primary_keys() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("key_name", DataType::Utf8, true),
    ]))
}

/// As `FlightSql.proto` has it: of exported keys, imported ones and cross references.
fn foreign_keys() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
}
