"""Rows of the cache in polars.

python examples/with_polars.py grpc://127.0.0.1:50051 s3://lake/trips/
"""

import sys

import flightcache
import polars as pl

server, trips = sys.argv[1:3]
cache = flightcache.connect(server)

# Only two columns of the rows that pass come over the wire.
frame = pl.DataFrame(cache.scan(trips, columns=["payer", "fare"], filter="fare > 20"))
print(frame.group_by("payer").agg(pl.len().alias("trips"), pl.col("fare").mean()).sort("payer"))
