"""A bank of Gaussian matrices W^1 .. W^K over positions, between two populations: revealed as it is used, or explicit.

    apply(v, mix)      u_y = sum_k sum_x mix[k, y, x] W^k v_x / sqrt(N)        v (row, position, component)
    apply_t(u, mix)    v_x = sum_k sum_y mix[k, y, x] r^2 W^k^T u_y / sqrt(N)

All matrices of a bank meet the same directions Q_F and Q_B, and each has images of its own:

    W^k / sqrt(N)  =  d (Z_F^k Q_F^T  +  Q_B Z_B^k^T)  +  Q_B C^k Q_F^T

as `dmft.engine.matrix` has it for one.  A new direction costs K normals.  The mix acts on coordinates, before they are
multiplied with images: one product of (row y, direction K) and (direction K, component).  Directions come before
matrices on every axis, so that what is new lies together at the end and no array is ever copied into another order.

Every matrix is asked for every position, those that padding or a stride leaves out among them: more of a Gaussian
matrix is shown, nothing else changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import lax

from dmft.engine import tensor_units
from dmft.engine.basis import decompose, largest
from dmft.engine.matrix import Directions, Entries, Learned, spread, untrained
from dmft.engine.population import Population
from dmft.engine.rows import Rows
from dmft.specs.parameterization import hidden_scale

BLOCKS = 8  # in which fresh normals are made: those of a block that has no new direction are not


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RevealedBank:
    """K matrices N x N of iid N(0,1) entries, sampled in the directions in which they are used.

    forward, backward: what either side has met; images are (direction, matrix, component).
    trained: C is (direction of `backward`, matrix, direction of `forward`).
    tolerance, project, leader, together, spreads, partly, by_kernels: as of `dmft.engine.matrix.RevealedGaussian`.
    """

    forward: Directions
    backward: Directions
    trained: Learned | Entries
    tolerance: jax.Array
    project: bool = field(default=True, metadata={"static": True})
    leader: str | None = field(default=None, metadata={"static": True})
    together: str | None = field(default=None, metadata={"static": True})
    spreads: tuple[float, float] = field(default=(1.0, 1.0), metadata={"static": True})
    partly: bool = field(default=False, metadata={"static": True})
    by_kernels: bool = field(default=False, metadata={"static": True})

    @property
    def transposed(self) -> RevealedBank:
        there, back = self.spreads
        trained = self.trained.transposed
        return replace(self, forward=self.backward, backward=self.forward, trained=trained, spreads=(back, there))

    @property
    def sides(self) -> tuple[Directions, Directions]:
        """What `apply` and `apply_t` have met."""
        return self.forward, self.backward

    @property
    def ranks(self) -> jax.Array:
        """Directions met by `apply` and by `apply_t`."""
        return jnp.stack([self.forward.count, self.backward.count])

    def apply(
        self, v: jax.Array, source: Population, target: Population, mix: jax.Array
    ) -> tuple[RevealedBank, Population, jax.Array, jax.Array]:
        """As above; mix (matrix, position of the result, position of v).

        Returns:
            the bank, which now knows the images; the target population with its normals spent; the result (row,
            position, component); the coordinates of v (row, position, direction), which `outer` takes.
        """
        known, seen, trained = self.forward, self.backward, self.trained
        rows, _, size = v.shape
        flat, K = v.reshape(-1, size), len(mix)
        Q, seen_met = self._rows(known.met, known.count), self._rows(seen.met, seen.count)
        x, R, q, rank, _ = decompose(flat, Q, source, self.tolerance, leader=self.leader, together=self.together)
        z = self._fresh(target, len(flat), K, rank)
        coordinates = x + lax.dynamic_update_slice_in_dim(jnp.zeros_like(x), R, known.count, axis=1)
        response = trained.initial * source.inner(flat, self._rows(seen.image, seen.count)).reshape(len(flat), -1, K)
        response = response + trained.response(coordinates)
        known = Directions(
            met=self._placed(known.met, q, known.count, rank),
            image=lax.dynamic_update_slice_in_dim(known.image, z, known.count, axis=0),
            count=known.count + rank,
            moment=known.moment,
        )
        coordinates = coordinates.reshape(rows, -1, coordinates.shape[-1])
        mixed = jnp.einsum("kyx,axf->ayfk", mix, coordinates)
        mixed_response = jnp.einsum("kyx,axbk->ayb", mix, response.reshape(rows, -1, *response.shape[1:]))
        coefficients = mixed_response.reshape(-1, mixed_response.shape[-1])
        found = seen_met.mixed(coefficients)
        images = self._rows(known.image, known.count)
        found = images.mixed(trained.initial * mixed.reshape(len(found), -1), found)
        image = found.reshape(*mixed.shape[:2], -1)
        if (beside := trained.image(source.weighted(flat).reshape(v.shape), mix)) is not None:
            image = image + beside
        return replace(self, forward=known), target.spend(K * rank), image, coordinates

    def apply_t(
        self, u: jax.Array, source: Population, target: Population, mix: jax.Array
    ) -> tuple[RevealedBank, Population, jax.Array, jax.Array]:
        """The transposes; `source` is the population of u, `mix` as in `apply`."""
        bank, target, image, coordinates = self.transposed.apply(u, source, target, mix.swapaxes(1, 2))
        return replace(bank.transposed, trained=self.trained), target, image, coordinates

    def _rows(self, array: jax.Array, count: jax.Array) -> Rows:
        """Of directions, or images (direction, matrix, component) of all matrices."""
        flat, filled = array.reshape(-1, array.shape[-1]), math.prod(array.shape[1:-1]) * count
        return tensor_units.counted(flat, filled) if self.by_kernels else Rows(flat, filled if self.partly else None)

    def _placed(self, array: jax.Array, new: jax.Array, start: jax.Array, rank: jax.Array) -> jax.Array:
        if self.by_kernels:
            return tensor_units.placed(array, new, start, rank)
        return lax.dynamic_update_slice_in_dim(array, new, start, axis=0)

    def _fresh(self, target: Population, vectors: int, matrices: int, rank: jax.Array) -> jax.Array:
        """(vector, matrix, component): images of the first `rank` vectors, which are new; zero for all others."""
        met = self._rows(self.backward.met, self.backward.count)
        count = vectors // math.gcd(vectors, BLOCKS)
        most = largest(rank, self.together)

        def made(start: jax.Array) -> jax.Array:
            z = spread(target.spend(start * matrices).next_normals(count * matrices), self.spreads[0])
            if self.project:
                z = met.of_part(lambda Q: Q.mixed(-target.inner(z, Q), z))
            new = start + jnp.arange(count) < rank
            return jnp.where(new[:, None, None], z.reshape(count, matrices, -1), 0.0)

        def nothing(start: jax.Array) -> jax.Array:
            del start
            return jnp.zeros((count, matrices, met.array.shape[-1]))

        blocks: jax.Array = lax.map(
            lambda start: lax.cond(start < most, made, nothing, start), jnp.arange(0, vectors, count)
        )
        return blocks.reshape(vectors, matrices, -1)

    def with_room(self, count: int, source: Population, target: Population, normals: int) -> RevealedBank:
        """With room for `count` more directions on either side, over populations with so many more `normals`."""
        return replace(
            self,
            forward=self.forward.with_room(count, source, target, normals),
            backward=self.backward.with_room(count, target, source, normals),
            trained=self.trained.with_room(count),
        )

    def outer(self, inputs: jax.Array, outputs: jax.Array, mix: jax.Array) -> Learned:
        """sum_a sum_xy mix[k, y, x] u_ay v_ax^T / sqrt(N), for coordinates `inputs` of v and `outputs` of u."""
        mixed = jnp.einsum("kyx,axf->aykf", mix, inputs)
        change = jnp.einsum("ayb,aykf->bkf", outputs, mixed)
        return Learned(jnp.zeros(()), change)


def revealed_bank(
    count: int,
    source: int,
    target: int,
    capacity: tuple[int, int],
    tolerance: float,
    *,
    project: bool = True,
    initial: jax.Array | float = 1.0,
    ratio: float = 1.0,
    entries: str | None = None,
) -> RevealedBank:
    """`count` matrices that have shown nothing yet; arguments as of `dmft.engine.matrix.revealed`."""

    def nothing(capacity: int, met: int, image: int) -> Directions:
        return Directions(jnp.zeros((capacity, met)), jnp.zeros((capacity, count, image)), jnp.zeros((), jnp.int32))

    return RevealedBank(
        forward=nothing(capacity[0], source, target),
        backward=nothing(capacity[1], target, source),
        trained=untrained(initial, (capacity[1], count, capacity[0]), (count, target, source), entries),
        tolerance=jnp.asarray(tolerance, float),
        project=project,
        spreads=(1.0, ratio**0.5),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExplicitBank:
    """Ordinary weight matrices (matrix, output, input).  Coordinates of a vector are the vector itself."""

    trained: jax.Array

    @property
    def ranks(self) -> jax.Array:
        return jnp.array(self.trained.shape[:0:-1], jnp.int32)

    def apply(
        self, v: jax.Array, source: Population, target: Population, mix: jax.Array
    ) -> tuple[ExplicitBank, Population, jax.Array, jax.Array]:
        del source  # sums over its neurons are the matrix product
        image = jnp.einsum("kayi,koi->ayo", jnp.einsum("kyx,axi->kayi", mix, v), self.trained)
        return self, target, image * self._scale, v

    def apply_t(
        self, u: jax.Array, source: Population, target: Population, mix: jax.Array
    ) -> tuple[ExplicitBank, Population, jax.Array, jax.Array]:
        del source
        image = jnp.einsum("kaxo,koi->axi", jnp.einsum("kyx,ayo->kaxo", mix, u), self.trained)
        outputs, inputs = self.trained.shape[1:]
        return self, target, image * (self._scale * (inputs / outputs)), u

    def with_room(self, count: int, source: Population, target: Population, normals: int) -> ExplicitBank:
        del count, source, target, normals
        return self

    def outer(self, inputs: jax.Array, outputs: jax.Array, mix: jax.Array) -> jax.Array:
        return jnp.einsum("ayo,kayi->koi", outputs, jnp.einsum("kyx,axi->kayi", mix, inputs)) * self._scale

    @property
    def _scale(self) -> float:
        return hidden_scale(self.trained.shape[-1])
