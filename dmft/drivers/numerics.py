"""The numerical settings of a computation, checked: what every driver is asked of its particles."""

from __future__ import annotations

from typing import Any, NamedTuple

from dmft.specs import _check

TOLERANCES = (1e-7, 3e-2)  # below, rounding decides; above, kernels are off by more than particles make up for
DTYPES = {"float64": 8, "float32": 4}


class Numerics(NamedTuple):
    """What every driver is asked for its particles, checked."""

    particles: int
    scrambles: int
    seed: int
    tolerance: float
    memory_limit: int | None


def check_numerics(particles: Any, scrambles: Any, seed: Any, tolerance: Any, memory_limit: Any) -> Numerics:
    """The arguments of a driver, or the error that says what is wrong with the first that is."""
    return Numerics(
        check_particles(particles),
        _check.integer("scrambles", scrambles, minimum=2),
        _check.integer("seed", seed, minimum=0),
        check_tolerance(tolerance),
        None if memory_limit is None else _check.integer("memory_limit", memory_limit, minimum=1),
    )


def check_particles(value: Any) -> int:
    """A number of particles, or the error that says why it is none."""
    count = _check.integer("particles", value, minimum=2)
    if count & (count - 1):
        lower = 1 << (count.bit_length() - 1)
        raise ValueError(f"particles={count} is not a power of two, as Sobol points need; use {lower} or {2 * lower}.")
    return count


def check_tolerance(value: Any, name: str = "tolerance") -> float:
    """A tolerance in its range, or the error that says why it is none."""
    tolerance = _check.positive(name, value)
    if not TOLERANCES[0] <= tolerance <= TOLERANCES[1]:
        raise ValueError(f"{name}={tolerance} must lie between {TOLERANCES[0]} and {TOLERANCES[1]}.")
    return tolerance
