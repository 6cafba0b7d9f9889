"""The counter-based generator: published test vectors, independence of batches, normality."""

import numpy as np
import pytest
import torch
from scipy import stats

from finite_nets.device import random
from finite_nets.device.random import normals, philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # known-answer vectors of the Random123 library (philox4x32, 10 rounds)
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_vectors(counter, key, expected):
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


def draw(members, shape=(7, 9), width=9, parameter=1, root_seed=3, dtype=torch.float64):
    members = torch.tensor(members)
    return normals(shape, root_seed=root_seed, width=width, parameter=parameter, members=members, dtype=dtype)


def test_a_member_does_not_depend_on_its_batch(monkeypatch):
    together = draw([0, 5, 2**20])
    assert torch.equal(together[1], draw([5])[0])
    monkeypatch.setattr(random, "COUNTERS_AT_ONCE", {"cpu": 5})
    assert torch.equal(together, draw([0, 5, 2**20]))


def test_many_threads_take_no_more_memory_than_sixteen(monkeypatch):
    most = []
    for threads in (1, 16, 128):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        most.append(random.COUNTER_BYTES * random.counters_at_once(torch.device("cpu")))
    assert most == [3 * 2**20, 48 * 2**20, 48 * 2**20]


def test_every_part_of_the_address_matters():
    drawn = [
        draw([0]),
        draw([1]),
        draw([0], width=10),
        draw([0], parameter=2),
        draw([0], root_seed=4),
        draw([0], root_seed=3 + 2**32),
    ]
    flat = torch.stack([d.flatten() for d in drawn])
    assert len(torch.unique(flat.flatten())) == flat.numel()


def test_normality_and_agreement_of_the_precisions():
    z = draw(list(range(200)), shape=(50, 50))
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    gram = torch.corrcoef(z.reshape(200, -1)).numpy()
    # correlations between members: 1/sqrt(2500) = 0.02, 20,000 pairs
    assert abs(gram - np.eye(200)).max() < 0.11
    single = draw(list(range(200)), shape=(50, 50), dtype=torch.float32)
    # float32 holds 24 of the 32 bits: radii near zero (u near 1) and angles near 2 pi differ most
    assert abs(single - z).max() < 1e-4
