"""What goes wrong, by what to do about it."""

from __future__ import annotations

from typing import ClassVar


class Error(Exception):
    """An error of the cache. Its text names the object and the cause."""

    kind: ClassVar[str] = ""
    """Name of the kind, as it is in metrics and logs."""
    is_retryable: ClassVar[bool] = False
    """Whether the same request may succeed when it is simply sent again."""


class InvalidRequest(Error):
    """The request is malformed: fix it."""

    kind = "invalid_request"


class NotFound(Error):
    """No such object or column."""

    kind = "not_found"


class Denied(Error):
    """Outside the declared sources, or refused by the store."""

    kind = "denied"


class Changed(Error):
    """The object was overwritten while it was read: ask again."""

    kind = "changed"
    is_retryable = True


class Corrupt(Error):
    """The file is corrupt."""

    kind = "corrupt"


class Unsupported(Error):
    """The file uses, or the query asks for, what this build does not have."""

    kind = "unsupported"


class ResourceExhausted(Error):
    """A bound was hit: ask for less, or later."""

    kind = "resource_exhausted"


class Unavailable(Error):
    """The server, or the store behind it, cannot be reached after retries: retry later."""

    kind = "unavailable"
    is_retryable = True


class Moved(Error):
    """The route is stale. Handled by the client; seen only when it keeps happening."""

    kind = "moved"
    is_retryable = True


class Cancelled(Error):
    """The request was cancelled."""

    kind = "cancelled"


class Internal(Error):
    """A defect of the server or the client."""

    kind = "internal"


BY_KIND: dict[str, type[Error]] = {error.kind: error for error in Error.__subclasses__()}
