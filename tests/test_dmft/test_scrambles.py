"""Scrambles of the Sobol sequence: those of SciPy, by NumPy and on a device the same."""

import jax
import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import qmc

from dmft.engine import normals, pcg64, scrambles
from dmft.engine.scrambles import BITS


def seed(i=5):
    return np.random.SeedSequence(i)


@jax.enable_x64(True)
def test_normals_are_those_of_scipy():
    z = normals.stored(normals.sobol(50, 256, seed()))
    points = qmc.Sobol(50, scramble=True, bits=BITS, rng=np.random.default_rng(seed()))
    # the quantile of two libraries: rounding
    np.testing.assert_allclose(z, ndtri(points.random(256).T + 0.5 ** (BITS + 1)), atol=1e-13)


def test_words_on_a_device_are_those_of_numpy():
    ours, words = np.random.default_rng(3), jax.jit(pcg64.words)
    for first in (0, 2**16 - 2, 2**24 - 5):
        with jax.enable_x64(True):
            found = np.asarray(words(pcg64.state(ours), first + np.arange(5, dtype=np.uint32)))
        theirs = np.random.default_rng(3)
        theirs.bit_generator.advance(first)
        np.testing.assert_array_equal(found, theirs.bit_generator.random_raw(5))
        assert not (found == theirs.bit_generator.random_raw(5)).any()


@pytest.mark.parametrize(("draws", "size", "room"), [(40, 64, 0), (159, 2, 167), (161, 2, 0)])
def test_scrambles_on_a_device_are_those_of_numpy(draws, size, room, monkeypatch):
    """Of several runs, of populations that have as many draws or another number."""
    monkeypatch.setattr(scrambles, "DIMENSIONS", 160)

    def drawn(on_gpu):
        seeds = [[seed(1), seed(2)], [seed(3), seed(4)]]  # which know what they have spawned
        return scrambles.scrambled_of_each([draws, 3], size, seeds, [room, 0], on_gpu=on_gpu)

    host, device = drawn(False), drawn(True)
    for (table, shift, key), there in zip(host, device, strict=True):
        assert table.dtype == shift.dtype == key.dtype == np.uint32
        for a, b in zip((table, shift, key), there, strict=True):
            np.testing.assert_array_equal(a, b)
        # of every seed others
        assert (shift[0] != shift[1]).any()
        assert (table[0] != table[1]).any()
    table, shift, _ = host[0]
    assert len(shift[0]) == len(table[0]) == min(max(draws, room), 160)
    # what is beyond the draws is zero, and nothing before it
    assert not shift[:, draws:].any()
    assert not table[:, draws:].any()
    assert shift[:, : min(draws, 160)].any(axis=0).all()
    assert table[:, : min(draws, 160)].all()


def test_bits_are_those_that_numpy_draws():
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    bits = theirs.integers(2, size=(7, BITS), dtype=np.uint32)
    np.testing.assert_array_equal(scrambles._bits(ours, 7, BITS), bits)
    # and what follows
    assert ours.integers(2**32) == theirs.integers(2**32)
    np.testing.assert_array_equal(scrambles._integers(bits), bits @ (1 << np.arange(BITS)[::-1]))
