"""Arguments as users write them: checked, and in the form that is used inside."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from ..contexts.checks import check_system
from ..core.schemes import SCHEMES
from ..drafts.draft import DraftSpec
from ..targets import as_target

ENGINES = ("auto", "host", "context")


def draft_of(draft: Any, platform: Any, topology: Any, learning: Any) -> DraftSpec:
    """What the user wants for a draft, from the arguments of LSDIntegrator."""
    check_topology(topology)
    is_auto = isinstance(draft, str) and draft == "auto"
    learning = learning_of(learning, is_auto)
    if is_auto:
        return DraftSpec(None, platform_of(platform), topology, learning)
    if isinstance(draft, openmm.System):
        check_system(draft, "draft")
        return DraftSpec(draft, platform_of(platform), topology, learning)
    try:
        potential = as_target(draft, "draft")
    except TypeError as error:
        of_str = f" ({draft!r})" if isinstance(draft, str) else ""
        raise TypeError(
            f"draft is a {type(draft).__name__}{of_str}; it must be 'auto', an openmm.System, such "
            "as ForceField.createSystem or AmberPrmtopFile.createSystem give, or a potential: "
            f"{str(error).partition('it must be ')[2]}"
        ) from None
    if platform is not None:
        raise ValueError(
            "draftPlatform is the platform of a draft System, and draft is a "
            f"{type(draft).__name__}; leave draftPlatform out"
        )
    return DraftSpec(None, None, topology, learning, potential)


def positive_number(value: unit.Quantity | float, in_unit: unit.Unit, name: str) -> float:
    """``value`` as a float in ``in_unit``."""
    number: Any = value
    if isinstance(value, unit.Quantity):
        number = value.value_in_unit(in_unit) if value.unit.is_compatible(in_unit) else None
    if np.ndim(number) > 0 or not isinstance(number, numbers.Real | np.ndarray):
        raise TypeError(
            f"{name} is {value!r}; it must be a number in {in_unit.get_name()}, or a Quantity"
        )
    try:
        number = float(number)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"{name} is {number} {in_unit.get_symbol()}; it must be positive and finite"
        )
    return number


def whole_steps(value: Any) -> int:
    """A number of steps; a float such as 1 ps / 1 fs may be off by its rounding."""
    if type(value) is int:
        return value
    number: Any = value
    if isinstance(value, unit.Quantity):
        number = value.value_in_unit(unit.dimensionless) if value.unit.is_dimensionless() else None
    if np.ndim(number) > 0 or not isinstance(number, numbers.Real | np.ndarray):
        raise TypeError(f"steps is {value!r}; it must be a whole number")
    steps = round(float(number)) if math.isfinite(number) else 0
    if not abs(float(number) - steps) <= 1e-9 * abs(float(number)):
        raise ValueError(f"steps is {value!r}; it must be a whole number")
    return steps


def seed_of(value: Any) -> int:
    """None becomes 0."""
    if value is None:
        return 0
    try:
        seed = operator.index(value)
    except TypeError:
        raise TypeError(f"randomNumberSeed is {value!r}; it must be an integer or None") from None
    if not -(2**31) <= seed < 2**31:
        raise ValueError(f"randomNumberSeed is {seed}; it must be from -2^31 to 2^31 - 1")
    return seed


def window_of(length: Any) -> int | None:
    """K; None for 'auto'."""
    if isinstance(length, str) and length == "auto":
        return None
    try:
        length = operator.index(length)
    except TypeError:
        raise TypeError(
            f"windowLength is {length!r}; it must be a positive integer or 'auto'"
        ) from None
    if length < 1:
        raise ValueError(f"windowLength is {length}; it must be at least 1")
    return length


def learning_of(learning: Any, is_auto: bool) -> bool:
    """Whether the draft learns; by default, if it is 'auto'."""
    if not (learning is None or isinstance(learning, bool | np.bool_)):
        raise TypeError(f"learning is {learning!r}; it must be True, False or None")
    if is_auto and learning is not None and not learning:
        raise ValueError("draft is 'auto', which must learn; leave learning out")
    return is_auto if learning is None else bool(learning)


def check_topology(topology: Any) -> None:
    """Raise TypeError unless it is a Topology or None."""
    if not (topology is None or isinstance(topology, app.Topology)):
        raise TypeError(
            f"topology is a {type(topology).__name__}; it must be an openmm.app.Topology"
        )


def check_scheme_name(scheme: Any) -> None:
    """Raise ValueError unless there is a scheme of this name."""
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; it must be one of {sorted(SCHEMES)}")


def engine_of(engine: Any) -> str:
    """Raise ValueError unless there is an engine of this name."""
    if not isinstance(engine, str) or engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; it must be one of {list(ENGINES)}")
    return engine


def platform_of(platform: Any) -> openmm.Platform | None:
    """The draft's platform, also by its name."""
    if isinstance(platform, str):
        platform = openmm.Platform.getPlatform(platform)
    if platform is not None and not isinstance(platform, openmm.Platform):
        raise TypeError(
            f"draftPlatform is a {type(platform).__name__}; it must be an openmm.Platform, its "
            "name, or None"
        )
    return platform
