"""The commit of a window: the exact steps of the target, from the noise of the drafted ones.

``commit`` is the readable reference; ``_native.commit`` does the same in one C++ call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .rollout import reciprocal, remove_cm_motion
from .schemes import Scheme
from .transport import transport

Array = NDArray[np.float64]


def commit(
    scheme: Scheme,
    masses: Array,
    noise_scale: Array,
    positions: Array,
    velocities: Array,
    draft_velocities: Array,
    target_forces: Array,
    draft_forces: Array,
    noise: Array,
    log_uniforms: Array,
    cm_removals: NDArray[np.bool_],
) -> tuple[Array, Array, list[float], bool]:
    """Target steps up to the first that leaves the drafted path; at least one.

    Each is the plain scheme with the target's force, driven by transported noise. Only the last
    step of a full window, from which nothing was drafted, takes its noise untransported. A window
    that was cut short by a failing site (V < K) is no exception to that: whether the site fails
    depends on the noise of the step before it, so the failure must not choose how that noise is
    used.

    Parameters
    ----------
    masses, noise_scale : (N, 1) amu, nm/ps
    positions, velocities : (N, 3) nm, nm/ps
        The committed state from which the window was drafted.
    draft_velocities : (V or more, N, 3) nm/ps
        At the start of each drafted step, as in ``rollout.Window``.
    target_forces, draft_forces : (V, N, 3) kJ/mol/nm
        At the force sites; those of the draft with the corrections it was given.
    noise, log_uniforms : (K, N, 3), (K,)
        V <= K.
    cm_removals : (K,)
        Whether step k starts by removing the motion of the centre of mass.

    Returns
    -------
    positions, velocities (C, N, 3) after each of the C committed steps, |delta| of those whose
    noise was transported, and whether the last of them was accepted.
    """
    inverse_masses, inverse_scale = reciprocal(masses), reciprocal(noise_scale)
    target_accelerations = target_forces * inverse_masses
    draft_accelerations = draft_forces * inverse_masses
    path: list[tuple[Array, Array]] = []
    shifts: list[float] = []
    accepted = True
    for k, acceleration in enumerate(target_accelerations):
        if cm_removals[k]:
            velocities = remove_cm_motion(velocities, masses)
        xi = noise[k]
        if k + 1 < len(noise):
            shift = inverse_scale * scheme.kick_shift(
                velocities, draft_velocities[k], acceleration, draft_accelerations[k]
            )
            shifts.append(float(np.sqrt(np.vdot(shift, shift))))
            xi, accepted = transport(xi, shift, log_uniforms[k])
        positions, velocities = scheme.step(positions, velocities, acceleration, noise_scale * xi)
        path.append((positions, velocities))
        if not accepted:
            break
    committed_positions, committed_velocities = map(np.stack, zip(*path, strict=True))
    return committed_positions, committed_velocities, shifts, accepted
