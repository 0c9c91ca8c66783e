"""A valence force field that is linear in its parameters: coordinates, terms, forces, features.

The energy is a sum of products of internal coordinates, each product with a parameter that all
equivalent products share:

    E(x) = sum_m theta[class(m)] prod_f u_f(x)

A coordinate u is an angle minus its reference value, in rad; the cosine of a torsion; how far a
centre is out of the plane of three neighbours; or, of a distance r of two atoms, in nm,

    u = (1 - exp(-a (r - r0))) / a,   a = 2.3 / r0,

in which a Morse potential is a parabola: bonds as different as C-H and Si-Si have about this a.
Far from the reference (``limits``) u is held constant in the slope, so that the forces of a bad fit
stay bounded.

This file is the readable reference; ``native/core/valence.h`` does the same, per step and per
window.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int32]

DISTANCE, ANGLE, TORSION, OUT_OF_PLANE = 0, 1, 2, 3
ATOMS_OF_KIND = np.array([2, 3, 4, 4])
MORSE_EXPONENT = 2.3  # a times r0
MOST_FACTORS = 4


@dataclasses.dataclass(frozen=True)
class ValenceTerms:
    """What a valence force field is made of; Q coordinates, M terms, P parameters.

    Parameters
    ----------
    particles : int
        N.
    kinds : (Q,) DISTANCE, ANGLE, TORSION or OUT_OF_PLANE
    atoms : (Q, 4) int
        So many count as ATOMS_OF_KIND says. The second is where the angle is, and the centre of
        what is out of plane: it changes its sign if two of the other three are exchanged, so that
        terms that are to be blind to their order need even powers of it.
    references : (Q,) nm, rad or 1
        r0 of distances, more than zero.
    limits : (Q,)
        Largest |u| at which slopes are taken.
    factors : (M, 4) int
        Coordinates whose product a term is; -1: none. May repeat.
    classes : (M,) int
        Index of the term's parameter.
    """

    particles: int
    kinds: Indices
    atoms: Indices
    references: Array
    limits: Array
    factors: Indices
    classes: Indices

    @property
    def parameters(self) -> int:
        """P."""
        return int(self.classes.max()) + 1 if len(self.classes) else 0

    def coordinates(self, positions: Array, box: Array | None = None) -> tuple[Array, Array]:
        """u (Q,), held within the limits, and the gradients (Q, 4, 3) of what it is held from."""
        values = np.zeros(len(self.kinds))
        gradients = np.zeros((len(self.kinds), 4, 3))
        for q, (kind, (i, j, k, m)) in enumerate(zip(self.kinds, self.atoms, strict=True)):
            if kind == DISTANCE:
                d = nearest_image(positions[j] - positions[i], box)
                length, r0 = np.linalg.norm(d), self.references[q]
                decay = np.exp(-MORSE_EXPONENT * (length / r0 - 1.0))
                values[q] = r0 + (1.0 - decay) * r0 / MORSE_EXPONENT
                gradients[q, 1] = decay * d / length
                gradients[q, 0] = -gradients[q, 1]
            elif kind == ANGLE:
                a = nearest_image(positions[i] - positions[j], box)
                b = nearest_image(positions[k] - positions[j], box)
                values[q], gradients[q, 0], gradients[q, 2] = angle(a, b)
                gradients[q, 1] = -gradients[q, 0] - gradients[q, 2]
            elif kind == OUT_OF_PLANE:
                a, b, c = (nearest_image(positions[p] - positions[j], box) for p in (i, k, m))
                values[q], ga, gb, gc = triple_product(a, b, c)
                gradients[q] = ga, -ga - gb - gc, gb, gc
            else:
                steps = ((i, j), (j, k), (k, m))
                b1, b2, b3 = (nearest_image(positions[q_] - positions[p], box) for p, q_ in steps)
                values[q], g1, g2, g3 = torsion_cosine(b1, b2, b3)
                gradients[q] = -g1, g1 - g2, g2 - g3, g3
        values = np.clip(values - self.references, -self.limits, self.limits)
        return values, gradients

    def slopes(self, values: Array) -> Array:
        """Derivative of the energy by coordinate q and parameter p: (Q, P)."""
        result = np.zeros((len(values), self.parameters))
        padded = np.append(values, 1.0)  # at -1
        for f in range(MOST_FACTORS):
            others = np.delete(self.factors, f, axis=1)
            present = self.factors[:, f] >= 0
            products = padded[others].prod(axis=1)[present]
            np.add.at(result, (self.factors[present, f], self.classes[present]), products)
        return result

    def features(self, positions: Array, box: Array | None = None) -> Array:
        """Forces (3 N, P) in kJ/mol/nm for each parameter being one."""
        values, gradients = self.coordinates(positions, box)
        slopes = self.slopes(values)
        result = np.zeros((self.particles, 3, self.parameters))
        for a in range(4):
            contributions = gradients[:, a, :, None] * slopes[:, None, :]
            np.subtract.at(result, self.atoms[:, a], contributions)
        return result.reshape(3 * self.particles, -1)

    def forces(self, positions: Array, parameters: Array, box: Array | None = None) -> Array:
        """Forces (N, 3) in kJ/mol/nm at positions (N, 3) in nm."""
        return (self.features(positions, box) @ parameters).reshape(-1, 3)


def nearest_image(vector: Array, box: Array | None) -> Array:
    """``vector`` minus whole box vectors; ``box`` (3, 3) in OpenMM's reduced form, or None."""
    if box is None:
        return vector
    for row in (2, 1, 0):
        vector = vector - box[row] * np.round(vector[row] / box[row, row])
    return vector


def angle(a: Array, b: Array) -> tuple[float, Array, Array]:
    """Angle between two vectors and its gradients by them; these are zero where it is 0 or pi."""
    la, lb = np.linalg.norm(a), np.linalg.norm(b)
    ea, eb = a / la, b / lb
    cosine = np.clip(ea @ eb, -1.0, 1.0)
    sine = np.sqrt(1.0 - cosine**2)
    if sine < 1e-6:
        return np.arccos(cosine), np.zeros(3), np.zeros(3)
    return (
        np.arccos(cosine),
        (cosine * ea - eb) / (sine * la),
        (cosine * eb - ea) / (sine * lb),
    )


def torsion_cosine(b1: Array, b2: Array, b3: Array) -> tuple[float, Array, Array, Array]:
    """Cosine of the torsion along three bonds, times the sines of the angles; its gradients.

    The sines are what keeps it smooth where three atoms are in line:

        u = (b1 x b2) . (b2 x b3) / (|b1| |b2|^2 |b3|)
    """
    e1, e2, e3 = (b / np.linalg.norm(b) for b in (b1, b2, b3))
    c12, c23, c13 = e1 @ e2, e2 @ e3, e1 @ e3
    value = c12 * c23 - c13
    return (
        value,
        by_vector(c23 * e2 - e3, b1),
        by_vector(c23 * e1 + c12 * e3, b2),
        by_vector(c12 * e2 - e1, b3),
    )


def triple_product(a: Array, b: Array, c: Array) -> tuple[float, Array, Array, Array]:
    """Of the directions of three vectors, u = e_a . (e_b x e_c); its gradients by the vectors."""
    ea, eb, ec = (v / np.linalg.norm(v) for v in (a, b, c))
    by_ea, by_eb, by_ec = np.cross(eb, ec), np.cross(ec, ea), np.cross(ea, eb)
    return (
        ea @ by_ea,
        by_vector(by_ea, a),
        by_vector(by_eb, b),
        by_vector(by_ec, c),
    )


def by_vector(by_unit: Array, vector: Array) -> Array:
    """Gradient by a vector, of which the one by its direction keeps the normal part."""
    length = np.linalg.norm(vector)
    unit = vector / length
    return (by_unit - (by_unit @ unit) * unit) / length
