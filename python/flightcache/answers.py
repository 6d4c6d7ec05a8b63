"""What the server answers, as it comes: JSON."""

from __future__ import annotations

from typing import TypedDict


class Evicted(TypedDict):
    """What was forgotten."""

    chunks: int
    """Column chunks dropped."""
    bytes: int
    """Bytes they held."""
    footers: int
    """Footers dropped."""


class WarmProgress(TypedDict):
    """How far warming is."""

    row_groups_done: int
    """Row groups done."""
    row_groups_total: int
    """Row groups in all."""
    chunks_hit: int
    """Column chunks found resident."""
    chunks_missed: int
    """Column chunks loaded."""
    store_bytes: int
    """Bytes read from the object store."""


class Stats(TypedDict):
    """A server's figures."""

    version: str
    """Version of the server."""
    uptime_s: int
    """Seconds since start."""
    capacity_bytes: int
    """Capacity of the chunk cache."""
    reserve_bytes: int
    """Bytes beyond the capacity that loads and evicted-but-streaming chunks may hold."""
    resident_bytes: int
    """Bytes of resident chunks."""
    in_flight_bytes: int
    """Bytes reserved by loads under way."""
    streaming_bytes: int
    """Bytes of evicted chunks that streams still hold."""
    resident_arrow_bytes: int
    """Of them: bytes of Arrow arrays."""
    resident_parquet_bytes: int
    """Of them: Parquet bytes."""
    resident_chunks: int
    """Resident chunks, in whichever forms."""
    resident_footers: int
    """Resident footers."""
    footer_bytes: int
    """Bytes of resident footers."""
    chunks_hit: int
    """Chunk look-ups that hit."""
    chunks_missed: int
    """Chunk look-ups that missed (joined loads included)."""
    chunks_joined: int
    """Of the misses: those that joined a load already under way."""
    chunks_decoded: int
    """Times a chunk was decoded of Parquet bytes that rest in the cache, or came to."""
    evictions: int
    """Entries evicted for space: chunks, or one form of them."""
    chunks_pulled: int
    """Of the misses: chunks that came from other servers of the cluster."""
    pulled_bytes: int
    """Bytes that came from other servers, of arrays or of Parquet."""
    store_requests: int
    """Requests sent to object stores, retries not counted."""
    store_bytes: int
    """Bytes read from object stores."""
    served_bytes: int
    """Encoded bytes sent to clients."""
    scans: int
    """Scans answered or under way."""


class ColumnInfo(TypedDict):
    """One column of an object."""

    name: str
    """Name."""
    data_type: str
    """Arrow type, in Arrow's notation."""
    nullable: bool
    """Whether it may hold NULL."""
    compressed_bytes: int
    """Compressed bytes in the file, all row groups."""
    resident_chunks: int
    """Row groups whose chunk is resident."""
    resident_bytes: int
    """Decoded bytes resident."""


class RowGroupInfo(TypedDict):
    """One row group of an object."""

    rows: int
    """Rows."""
    compressed_bytes: int
    """Compressed bytes in the file."""
    uncompressed_bytes: int
    """Uncompressed bytes, as the file states them."""
    slot: int
    """Hash slot."""
    resident_chunks: int
    """Column chunks resident."""


class ObjectInfo(TypedDict):
    """One object."""

    url: str
    """Canonical URL."""
    version: str | None
    """Version, if it has one."""
    size_bytes: int
    """Size of the object."""
    rows: int
    """Rows."""
    columns: list[ColumnInfo]
    """Columns, as the schema announces them."""
    row_groups: list[RowGroupInfo]
    """Row groups."""
    resident_bytes: int
    """Bytes of its chunks that are resident, decoded."""
