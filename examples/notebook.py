"""Flightcache from Python, cell by cell: opens as a notebook in Jupyter (jupytext), VS Code and Spyder, and runs as a script.

    python examples/notebook.py grpc://127.0.0.1:50051 s3://lake/trips/
"""

# %% Connect. Only the server needs access to the store.
import sys

import flightcache

server, trips = sys.argv[1:3] if len(sys.argv) > 2 else ("grpc://127.0.0.1:50051", "s3://lake/trips/")
cache = flightcache.connect(server)

# %% What is there, and what of it is in the cache?
for trips_object in cache.info(trips):
    print(trips_object["url"], trips_object["rows"], "rows,", trips_object["resident_bytes"], "bytes resident")

# %% Load the columns that the rest needs, with a progress bar.
done = cache.warm(trips, columns=["payer", "fare", "tip"])
print(done["chunks_missed"], "chunks loaded,", done["chunks_hit"], "were there")

# %% Read rows. Columns, filter and limit apply at the server.
dear = cache.scan(trips, columns=["payer", "fare"], filter="fare > 50", limit=5)
print(dear.to_pandas())

# %% Read them as they come: each batch is a pyarrow.RecordBatch.
import pyarrow.compute as pc

total = sum(pc.sum(batch["fare"]).as_py() or 0 for batch in cache.scan(trips, columns=["fare"]))
print(f"{total:.2f} in fares")

# %% Ask in SQL. The engine is in this package; filters run at the server.
cache.register("trips", trips)
by_payer = cache.sql("SELECT payer, count(*) AS trips, avg(tip / fare) AS tip FROM trips WHERE fare > 10 GROUP BY payer ORDER BY tip DESC")
print(by_payer.to_pandas())

# %% Or in a DataFusion session of your own, with your own functions beside it.
import datafusion

session = datafusion.SessionContext()
session.register_table("trips", cache.table(trips))
print(session.sql("SELECT payer, max(fare) FROM trips GROUP BY payer ORDER BY payer").to_pandas())

# %% Mistakes are exceptions by what to do about them.
try:
    cache.scan(trips, columns=["price"])
except flightcache.NotFound as error:
    print("not found:", error)

# %% How is the cache doing?
stats = cache.stats()
print(f"{stats['chunks_hit']} hits, {stats['chunks_missed']} misses, {stats['resident_bytes']} bytes resident")
