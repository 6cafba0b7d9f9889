"""A Gaussian weight matrix W between an input and an output population: revealed as it is used, or explicit.

Both kinds answer the same three calls, and training is written over them (`dmft.engine.network`):

    apply(v)     W v / sqrt(N)           v a block of vectors of the input population, of N neurons
    apply_t(u)   r^2 W^T u / sqrt(N)     u a block of vectors of the output population, of N / r^2 neurons
    outer(...)   sum_a u_a v_a^T / sqrt(N) for blocks that were applied: a direction in which `trained` can move

Vectors u are cotangents per neuron of their own population (`dmft.engine.tape`), and so are their images: hence r^2,
which is 1 between populations of one width.

**RevealedGaussian** never stores W.  It keeps the orthonormal directions Q_F met by `apply` and Q_B met by
`apply_t`, and the Gaussian images Z_F (in the output population) and Z_B (in the input population) that were
sampled for them.  Everything that has been asked of W is then the operator of low rank

    W / sqrt(N)  =  d (Z_F Q_F^T  +  Q_B Z_B^T)  +  Q_B C Q_F^T        (transposes are averages: Q^T v = <Q v>)

where C holds what was learned, in the coordinates of the two bases, and d is the standard deviation of the entries
at initialisation, what weight decay has left of it: training touches these two alone.  A new vector v = x Q_F + R q has
an image that is Gaussian given all that W has shown (Bolthausen 2014):

    image = d (x Z_F + R z)  +  (d <v Z_B> + x C^T) Q_B        z fresh normals, made orthogonal to Q_B

The middle term is the response (A g, or B phi, of the mean-field equations; Gaussian integration by parts, no
phi'').  The projection of z makes finite populations exact in law: S particles are then a network of width S.
`apply_t` is `apply` of the transpose, in which the two sides exchange their roles, with r z in the place of z: images
have r times the size of their vectors, which is all that r changes.

Assumptions and approximations: exact in law at any S for tolerance -> 0; a tolerance drops directions of that
relative size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dmft.engine import tensor_units
from dmft.engine.basis import decompose
from dmft.engine.population import Population
from dmft.engine.rows import Rows, placed
from dmft.specs.parameterization import hidden_scale


class Turn(NamedTuple):
    """A rotation of the directions of a side, H = I - Y T Y^T, then in another order, of which the first `most` are
    left.

    Y: (direction, reflection); T: (reflection, reflection_2); order: (direction,), where each was.
    """

    Y: jax.Array
    T: jax.Array
    order: jax.Array
    most: jax.Array

    def whole(self, a: jax.Array, axis: int) -> jax.Array:
        """H^T a along an axis of directions, in their new order."""
        if axis:
            return jnp.take(a - ((a @ self.Y) @ self.T) @ self.Y.T, self.order, axis)
        turned = jnp.tensordot(self.Y, jnp.tensordot(self.T.T, jnp.tensordot(self.Y.T, a, 1), 1), 1)
        return jnp.take(a - turned, self.order, 0)

    def __call__(self, a: jax.Array, axis: int) -> jax.Array:
        """What is left of it."""
        left = jnp.arange(len(self.Y)) < self.most
        return jnp.where(left if axis else left.reshape(-1, *[1] * (a.ndim - 1)), self.whole(a, axis), 0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Directions:
    """What one side of a matrix has met.

    met: Q (direction, component of the population that is multiplied); image: Z (direction, [matrix,] component of the
    other one); both zero beyond `count` directions.  moment: (direction, direction_2), the second moment of coordinates
        that were met, where directions are forgotten by it (`dmft.engine.forgetting`).
    """

    met: jax.Array
    image: jax.Array
    count: jax.Array
    moment: jax.Array | None = None

    def turned(self, turn: Turn, moment: jax.Array) -> Directions:
        """In other directions, those that `turn` keeps, with this second moment."""
        return Directions(turn(self.met, 0), turn(self.image, 0), jnp.minimum(self.count, turn.most), moment)

    def with_room(self, count: int, met: Population, image: Population, normals: int) -> Directions:
        """With room for `count` more, over populations (multiplied, of the image) with so many more `normals`."""
        return replace(
            self,
            met=_padded(met.widened(self.met, normals), count, (0,)),
            image=_padded(image.widened(self.image, normals), count, (0,)),
            moment=None if self.moment is None else _padded(self.moment, count, (0, 1)),
        )


class Learned(NamedTuple):
    """What training has made of a revealed matrix.

    initial: d, the factor of what is left of the matrix at initialisation; change: C (direction of `backward`,
        [matrix,] direction of `forward`).
    """

    initial: jax.Array
    change: jax.Array

    @property
    def transposed(self) -> Learned:
        return self._replace(change=self.change.swapaxes(0, -1))

    def response(self, x: jax.Array, rows: Callable[[jax.Array], Rows] = Rows) -> jax.Array | float:
        """(vector, direction of `backward`[, matrix]): coordinates of what was learned, of vectors of coordinates x.
        `rows` knows how many directions there are."""
        return rows(self.change).across(x) if self.change.ndim == 2 else jnp.einsum("cf,bkf->cbk", x, self.change)

    def image(self, weighted: jax.Array, mix: jax.Array | None = None) -> None:
        """Of it, what lies beside the directions that were met: nothing."""
        del weighted, mix

    def turned(self, forward: Turn, backward: Turn) -> Learned:
        """In other directions of either side."""
        return self._replace(change=backward(forward(self.change, -1), 0))

    def with_room(self, count: int) -> Learned:
        """With room for `count` more directions on either side."""
        return self._replace(change=_padded(self.change, count, (0, -1)))


class Entries(NamedTuple):
    """What training has made of a revealed matrix whose entries move by rules of their own: out of the span of what it
    has met.

    initial: d; entries: E ([matrix,] output, input), O(1), what was learned being s E of factors s = 1 / sqrt(fan-in):
        an average, s E v = <E v>.
    """

    initial: jax.Array
    entries: jax.Array

    @property
    def transposed(self) -> Entries:
        return self._replace(entries=self.entries.swapaxes(-1, -2))

    def response(self, x: jax.Array, rows: Callable[[jax.Array], Rows] = Rows) -> float:
        """In the directions that were met: nothing."""
        del x, rows
        return 0.0

    def image(self, weighted: jax.Array, mix: jax.Array | None = None) -> jax.Array:
        """<E v>, of vectors (vector, [position,] component) times the weights of components; of a bank the mix m of
        K, sum_kx m[k, y, x] <E^k v_x> / sqrt(K)."""
        v = weighted.astype(self.entries.dtype)
        if mix is None:
            found = jnp.matmul(v, self.entries.T, precision=lax.Precision.HIGHEST)
        else:
            mixed = jnp.einsum("kyx,axi->kayi", (mix * len(mix) ** -0.5).astype(v.dtype), v)
            found = jnp.einsum("kayi,koi->ayo", mixed, self.entries, precision=lax.Precision.HIGHEST)
        return found.astype(weighted.dtype)

    def turned(self, forward: Turn, backward: Turn) -> Entries:
        """They are of components, not of directions."""
        del forward, backward
        return self

    def with_room(self, count: int) -> Entries:
        del count
        return self


def spread(normals: jax.Array, deviation: float) -> jax.Array:
    """Normals of this standard deviation."""
    return normals if deviation == 1 else deviation * normals


def _padded(a: jax.Array, count: int, axes: tuple[int, ...]) -> jax.Array:
    """With `count` more zeros along these axes."""
    more = [0] * a.ndim
    for axis in axes:
        more[axis] = count
    return jnp.pad(a, [(0, each) for each in more])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RevealedGaussian:
    """An N x N matrix of iid N(0,1) entries, sampled in the directions in which it is used.

    tolerance: relative size below which a new direction is dropped.
    project: False leaves the fresh normals as they are: right means, wrong fluctuations (for tests).
    leader: a mapped axis whose first member decides for all which directions are new (`dmft.engine.variation`).
    together: a mapped axis of runs side by side (`dmft.engine.together`).
    spreads: standard deviations of images of unit vectors, of `apply` and of `apply_t`: 1 and r.
    remembers: False shows images to one call, and keeps nothing of what was new in it.
    partly: whether products leave out room for directions that is empty, and by_kernels how (`dmft.engine.rows`).
    """

    forward: Directions
    backward: Directions
    trained: Learned | Entries
    tolerance: jax.Array
    project: bool = field(default=True, metadata={"static": True})
    leader: str | None = field(default=None, metadata={"static": True})
    together: str | None = field(default=None, metadata={"static": True})
    spreads: tuple[float, float] = field(default=(1.0, 1.0), metadata={"static": True})
    remembers: bool = field(default=True, metadata={"static": True})
    partly: bool = field(default=False, metadata={"static": True})
    by_kernels: bool = field(default=False, metadata={"static": True})

    @property
    def transposed(self) -> RevealedGaussian:
        there, back = self.spreads
        trained = self.trained.transposed
        return replace(self, forward=self.backward, backward=self.forward, trained=trained, spreads=(back, there))

    @property
    def sides(self) -> tuple[Directions, Directions]:
        """What `apply` and `apply_t` have met."""
        return self.forward, self.backward

    @property
    def peeked(self) -> RevealedGaussian:
        """To be shown to a single call, of which nothing remains."""
        return replace(self, remembers=False)

    @property
    def ranks(self) -> jax.Array:
        """Directions met by `apply` and by `apply_t`."""
        return jnp.stack([self.forward.count, self.backward.count])

    def apply(
        self, v: jax.Array, source: Population, target: Population
    ) -> tuple[RevealedGaussian, Population, jax.Array, jax.Array]:
        """W v / sqrt(N) for a block v (vector, component of source).

        Returns:
            the matrix, which now knows the image; the target population with its normals spent; the image (vector,
            component of target); the coordinates of v (vector, direction), which `outer` takes.
        """
        known, seen, trained = self.forward, self.backward, self.trained
        Q, seen_met = self._rows(known.met, known.count), self._rows(seen.met, seen.count)

        def fresh(rows: int, rank: jax.Array) -> jax.Array:
            z = spread(target.next_normals(rows), self.spreads[0])
            z = jnp.where(jnp.arange(rows)[:, None] < rank, z, 0.0)
            if not self.project:
                return z
            return seen_met.of_part(lambda Q: Q.mixed(-target.inner(z, Q), z, room=len(v)))

        axes = {"leader": self.leader, "together": self.together}
        x, R, q, rank, z = decompose(v, Q, source, self.tolerance, beside=fresh, **axes)
        response = trained.initial * source.inner(v, self._rows(seen.image, seen.count))
        response = response + trained.response(x, partial(self._counted, count=seen.count))
        if not self.remembers:
            fresh_image = self._counted(z, rank).mixed(R)
            image = trained.initial * (self._rows(known.image, known.count).mixed(x) + fresh_image)
            return self, target.spend(rank), self._beside(seen_met.mixed(response, image), v, source), x
        coordinates = x + lax.dynamic_update_slice_in_dim(jnp.zeros_like(x), R, known.count, axis=1)
        # after its update the old array is read no more: the compiler can update in place
        known = Directions(
            met=self._placed(known.met, q, known.count, rank),
            image=self._placed(known.image, z, known.count, rank),
            count=known.count + rank,
            moment=known.moment,
        )
        images = self._rows(known.image, known.count)
        image = images.mixed(trained.initial * coordinates, beside=(response, seen_met))
        return replace(self, forward=known), target.spend(rank), self._beside(image, v, source), coordinates

    def _beside(self, image: jax.Array, v: jax.Array, source: Population) -> jax.Array:
        """The image of v, with that by entries that are learned, if there are such."""
        found = self.trained.image(source.weighted(v))
        return image if found is None else image + found

    def _rows(self, array: jax.Array, count: jax.Array) -> Rows:
        if self.by_kernels:
            return tensor_units.counted(array, count)
        return Rows(array, count if self.partly else None)

    def _counted(self, array: jax.Array, count: jax.Array) -> Rows:
        """Of an array that parts are not worth compiling for: all rows, unless kernels take those that are there."""
        return tensor_units.block(array, count) if self.by_kernels else Rows(array)

    def _placed(self, array: jax.Array, new: jax.Array, start: jax.Array, rank: jax.Array) -> jax.Array:
        if self.by_kernels:
            return tensor_units.placed(array, new, start, rank)
        return placed(array, new, start, rank if self.partly else None)

    def apply_t(
        self, u: jax.Array, source: Population, target: Population
    ) -> tuple[RevealedGaussian, Population, jax.Array, jax.Array]:
        """W^T u / sqrt(N); `source` is the population of u (the matrix's output), `target` its input."""
        matrix, target, image, coordinates = self.transposed.apply(u, source, target)
        return replace(matrix.transposed, trained=self.trained), target, image, coordinates

    def with_room(self, count: int, source: Population, target: Population, normals: int) -> RevealedGaussian:
        """With room for `count` more directions on either side, over populations with so many more `normals`."""
        return replace(
            self,
            forward=self.forward.with_room(count, source, target, normals),
            backward=self.backward.with_room(count, target, source, normals),
            trained=self.trained.with_room(count),
        )

    def outer(self, inputs: jax.Array, outputs: jax.Array) -> Learned:
        """sum_a u_a v_a^T / sqrt(N), for coordinates `inputs` of v and `outputs` of u."""
        return Learned(jnp.zeros(()), outputs.T @ inputs)


def revealed(
    source: int,
    target: int,
    capacity: tuple[int, int],
    tolerance: float,
    *,
    project: bool = True,
    initial: jax.Array | float = 1.0,
    ratio: float = 1.0,
    entries: str | None = None,
) -> RevealedGaussian:
    """A matrix that has shown nothing yet.

    Args:
        source, target: sizes of the input and the output population.
        capacity: most directions that `apply` and `apply_t` may meet.  A call needs room for its whole block: `ranks`
            must not exceed capacity minus block size before it (the caller checks).
        initial: d, the standard deviation of its entries.
        ratio: r^2, the width of the input population over that of the output.
        entries: where these move by rules of their own, their type.
    """

    def nothing(capacity: int, met: int, image: int) -> Directions:
        return Directions(jnp.zeros((capacity, met)), jnp.zeros((capacity, image)), jnp.zeros((), jnp.int32))

    return RevealedGaussian(
        forward=nothing(capacity[0], source, target),
        backward=nothing(capacity[1], target, source),
        trained=untrained(initial, capacity[::-1], (target, source), entries),
        tolerance=jnp.asarray(tolerance, float),
        project=project,
        spreads=(1.0, ratio**0.5),
    )


def untrained(
    initial: jax.Array | float, directions: tuple[int, ...], components: tuple[int, ...], entries: str | None
) -> Learned | Entries:
    """Of a matrix at initialisation, what moves: C of so many directions, or E of so many components."""
    d = jnp.ones(()) * initial
    return Learned(d, jnp.zeros(directions)) if entries is None else Entries(d, jnp.zeros(components, entries))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Explicit:
    """An ordinary weight matrix (output, input).  Its coordinates of a vector are the vector itself."""

    trained: jax.Array

    @property
    def peeked(self) -> Explicit:
        return self

    @property
    def ranks(self) -> jax.Array:
        return jnp.array(self.trained.shape[::-1], jnp.int32)

    def apply(
        self, v: jax.Array, source: Population, target: Population
    ) -> tuple[Explicit, Population, jax.Array, jax.Array]:
        del source  # sums over its neurons are the matrix product
        return self, target, v @ self.trained.T * self._scale, v

    def apply_t(
        self, u: jax.Array, source: Population, target: Population
    ) -> tuple[Explicit, Population, jax.Array, jax.Array]:
        del source
        outputs, inputs = self.trained.shape
        return self, target, u @ self.trained * (self._scale * (inputs / outputs)), u

    def with_room(self, count: int, source: Population, target: Population, normals: int) -> Explicit:
        del count, source, target, normals
        return self

    def outer(self, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
        return outputs.T @ inputs * self._scale

    @property
    def _scale(self) -> float:
        return hidden_scale(self.trained.shape[1])
