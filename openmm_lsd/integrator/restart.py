"""What a run needs to continue to the last bit, inside OpenMM's own checkpoints.

OpenMM lets an integrator add to a checkpoint what it likes, and read it back when all else has been
loaded. What LSDIntegrator adds there is a *record*: a tree of numbers and arrays as bytes, and a
digest of the whole checkpoint, so that a damaged one is refused before anything is loaded. A State
holds nothing of the kind: it is a place to start from, and no random numbers travel in it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import openmm

from .._native import draw_random_number

Record = dict[str, Any]

VERSION = 6
MARKS = b"\nopenmm-lsd record, version "  # of all versions
MARK = MARKS + str(VERSION).encode() + b"\n"
GUARD = "_openmm_lsd_guard"  # attribute of the function that examines checkpoints
LENGTH_BYTES, DIGEST_BYTES = 8, hashlib.sha256().digest_size


class RestartError(ValueError):
    """A checkpoint that a run cannot continue from, of which nothing has been loaded; or one that
    cannot be written now."""


def pack(record: Record) -> bytes:
    """A tree of dicts with str keys, lists, numbers, strings, None and arrays, as bytes."""
    arrays: list[np.ndarray] = []

    def as_reference(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays.append(value)
            return {"array": len(arrays) - 1}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"a record cannot hold a {type(value).__name__}")

    text = json.dumps(record, default=as_reference)
    buffer = io.BytesIO()
    np.savez(buffer, np.frombuffer(text.encode(), dtype=np.uint8), *arrays)
    return buffer.getvalue()


def unpack(data: bytes) -> Record:
    """The tree that ``pack`` made these bytes from; tuples come back as lists."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as parts:
            text, *arrays = (parts[name] for name in parts.files)

        def without_reference(value: Record) -> Any:
            return arrays[value["array"]] if set(value) == {"array"} else value

        return json.loads(text.tobytes(), object_hook=without_reference)
    except (ValueError, OSError, EOFError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise RestartError(f"its record cannot be read ({error})") from error


def to_checkpoint(before: bytes, record: Record) -> bytes:
    """What follows ``before`` in a checkpoint."""
    data = pack(record)
    sealed = MARK + len(data).to_bytes(LENGTH_BYTES, "little") + data
    return sealed + hashlib.sha256(before + sealed).digest()


def from_checkpoint(
    checkpoint: bytes, lengths: Callable[[], Collection[int]] | None = None
) -> Record | None:
    """The record of a checkpoint; None if an integrator without a record has written it.

    Parameters
    ----------
    checkpoint : bytes
        The whole of it; or, with ``lengths`` None, the record alone, without a look at the digest.
    lengths : callable, optional
        Gives the lengths that a checkpoint of this Context without a record can have.

    Raises
    ------
    RestartError
        If the checkpoint is damaged, or of another version.
    """
    at = checkpoint.rfind(MARK)
    if at < 0:
        other = checkpoint.rfind(MARKS)
        if other >= 0:
            version = checkpoint[other + len(MARKS) :].split(b"\n", 1)[0].decode(errors="replace")
            raise RestartError(
                f"its record has version {version}, and this openmm-lsd reads version {VERSION}; "
                "start from a State, or with the openmm-lsd that wrote it"
            )
        if lengths is None or len(checkpoint) in lengths():
            return None
        raise RestartError(
            "it has no record of LSDIntegrator, nor the length that one of another integrator has; "
            "it was cut short, or is of another System or platform"
        )
    start = at + len(MARK) + LENGTH_BYTES
    end = start + int.from_bytes(checkpoint[at + len(MARK) : start], "little")
    if len(checkpoint) != end + DIGEST_BYTES:
        raise RestartError("its length is not what it says; it was cut short")
    if lengths is not None and hashlib.sha256(checkpoint[:end]).digest() != checkpoint[end:]:
        raise RestartError("it was damaged after it was written (its digest is another)")
    return unpack(checkpoint[start:end])


def install_load_guards() -> None:
    """Let an integrator refuse a checkpoint before OpenMM loads it.

    OpenMM asks its integrators last, when positions and all else have been overwritten, and it
    would read on beyond the end of a file that was cut short. So ``Context.loadCheckpoint`` first
    calls the ``check_compatible`` of its integrator, if it has one; for all other integrators
    nothing changes.
    """
    load = openmm.Context.loadCheckpoint

    @functools.wraps(load)
    def examined(self: openmm.Context, checkpoint: Any) -> None:
        integrator = getattr(self, "_integrator", None)
        if hasattr(integrator, "check_compatible"):
            _check_checkpoint(self, integrator, checkpoint)
        load(self, checkpoint)

    if not hasattr(load, GUARD):
        setattr(examined, GUARD, True)
        openmm.Context.loadCheckpoint = examined


def _check_checkpoint(context: openmm.Context, integrator: Any, checkpoint: bytes) -> None:
    if not isinstance(checkpoint, bytes):
        return  # OpenMM says what is wrong

    def lengths() -> set[int]:
        before = context.createCheckpoint().rfind(MARK)
        # OpenMM saves its random generator once it is in use, which it is to plain integrators.
        draw_random_number()
        return {before, context.createCheckpoint().rfind(MARK)}

    try:
        integrator.check_compatible(from_checkpoint(checkpoint, lengths))
    except RestartError as error:
        raise RestartError(f"the checkpoint was not loaded: {error}") from error


def check_record(
    record: Record, own: Record, is_on_device: bool, has_same_forces: Callable[[Record], bool]
) -> None:
    """Raise RestartError if a run cannot continue a record, by what must be the same in both."""
    for name, meaning in (
        ("particles", "number of particles"),
        ("scheme", "scheme"),
        ("given seed", "randomNumberSeed"),
    ):
        if record[name] != own[name]:
            raise RestartError(
                f"it was written with {meaning} {record[name]!r}, and this integrator has "
                f"{own[name]!r}"
            )
    if is_on_device and record.get("masses", own["masses"]) != own["masses"]:
        raise RestartError(
            "its particles have other masses, which a checkpoint brings back on this platform; "
            "call reinitialize() without preserveState, or load a State"
        )
    if record["draft"] != own["draft"]:
        raise RestartError(
            "it was written with another draft; give the integrator the same System or potential "
            "(and the same learning)"
        )
    if not has_same_forces(record):
        raise RestartError(
            "it was written with another draft: at the same state this one has forces that differ "
            "by more than half a percent; give the integrator the same potential, or load a State"
        )
