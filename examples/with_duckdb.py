"""Rows of the cache in DuckDB, by the name of the variable that holds them.

python examples/with_duckdb.py grpc://127.0.0.1:50051 s3://lake/trips/
"""

import sys

import duckdb
import flightcache

server, trips = sys.argv[1:3]
cache = flightcache.connect(server)

# DuckDB pulls the rows while it runs. What should be filtered at the server is said to the scan.
rows = cache.scan(trips, columns=["payer", "fare", "tip"], filter="fare > 20")
print(duckdb.sql("SELECT payer, count(*) AS trips, round(avg(tip), 2) AS tip FROM rows GROUP BY payer ORDER BY payer"))
