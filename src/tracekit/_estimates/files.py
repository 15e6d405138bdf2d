"""Writes arrays and facts to a file, atomically, and reads them back."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import Array, to_host


def save(path: Path, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
    """Replace the file by arrays and JSON-able facts, so that a crash leaves the old or the new."""
    handle, name = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            held = {key: to_host(value) for key, value in arrays.items()}
            np.savez(file, **held, facts=np.array(json.dumps(facts, default=_as_json)))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(
    path: Path, what: str, needed: Sequence[str] = ("draws", "spent", "columns")
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The arrays and facts of a file with those that are needed, or None where there is none."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            arrays = {key: held[key] for key in held.files}
        facts = json.loads(str(arrays.pop("facts")))
        for name in needed:
            facts[name]
    except (OSError, ValueError, LookupError, TypeError, EOFError, AttributeError) as error:
        raise _unreadable(path, what, error) from None
    except zipfile.BadZipFile as error:
        raise _unreadable(path, what, error) from None
    return arrays, facts


def _unreadable(path: Path, what: str, error: Exception) -> ValueError:
    return ValueError(
        f"{what} {str(path)!r} holds no saved run ({error}); pass another file or remove it"
    )


def _as_json(x: Any) -> Any:
    """Generator states hold NumPy arrays and integers."""
    return x.tolist()
