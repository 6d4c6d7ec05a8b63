//! One statement's text, read and judged: what is not a question is refused here, before anything is looked up.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::common::TableReference;
use datafusion::sql::parser::{CreateExternalTable, DFParserBuilder, Statement as Parsed};
use datafusion::sql::planner::object_name_to_table_reference;
use datafusion::sql::sqlparser::ast::{
    DataType as SqlType, Expr as SqlExpr, FunctionArg, FunctionArgExpr, ObjectName, ObjectType, Query, Statement as Sql,
    TableFactor, UnaryOperator, Visit as _, Visitor, visit_relations,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use flightcache_proto::{Error, ErrorKind, Result};

use super::error::from_datafusion;
use super::tables::{CATALOG, SCHEMA};

/// Longer statements are refused.
pub const MAX_SQL_BYTES: usize = 1 << 20;
/// Plans nest as deep as chains of operators are long, and are dropped by recursion. Literals and commas do not count.
const MAX_TOKENS: usize = 3_000;

/// Common table expressions that name others stand for as many, at most.
const MAX_MENTIONS: u64 = 1_000;

/// What may be asked.
#[derive(Debug)]
pub(super) enum Statement {
    /// A query, or what tells of one or of the tables.
    Query(Box<Parsed>),
    CreateTable {
        name: String,
        url: String,
        if_not_exists: bool,
        or_replace: bool,
    },
    DropTable {
        name: String,
        if_exists: bool,
    },
}

impl Statement {
    /// Reads exactly one statement. Placeholders may be written `$1` or `?`.
    pub(super) fn parse(sql: &str) -> Result<Self> {
        if sql.len() > MAX_SQL_BYTES {
            return Err(Error::invalid(format!("a statement of {} bytes; at most {MAX_SQL_BYTES} are read", sql.len())));
        }
        let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location();
        let mut tokens = tokens.map_err(|e| Error::invalid(format!("SQL: {e}")))?;
        let is_simple = |token: &Token| {
            matches!(token, Token::Whitespace(_) | Token::Comma | Token::Number(..) | Token::SingleQuotedString(_))
        };
        let count = tokens.iter().filter(|token| !is_simple(&token.token)).count();
        if count > MAX_TOKENS {
            let message = format!(
                "a statement of {count} names and operators; at most {MAX_TOKENS} are read. Long lists of values go into IN (…)"
            );
            return Err(Error::invalid(message));
        }
        // Each nests the statement, and one within another says nothing.
        let mut words = tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
        let is_explain = |token: Option<&TokenWithSpan>| {
            token.is_some_and(|token| matches!(&token.token, Token::Word(word) if word.value.eq_ignore_ascii_case("explain")))
        };
        if is_explain(words.next()) && is_explain(words.next()) {
            return Err(refused("EXPLAIN of EXPLAIN"));
        }
        let mut position = 0;
        for token in &mut tokens {
            if token.token == Token::Placeholder("?".to_owned()) {
                position += 1;
                token.token = Token::Placeholder(format!("${position}"));
            }
        }
        let parsed = DFParserBuilder::new(tokens).with_dialect(&GenericDialect {}).build();
        let mut statements = parsed.and_then(|mut parser| parser.parse_statements()).map_err(|e| from_datafusion(&e))?;
        match (statements.pop_front(), statements.len()) {
            (Some(statement), 0) => Self::judge(statement),
            (None, _) => Err(Error::invalid("the statement is empty")),
            (Some(_), more) => Err(Error::invalid(format!("{} statements; one at a time is taken", more + 1))),
        }
    }

    fn judge(statement: Parsed) -> Result<Self> {
        if is_question(&statement) {
            check_table_functions(&statement)?;
            return Ok(Self::Query(Box::new(statement)));
        }
        match statement {
            Parsed::CreateExternalTable(create) => create_table(create),
            Parsed::Statement(sql) => match *sql {
                Sql::Drop { object_type: ObjectType::Table, if_exists, names, .. } => match <[ObjectName; 1]>::try_from(names) {
                    Ok([name]) => Ok(Self::DropTable { name: table_name(name)?, if_exists }),
                    Err(names) => Err(refused(&format!("DROP of {} tables in one statement", names.len()))),
                },
                sql => Err(refused(&first_words(&sql.to_string()))),
            },
            other => Err(refused(&first_words(&other.to_string()))),
        }
    }
}

/// Whether a statement asks and changes nothing. What hides within a query is found in its plan.
fn is_question(statement: &Parsed) -> bool {
    match statement {
        Parsed::Explain(explain) => !matches!(*explain.statement, Parsed::Explain(_)) && is_question(&explain.statement),
        Parsed::Statement(sql) => match sql.as_ref() {
            Sql::Explain { statement, .. } => matches!(**statement, Sql::Query(_)),
            Sql::Query(_)
            | Sql::ExplainTable { .. }
            | Sql::ShowTables { .. }
            | Sql::ShowColumns { .. }
            | Sql::ShowFunctions { .. } => true,
            _ => false,
        },
        _ => false,
    }
}

/// Arguments of functions in place of tables are computed while planning, before anything is measured: they are taken if there is
/// nothing to compute.
fn check_table_functions(statement: &Parsed) -> Result<()> {
    match statement {
        Parsed::Explain(explain) => check_table_functions(&explain.statement),
        Parsed::Statement(sql) => match sql.visit(&mut Shape::default()) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Looks a query over before it is planned.
#[derive(Default)]
struct Shape {
    /// For each common table expression, by name: mentions of others that it comes to.
    mentions: HashMap<String, u64>,
}

impl Visitor for Shape {
    type Break = Error;

    /// A common table expression is planned anew wherever it is named, and so are those that it names.
    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Error> {
        for table in query.with.iter().flat_map(|with| &with.cte_tables) {
            let mut mentions = 1_u64;
            let _ = visit_relations(&*table.query, |name| {
                let known = self.mentions.get(&folded(&name.to_string())).copied();
                mentions = mentions.saturating_add(known.unwrap_or(0));
                ControlFlow::<()>::Continue(())
            });
            if mentions > MAX_MENTIONS {
                let message =
                    format!("{} stands for {mentions} mentions of others; at most {MAX_MENTIONS} are planned", table.alias.name);
                return ControlFlow::Break(Error::new(ErrorKind::ResourceExhausted, message));
            }
            self.mentions.insert(folded(&table.alias.name.to_string()), mentions);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<Error> {
        let (name, arguments) = match table {
            TableFactor::Table { name, args: Some(arguments), .. } => (name, &arguments.args),
            TableFactor::Function { name, args, .. } => (name, args),
            _ => return ControlFlow::Continue(()),
        };
        if arguments.iter().all(is_constant) {
            return ControlFlow::Continue(());
        }
        let message = format!("{name} in place of a table takes constants; in place of a value it takes what is computed");
        ControlFlow::Break(Error::new(ErrorKind::Unsupported, message))
    }
}

/// Names that may be the same.
fn folded(name: &str) -> String {
    name.trim_matches('"').to_lowercase()
}

fn is_constant(argument: &FunctionArg) -> bool {
    fn is(expr: &SqlExpr) -> bool {
        match expr {
            SqlExpr::Value(_) | SqlExpr::Interval(_) | SqlExpr::TypedString { .. } => true,
            SqlExpr::UnaryOp { op: UnaryOperator::Minus | UnaryOperator::Plus, expr } | SqlExpr::Nested(expr) => is(expr),
            SqlExpr::Cast { expr, data_type, .. } => is(expr) && !matches!(data_type, SqlType::Array(_)),
            _ => false,
        }
    }
    match argument {
        FunctionArg::Named { arg, .. } | FunctionArg::ExprNamed { arg, .. } | FunctionArg::Unnamed(arg) => {
            matches!(arg, FunctionArgExpr::Expr(expr) if is(expr))
        }
    }
}

fn create_table(create: CreateExternalTable) -> Result<Statement> {
    let extras = [
        (!create.columns.is_empty(), "a list of columns: the files have their schema"),
        (!create.table_partition_cols.is_empty(), "PARTITIONED BY: directories named key=value are columns by themselves"),
        (!create.order_exprs.is_empty(), "WITH ORDER"),
        (!create.options.is_empty(), "OPTIONS: sources are declared in the server's settings"),
        (!create.constraints.is_empty(), "constraints"),
        (create.unbounded, "UNBOUNDED"),
        (!create.file_type.eq_ignore_ascii_case("parquet"), "another format than PARQUET"),
    ];
    if let Some((_, extra)) = extras.iter().find(|(is_there, _)| *is_there) {
        return Err(Error::new(ErrorKind::Unsupported, format!("CREATE EXTERNAL TABLE does not take {extra}")));
    }
    let [url] = <[String; 1]>::try_from(create.locations)
        .map_err(|urls| Error::invalid(format!("CREATE EXTERNAL TABLE takes one LOCATION, not {}", urls.len())))?;
    let name = table_name(create.name)?;
    if name.contains("://") {
        return Err(Error::invalid(format!("{name:?} is a URL; it needs no other name")));
    }
    Ok(Statement::CreateTable { name, url, if_not_exists: create.if_not_exists, or_replace: create.or_replace })
}

/// A table's name within the one schema there is.
fn table_name(name: ObjectName) -> Result<String> {
    let reference = object_name_to_table_reference(name, true).map_err(|e| from_datafusion(&e))?;
    let is_ours = match &reference {
        TableReference::Bare { .. } => true,
        TableReference::Partial { schema, .. } => **schema == *SCHEMA,
        TableReference::Full { catalog, schema, .. } => **catalog == *CATALOG && **schema == *SCHEMA,
    };
    if is_ours {
        return Ok(reference.table().to_owned());
    }
    Err(Error::invalid(format!("{reference} lies outside {CATALOG}.{SCHEMA}")))
}

fn refused(what: &str) -> Error {
    let message = format!(
        "{what} is refused: this server is read only. It takes SELECT, EXPLAIN, SHOW TABLES, SHOW COLUMNS, DESCRIBE, CREATE EXTERNAL TABLE and DROP TABLE"
    );
    Error::new(ErrorKind::Unsupported, message)
}

/// What kind of statement it is, for people.
fn first_words(sql: &str) -> String {
    sql.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// The error of a query whose plan would change something.
pub(super) fn refused_plan(message: &str) -> Error {
    refused(message.split(':').next_back().map_or(message, str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(sql: &str) -> Option<ErrorKind> {
        Statement::parse(sql).err().map(|error| error.kind)
    }

    #[test]
    fn questions_are_taken() {
        for sql in [
            "SELECT 1",
            "select * from 's3://lake/t.parquet' where a > ?",
            "WITH x AS (SELECT 1) SELECT * FROM x;",
            "VALUES (1), (2)",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE VERBOSE SELECT 1",
            "SHOW TABLES",
            "DESCRIBE t",
            "SHOW COLUMNS FROM t",
            "SELECT * FROM range(-1, 10), generate_series(TIMESTAMP '2024-01-01', '2025-01-01'::timestamp, INTERVAL '1' DAY)",
            "SELECT cardinality(range(1, 1 + 1))",
        ] {
            assert!(matches!(Statement::parse(sql), Ok(Statement::Query(_))), "{sql}: {:?}", Statement::parse(sql));
        }
    }

    #[test]
    fn all_else_is_refused() {
        for sql in [
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET a = 1",
            "DELETE FROM t",
            "CREATE TABLE t (a int)",
            "CREATE TABLE t AS SELECT 1",
            "CREATE VIEW v AS SELECT 1",
            "CREATE EXTERNAL TABLE t (a int) STORED AS PARQUET LOCATION 's3://lake/t/'",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 's3://lake/t/'",
            "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 's3://lake/t/' OPTIONS ('aws.secret_access_key' 'x')",
            "DROP VIEW v",
            "DROP SCHEMA public",
            "DROP TABLE a, b",
            "COPY t TO 'file:///tmp/x.parquet'",
            "COPY (SELECT 1) TO '/tmp/x.csv'",
            "SET datafusion.execution.batch_size = 1",
            "RESET datafusion.execution.batch_size",
            "SHOW ALL",
            "SHOW datafusion.runtime.temp_directory",
            "BEGIN",
            "COMMIT",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "CREATE FUNCTION f() RETURNS INT RETURN 1",
            "EXPLAIN INSERT INTO t VALUES (1)",
            "EXPLAIN ANALYZE COPY (SELECT 1) TO '/tmp/x.csv'",
            "TRUNCATE TABLE t",
            "EXPLAIN EXPLAIN SELECT 1",
            "SELECT * FROM range(1, cardinality(range(0, 4000000000)))",
            "SELECT * FROM (SELECT * FROM generate_series(1, length(repeat('x', 2000000000))) AS s)",
            "EXPLAIN SELECT 1 WHERE 1 IN (SELECT value FROM range(1, 1 + 1))",
        ] {
            assert_eq!(kind(sql), Some(ErrorKind::Unsupported), "{sql}");
        }
        for sql in ["", ";", "SELECT", "SELECT 1; SELECT 2", "nonsense", "DROP TABLE other.public.t"] {
            assert_eq!(kind(sql), Some(ErrorKind::InvalidRequest), "{sql}");
        }
    }

    #[test]
    fn what_doubles_at_each_step_is_refused() {
        let steps = |count: usize| {
            let steps: Vec<_> =
                (1..=count).map(|at| format!(", t{at} AS (SELECT * FROM t{0} UNION ALL SELECT * FROM T{0})", at - 1)).collect();
            format!("WITH t0 AS (SELECT 1 AS x){} SELECT * FROM t{count}", steps.concat())
        };
        assert_eq!(kind(&steps(8)), None);
        assert_eq!(kind(&steps(40)), Some(ErrorKind::ResourceExhausted));
    }

    #[test]
    fn tables_are_named() {
        let create = Statement::parse("CREATE OR REPLACE EXTERNAL TABLE Trips STORED AS PARQUET LOCATION 's3://lake/trips/'");
        assert!(
            matches!(create, Ok(Statement::CreateTable { name, url, or_replace: true, if_not_exists: false }) if name == "trips" && url == "s3://lake/trips/")
        );
        let drop = Statement::parse("DROP TABLE IF EXISTS flightcache.public.\"Trips\"");
        assert!(matches!(drop, Ok(Statement::DropTable { name, if_exists: true }) if name == "Trips"));
    }

    #[test]
    fn bounds_hold() {
        assert_eq!(kind(&format!("SELECT {}1", "1 + ".repeat(20_000))), Some(ErrorKind::InvalidRequest));
        assert_eq!(kind(&"x".repeat(2 << 20)), Some(ErrorKind::InvalidRequest));
        assert_eq!(kind(&format!("SELECT {}1{}", "(".repeat(4_000), ")".repeat(4_000))), Some(ErrorKind::InvalidRequest));
        let values: Vec<_> = (0..50_000).map(|value| value.to_string()).collect();
        assert_eq!(kind(&format!("SELECT 1 IN ({})", values.join(","))), None);
    }
}
