"""Progress bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    Bar = tqdm[Any]
else:
    Bar = tqdm


def progress_bar(total: int, description: str, unit: str, show: bool | None) -> Bar:
    """A bar on standard error; `show` None shows it on a terminal only."""
    return tqdm(total=total, desc=description, unit=unit, disable=None if show is None else not show)
