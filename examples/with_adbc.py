"""SQL over Flight SQL, with ADBC: nothing of Flightcache has to be installed.

python examples/with_adbc.py grpc://127.0.0.1:50051 s3://lake/trips/
"""

import sys

import adbc_driver_flightsql.dbapi

server, trips = sys.argv[1:3]
with adbc_driver_flightsql.dbapi.connect(server) as connection, connection.cursor() as cursor:
    # A URL is a table; parameters are typed by the statement.
    cursor.execute(f"SELECT payer, count(*) AS trips, avg(fare) AS fare FROM '{trips}' WHERE fare > $1 GROUP BY payer ORDER BY payer", (20.0,))
    print(cursor.fetch_arrow_table().to_pydict())

    # A name for it, as long as the server runs.
    cursor.executescript(f"CREATE EXTERNAL TABLE IF NOT EXISTS trips STORED AS PARQUET LOCATION '{trips}'")
    cursor.execute("SELECT min(fare), max(fare) FROM trips")
    print(cursor.fetchone())
