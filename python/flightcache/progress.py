"""How far warming is: a bar in terminals and notebooks, if tqdm is there."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .answers import WarmProgress


class Report:
    """Takes steps of warming. ``progress`` is a function that gets each; True or False for a bar or none; None for a bar where someone looks."""

    def __init__(self, progress: bool | Callable[[WarmProgress], object] | None, url: str) -> None:
        self._tell = progress if callable(progress) else None
        self._bar = None
        if progress is True or (progress is None and (sys.stderr.isatty() or "ipykernel" in sys.modules)):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                if progress is True:
                    raise
            else:
                self._bar = tqdm(desc=url, unit=" row groups", total=0, disable=False)

    def __call__(self, step: WarmProgress) -> None:
        if self._tell:
            self._tell(step)
        if self._bar is not None:
            self._bar.total = step["row_groups_total"]
            self._bar.set_postfix_str(f"{step['store_bytes'] / 2**20:.1f} MiB read", refresh=False)
            self._bar.update(step["row_groups_done"] - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
