"""What the user has changed in a Context since the last step."""

from __future__ import annotations

import numpy as np

from .._native import ContextAccess
from .boundpair import BoundPair
from .snapshot import SystemSnapshot


class ContextChanges:
    """Follows changes of forces, parameters and box, and says what has to be checked again.

    Parameters
    ----------
    access : ContextAccess
    system : SystemSnapshot
    pair : BoundPair
        Takes over what has changed.

    Attributes
    ----------
    unchecked : set of str
        What has changed in the forces since they were last compared with the Context's.
    """

    def __init__(self, access: ContextAccess, system: SystemSnapshot, pair: BoundPair) -> None:
        self._access, self._system, self._pair = access, system, pair
        self._version = system.version  # of what the target was built from
        self._checked_parameters: set[tuple] = set()  # values of the Context's parameters
        self._has_checked_box = False
        self.unchecked = {"target"}

    @property
    def may_exist(self) -> bool:
        """Whether it is worth a look."""
        return self._access.maybe_dirty or self.has_new_forces

    @property
    def has_new_forces(self) -> bool:
        """Whether parameters of Forces have been updated in the Context."""
        return self._system.version != self._version

    @property
    def touch_state(self) -> bool:
        """Whether state or parameters of the Context have changed."""
        access = self._access
        return access.maybe_dirty and bool(access.state_changed or access.changed_parameters)

    def follow(self, is_first: bool) -> bool:
        """Take them over; whether there were any. In the first step everything is new."""
        self._system.take_unannounced(self._access.updates)
        if self.has_new_forces:
            self._version = self._system.version
            self._pair.refresh()
            self._checked_parameters.clear()
            self.unchecked.add("forces")
        if is_first:
            return True
        has_new_parameters = bool(self._access.changed_parameters)
        if has_new_parameters:
            self._follow_parameters()
        self._follow_box()
        return bool(self.unchecked) or has_new_parameters or self._access.state_changed

    def _follow_parameters(self) -> None:
        parameters = self._access.get_parameters()
        self._pair.target.set_parameters(parameters)
        values = tuple(sorted(parameters.items()))
        if values not in self._checked_parameters:
            self._checked_parameters.add(values)
            self.unchecked.add("parameters")

    def _follow_box(self) -> None:
        box, before = self._pair.find_box(), self._pair.box
        is_new = box is not None and before is not None and not np.array_equal(box, before)
        if is_new and not self._has_checked_box:
            self._has_checked_box = True
            self.unchecked.add("box")

    def follow_force_groups(self) -> None:
        """Other forces count."""
        self._pair.target.discard()
        self.unchecked.add("force groups")
