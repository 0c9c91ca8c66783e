"""Transport of the noise of a drafted step onto the target step (reflection maximal coupling).

Proof in docs/theory.md. Eberle, Probab. Theory Relat. Fields 166, 851 (2016); Bou-Rabee, Eberle
and Zimmer, Ann. Appl. Probab. 30, 1209 (2020).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def transport(noise: Array, shift: Array, log_uniform: float) -> tuple[Array, bool]:
    """Noise of the target step, and whether that step lands where the draft step landed.

    If ``noise`` ~ N(0, I) and exp(``log_uniform``) ~ U(0, 1) are independent of ``shift`` and of
    each other, the result is N(0, I) and independent of ``shift``:

        log u <= noise . shift - |shift|^2 / 2:   noise - shift                    (accepted)
        otherwise:                                noise - 2 (noise . e) e,   e = shift / |shift|

    The probability of acceptance, 2 Phi(-|shift| / 2), is the largest possible.

    Parameters
    ----------
    noise, shift : array of any one shape, dimensionless
    log_uniform : float, not positive

    Returns
    -------
    (array of the same shape, accepted)
    """
    overlap = float(np.vdot(noise, shift))
    shift_squared = float(np.vdot(shift, shift))
    if log_uniform <= overlap - 0.5 * shift_squared:
        return noise - shift, True
    if not np.isfinite(shift_squared):  # |shift|^2 overflows: normalise in two steps
        shift = shift / np.abs(shift).max()
        overlap, shift_squared = float(np.vdot(noise, shift)), float(np.vdot(shift, shift))
    return noise - (2.0 * overlap / shift_squared) * shift, False
