//! Suites of queries and their tables.

use clap::ValueEnum;

/// Queries over tables of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// 22 queries over 8 tables, as `tpchgen-cli parquet` makes them.
    Tpch,
    /// 43 queries over `hits`.
    Clickbench,
}

/// A query of a suite.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// From 1.
    pub(super) number: usize,
    pub(super) sql: String,
}

impl Suite {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tpch => "TPC-H",
            Self::Clickbench => "ClickBench",
        }
    }

    /// With its number of queries.
    pub(super) fn title(self) -> String {
        format!("{}'s {} queries", self.name(), self.all().count())
    }

    pub(super) fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Tpch => &["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"],
            Self::Clickbench => &["hits"],
        }
    }

    fn all(self) -> impl Iterator<Item = &'static str> {
        let text = match self {
            Self::Tpch => include_str!("tpch.sql"),
            Self::Clickbench => include_str!("clickbench.sql"),
        };
        text.split(";\n").map(str::trim).filter(|sql| !sql.is_empty())
    }

    /// Those of these numbers, or all.
    pub(super) fn queries(self, numbers: &[usize]) -> Result<Vec<Query>, String> {
        let all: Vec<Query> = (1..).zip(self.all()).map(|(number, sql)| Query { number, sql: sql.to_owned() }).collect();
        if let Some(number) = numbers.iter().find(|number| !(1..=all.len()).contains(number)) {
            return Err(format!("{} has no query {number}, but 1 to {}", self.name(), all.len()));
        }
        Ok(all.into_iter().filter(|query| numbers.is_empty() || numbers.contains(&query.number)).collect())
    }
}

impl Query {
    /// The query without its limit, if it has one.
    pub(super) fn unlimited(&self) -> Option<String> {
        let last = self.sql.rfind("LIMIT ").or_else(|| self.sql.rfind("limit "))?;
        // The last clause, not one of a query inside.
        (!self.sql[last..].contains(')')).then(|| self.sql[..last].trim_end().to_owned())
    }
}
