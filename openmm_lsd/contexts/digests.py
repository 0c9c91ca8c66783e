"""Digests that are the same in every process."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def digest_of(*parts: Any) -> str:
    """Of arrays, strings and whatever has a ``repr`` that says all; the same in every process."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(str((part.shape, part.dtype.str)).encode() + part.tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()
