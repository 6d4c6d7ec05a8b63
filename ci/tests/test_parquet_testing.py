"""Every file of the parquet-testing sample through the server, value by value against pyarrow reading the file itself."""

import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.parquet as pq
import pytest
from conftest import DATA

FILES = sorted((DATA / "parquet-testing").glob("*/*.parquet"))

# pyarrow reads these although they are corrupt, or reads what arrow-rs cannot; the server says so instead.
REFUSED = {
    "datapage_v1-corrupt-checksum.parquet": "CRC checksum mismatch",
    "rle-dict-uncompressed-corrupt-checksum.parquet": "CRC checksum mismatch",
    "nation.dict-malformed.parquet": "Invalid page header",
    "dict-page-offset-zero.parquet": "Expected list element type",
}


def same(ours, theirs):
    """Equal value by value; NaN equals NaN."""
    if ours.schema.names != theirs.schema.names or ours.num_rows != theirs.num_rows:
        return False
    for name, a, b in zip(theirs.schema.names, ours.columns, theirs.columns):
        if pa.types.is_dictionary(b.type):
            b = b.cast(b.type.value_type)
        if a.type != b.type:
            return False
        if pa.types.is_floating(a.type):
            bits = {2: pa.uint16(), 4: pa.uint32(), 8: pa.uint64()}[a.type.bit_width // 8]
            a, b = (pa.chunked_array([chunk.view(bits) for chunk in x.chunks], bits) for x in (a, b))
        if not a.equals(b):
            return False
    return True


@pytest.fixture(scope="module", params=["file", "s3"])
def url_of(request, s3):
    if request.param == "file":
        return lambda path: f"file://{path}"
    return lambda path: s3.put(f"parquet-testing/{path.name}", path.read_bytes())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file(server, url_of, path):
    url = url_of(path)
    try:
        theirs = pq.read_table(path)
    except (OSError, pa.ArrowException):
        theirs = None
    if theirs is None or path.name in REFUSED:
        with pytest.raises((flight.FlightError, pa.ArrowException)) as error:
            server.scan(url)
        assert path.name in str(error.value)
        assert REFUSED.get(path.name, "") in str(error.value)
        assert server.act("stats"), "the server is alive"
        return
    whole = server.scan(url)
    assert same(whole, theirs), (whole.schema, theirs.schema)
    info = server.client.get_flight_info(flight.FlightDescriptor.for_path(url))
    assert info.total_records == theirs.num_rows
    shares = [server.client.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints]
    assert same(pa.concat_tables(shares), theirs)
    assert info.schema.equals(whole.schema)
    for codec in ("lz4", "zstd"):
        assert same(server.scan(url, compression=codec), theirs), codec


def test_the_sample_is_there():
    assert len(FILES) == 36
