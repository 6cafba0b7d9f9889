"""The language of architectures.

An architecture is a frozen dataclass with one method, its forward pass, written over the operations of an interpreter
`net`.  Everything else is read from it: the limit, what 1/N adds, networks of finite width, sizes.

    read(name, x, to=p)             W x                 a thin matrix, from input directions to the neurons of p
    apply(name, v, to=p)            W v / sqrt(N)       a square Gaussian matrix, the only place where one enters
    apply(name, v, to=p, mix=m)     sum_k sum_x m[k, y, x] W^k v_x / sqrt(N)       a bank of them, over positions
    vector(name, of=p)              b                   a number for each neuron of p: a bias, of weight N(0, 1)
    number(name, start=1.0)         n                   one number that is trained: a gain, a temperature
    activate(phi, h)                phi(h)              entry by entry
    mix(h, A)                       sum_x A[y, x] h_x   a map of positions that nothing trains; A (x,) leaves none
    local(formula, a, b, ...)       formula(xp, a, b, ...)       of what alike neurons hold: treats all neurons alike
    average(a, b)                   <a b>               over a population: a number, which `local` may use
    overlaps(a, b)                  <a_s b_t>           of all pairs of positions (s, t), numbered row by row
    flatten(h)                      h / sqrt(X)         of X positions, which the readout has weights of its own for
    layer(h, features)              names h^l and what it shows the next layer, of which results hold kernels
    blocks(count, block, h)         h <- block(net, h), so many times: equal blocks, each with weights of its own
    show(name, formula, a, ...)     names what observables may take averages of: a number of each unit
    h + g,  c * h

What `read`, `apply`, `vector` and these return are fields: (row, [position,] neuron) of one population, whose neurons
come last; numbers have a last axis of length one, and no population.  Rows, and in networks members of an ensemble, are
leading axes that belong to the interpreter: formulas count axes from the end.  Populations are named by the program
with any hashable (`to`); layers of one population share their neurons, as those of a residual network do.  A
`Population` in the place of a name says more of it: how wide it is beside others, and which neurons belong to one unit,

    net.apply("U", v, to=dmft.Population("branch", width=2))            2 N neurons; sums over them / sqrt(2 N)
    net.apply("K", v, to=dmft.Population("heads", group=4))             N / 4 heads of four neurons each

where `local` sees (..., unit, component) in the place of neurons, and may use all components of a unit together
(softmax within a head, averages within a head); numbers are (..., 1, 1) there.  Averages, `activate`, `mix` and
matrices are over units and components alike.  `overlaps` are averages over units, of each component apart: numbers
(..., 1, component) for `local`.  Numbers may have other positions than the fields that they meet there.  `program`
returns the field that the readout averages, without positions, or what `flatten` gives:

    f_c = <w_c features> / gamma0,      sum_x <w_cx features_x> / (gamma0 sqrt(X))

or f_xc = <w_c features_x> / gamma0 of every position, with one readout for all (`every_position`).

A block is made of h and its own weights alone, which it names as if it were alone, and returns a field of the same
population and positions as h.  However many there are, the compiled code of the limit has one of them.

`net.shape` is the shape of one input as the task has it.  Weights and their layers are numbered 0, 1, ... in the order
in which `read` and `apply` meet them; the readout is the last.  Vectors and numbers belong to the layer of the matrix
before them.  What is trained has the rate eta gamma0^2 N where it is a weight of neurons, eta gamma0^2 where it is a
number (`dmft.specs.parameterization`), which starts where the program says, be it at a traced field.

Fields of a dataclass marked `traced` enter compiled code as numbers, so that a sweep over them compiles once; a
program must not decide by them.  Zero stays the number 0.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.specs.networks.drawing import sketch_of
from dmft.specs.networks.population import Field
from dmft.specs.networks.sketch import Sketch
from dmft.specs.parameterization import MEAN_FIELD, input_scale

TRACED = "traced"
# what engines read from a network beside its program
BESIDE = ("gamma0", "centered", "frozen", "parameterization", "weight_variance", "bias_variance")


def traced(**options: Any) -> Any:
    """A dataclass field that is a number of compiled code."""
    return field(metadata={TRACED: True}, **options)


class Architecture:
    """What architectures derive from: frozen dataclasses with `program`.

    Those of one's own need no more than

        @dataclass(frozen=True)
        class Perceptron(dmft.Architecture):
            gamma0: float = 1.0

            def program(self, net, x):
                h = net.read("W0", x, to="neurons")
                return net.layer(h, net.activate(dmft.tanh(), h))

    and have a limit, fluctuations and networks as the built-in ones do.  They are described by their module and name,
    which has to be importable where a description is read.

    Example:
        >>> issubclass(dmft.CNN, dmft.Architecture)
        True
    """

    gamma0: float = 1.0
    centered: bool = True
    bias: float = 0.0  # of the first layer: one more input of this value
    frozen: tuple[int, ...] = ()
    parameterization: str = MEAN_FIELD
    weight_variance: float | tuple[float, ...] = 1.0
    bias_variance: float = 1.0
    # what the size of its networks is called, and which fields to lower, besides the rate, where they diverge
    sized = "width"
    wilder: tuple[str, ...] = ("gamma0",)

    def program(self, net: Any, x: Any) -> Field:
        """The field that the readout averages."""
        raise NotImplementedError(f"{type(self).__name__} has no program; see dmft.specs.networks.program.")

    def inputs(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """What `program` reads: (sample, [position,] direction), scaled so that W x of weights N(0, 1) is h."""
        flat = x.reshape(len(x), -1)
        scaled: NDArray[np.float64] = flat * input_scale(flat.shape[1])
        return scaled

    def input_factors(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """s (direction,), the factor of each direction of `inputs` there, of inputs of this shape: the unit in which
        entrywise optimisers see the gradients of what reads them (`dmft.specs.parameterization`)."""
        directions = self.inputs(np.ones((1, *shape))).shape[-1]
        return np.full(directions, input_scale(directions))

    @property
    def every_position(self) -> bool:
        """Whether the readout reads each position of what `program` returns, in place of one field without: outputs are
        (position, output), side by side."""
        return False

    def counts(self, width: int) -> dict[str, int]:
        """What a network of this width has besides its N neurons, by the name of a coordinate of results."""
        del width
        return {}

    def relative_variances(self, layers: int) -> tuple[float, ...]:
        """Those of weights at initialisation that are N(0, 1) by `weight_variance`, for so many layers: other than 1
        where a layer's factor in the program sets the rate at which it learns."""
        return (1.0,) * layers

    def with_blocks(self, count: int) -> Architecture:
        """The same network with so many residual blocks, which `dmft.depth_limit` makes more of."""
        raise ValueError(
            f"{type(self).__name__} has no number of residual blocks that could be {count}; take a residual network."
        )

    def sketch(self, shape: tuple[int, ...] = (1,)) -> Sketch:
        """What the program is made of, for inputs of this shape."""
        return sketch_of(structure(self), shape)


def input_factors(network: Architecture, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Those of the network, and 1 of the bias of the first layer, where it is one of its inputs."""
    return np.append(network.input_factors(shape), [1.0] * bool(network.bias))


# ---- numbers and structure -------------------------------------------------------------------------------------------


def structure(network: Any) -> Any:
    """The network with all that does not shape its program at one value: equal for networks of one compiled code."""
    cls = type(network)
    found = object.__new__(cls)
    for each in fields(network):
        value = getattr(network, each.name)
        if each.name in BESIDE:
            value = () if each.name == "frozen" else getattr(Architecture, each.name)
        elif each.metadata.get(TRACED) and value != 0:
            value = 1.0
        object.__setattr__(found, each.name, value)
    return found


def numbers(network: Any) -> dict[str, float]:
    """The traced fields that are not zero."""
    values = {each.name: getattr(network, each.name) for each in fields(network) if each.metadata.get(TRACED)}
    return {name: value for name, value in values.items() if value != 0}


def with_numbers(network: Any, values: dict[str, Any]) -> Any:
    """A `structure` with numbers in it, of any array library."""
    found = object.__new__(type(network))
    for each in fields(network):
        object.__setattr__(found, each.name, values.get(each.name, getattr(network, each.name)))
    return found
