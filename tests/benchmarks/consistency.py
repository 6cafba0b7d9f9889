"""Consistency of networks across widths at the size of a GPU: `python tests/benchmarks/consistency.py resnet transformer`.

    python tests/benchmarks/consistency.py resnet transformer --images FOLDER --text bible_kjv --out results/consistency

writes for each network its figure (`figures.consistency`) as PNG and PDF, with the numbers as NetCDF; finished networks
are kept in --store, if it is given, and found again.  Images: a folder of IDX files such as Fashion-MNIST, of CIFAR-10
or of images, or the name of a data set; texts: a name (pydoc_topics, bible_kjv) or a file.  Where a text has too few
windows side by side for all steps, they overlap.  --plan says what it would cost; --toy is the size of a CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import dmft
from dmft.specs.tasks.sources import source_of
from figures import consistency, style

FULL = {"widths": [32, 64, 128, 256, 512], "seeds": 8, "steps": 400, "batch": 64, "context": 64}
TEST = 200  # images, some of which results hold
TOY = {"widths": [8, 16, 32], "seeds": 8, "steps": 16, "batch": 16, "context": 12}


def images(source, needed):
    """All classes of images, of which `needed` are for training."""
    given = {"layout": "image", "normalize": "standard", "balanced": False, "allow_pickle": True}
    return dmft.load_task(source, classes=_classes(source), n_train=needed, n_test=TEST, **given)


def _classes(source):
    """All labels of a data set."""
    labels = source_of(source, None, True).train.y
    return sorted(set(labels.tolist()))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=consistency.NETWORKS)
    parser.add_argument("--images", "--data", default="digits", help="of the ResNet: a name or a folder")
    parser.add_argument("--text", default="pydoc_topics", help="of the Transformer: a name or a file")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--plan", action="store_true", help="print what it costs, and train a few steps alone for that")
    for name, value in FULL.items():
        many = {"nargs": "+"} if isinstance(value, list) else {}
        parser.add_argument(f"--{name}", type=int, help=f"by default {value}; {TOY[name]} with --toy", **many)
    parser.add_argument("--rate", type=float, default=consistency.RATE)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="tf32", choices=("float32", "tf32", "bf16"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/consistency"))
    given = parser.parse_args(arguments)
    size = {name: getattr(given, name) or value for name, value in (TOY if given.toy else FULL).items()}
    context = size.pop("context")
    needed = size["steps"] * size["batch"]
    for network in given.networks:
        started = time.perf_counter()
        if network == "resnet":
            data = images(given.images, needed)
        else:
            data = dmft.load_text(given.text, context=context)
            stride = max(1, min(context, (len(data.train) - context - 1) // needed))
            data = dmft.load_text(given.text, context=context, stride=stride)
        options = {"rate": given.rate, "device": given.device, "dtype": given.dtype}
        if given.plan:
            print(f"{network}, each of two trainings\n{consistency.plan(network, data, **size, **options)}")
            continue
        ds = consistency.make(network, data, **size, **options, store=given.store)
        for path in style.save(consistency.figure(ds), consistency.drawn(ds), given.out / network):
            print(path)
        print(f"{network}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
