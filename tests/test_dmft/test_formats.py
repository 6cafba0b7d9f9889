"""Files of data: what is what by name and by content, and damage of every kind, named."""

import gzip
import pickle
import re
import struct
import warnings

import numpy as np
import pytest

import dmft
from dmft.__main__ import main
from dmft.errors import DataError
from dmft.specs.tasks.formats import places
from dmft.specs.tasks.formats.idx import IDX_WORDS, read_idx

rng = np.random.default_rng(0)
IMAGES = rng.integers(1, 255, (40, 4, 5), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 2 + 3
CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx(array):
    """The bytes of an IDX file."""
    array = np.asarray(array)
    header = struct.pack(f">HBB{array.ndim}I", 0, CODES[array.dtype.name], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(folder, files):
    """Files of IDX arrays, or of bytes."""
    folder.mkdir(exist_ok=True)
    for name, what in files.items():
        (folder / name).write_bytes(what if isinstance(what, bytes) else idx(what))
    return folder


def load(source, **options):
    return dmft.load_task(source, **{"n_train": 20, **options})


def refused(source, message, **options):
    """The message of a DataError."""
    with pytest.raises(DataError, match=message) as caught:
        load(source, **options)
    return str(caught.value)


# ---- which is which --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train-images-idx3-ubyte", "x_train"),
        ("t10k-labels.idx1-ubyte.gz", "y_test"),
        ("emnist-letters-test-images-idx3-ubyte", "x_test"),
        ("training_images-idx3-ubyte", "x_train"),
        ("validation-labels-idx1-ubyte", "y_test"),
        ("latest-images-idx3-ubyte", "x_train"),
        ("contest-labels-idx1-ubyte", "y_train"),
        ("attest-images-idx3-ubyte", "x_train"),
        ("restrained-images-idx3-ubyte", "x_train"),
        ("mapping-idx1-ubyte", None),
    ],
)
def test_names_are_read_by_whole_words(name, expected):
    assert places.place(name, IDX_WORDS) == expected


def test_a_name_of_both_splits_is_refused():
    with pytest.raises(DataError, match="train-test-images is of training and test by its name"):
        places.place("train-test-images", IDX_WORDS)


MANY = {
    "train-images-idx3-ubyte": IMAGES,
    "train-labels-idx1-ubyte": LABELS,
    "emnist-train-images-idx3-ubyte": IMAGES + 1,
    "emnist-train-labels-idx1-ubyte": LABELS,
}


def test_two_candidates_for_a_place_are_refused_and_may_be_chosen(tmp_path):
    folder = write(tmp_path / "two", MANY)
    message = refused(folder, "two has two candidates for x_train")
    assert "emnist-train-images-idx3-ubyte" in message
    assert " train-images-idx3-ubyte" in message
    assert "names={" in message
    names = {"x": "emnist-train-images-idx3-ubyte", "y": "train-labels-idx1-ubyte"}
    chosen = load(folder, names=names)
    alone = write(tmp_path / "one", {k: v for k, v in MANY.items() if k.startswith("emnist")})
    assert chosen == load(alone)
    assert chosen.provenance["names"] == names
    # plain and gzip
    packed = {"train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES))}
    refused(write(tmp_path / "gz", dict(list(MANY.items())[:2]) | packed), "train-images-idx3-ubyte.gz")
    # training and validation beside test
    splits = {f"{split}-{what}": MANY[f"train-{what}"] for split in ("train", "val", "test") for what in (
        "images-idx3-ubyte", "labels-idx1-ubyte")}  # fmt: skip
    refused(write(tmp_path / "three", splits), "two candidates for x_test, test-images-idx3-ubyte and val-images")


def test_arrays_of_an_npz_file(tmp_path):
    path = tmp_path / "a.npz"
    x, y = IMAGES / 255, LABELS
    expected = {}
    np.savez(path, x=x, y=y)
    expected["one pool"] = load(path, n_test=10)
    np.savez(path, X_train=x[:30], y_train=y[:30], X_test=x[30:], y_test=y[30:])
    expected["two"] = load(path, n_test=10)
    np.savez(path, x=x[:30], y=y[:30], x_val=x[30:], y_val=y[30:], ids=np.arange(40))
    assert load(path, n_test=10) == expected["two"]
    np.savez(path, images=x[:30], labels=y[:30], more_images=x[30:], more_labels=y[30:])
    refused(path, r"a.npz holds \['images', .*names=")
    names = {"x": "images", "y": "labels", "x_test": "more_images", "y_test": "more_labels"}
    assert load(path, n_test=10, names=names) == expected["two"]

    np.savez(path, x=x, y=y, x_train=x)
    refused(path, "a.npz has two candidates for x_train, x and x_train; choose with names=")
    assert load(path, n_test=10, names={"x": "x", "y": "y"}) == expected["one pool"]
    np.savez(path, x_train=x, y_train=y, x_test=x)
    refused(path, "a.npz has x_test and no labels to go with it")
    np.savez(path, x=x, y=y, x_test=x[:, :3], y_test=y)
    refused(path, "training samples have 20 features .* test samples 15")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ({"x": "images"}, DataError, "names has images and no labels to go with it"),
        ({"x": "x", "x_train": "x", "y": "y"}, DataError, "names has two candidates for x_train"),
        ({"x": "x", "y": "z"}, DataError, r"holds no 'z' \(names\['y'\]\); it holds images, x, y"),
        ({"x_test": "x", "y_test": "y"}, ValueError, "names no training samples"),
        ({"inputs": "x", "y": "y"}, ValueError, "names has the key 'inputs'; choose among x, y, x_train"),
        (["x", "y"], TypeError, "is not a dictionary"),
    ],
)
def test_a_choice_is_checked(tmp_path, names, error, message):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS, images=IMAGES)
    with pytest.raises(error, match=message):
        load(tmp_path / "a.npz", names=names)
    with pytest.raises(ValueError, match="is for files"):
        load("digits", names=names)


# ---- IDX and CIFAR-10 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", CODES)
def test_idx_of_every_type(tmp_path, dtype):
    values = (rng.standard_normal((40, 6)) * 100).astype(dtype)
    (tmp_path / "one.bin").write_bytes(gzip.compress(idx(values)))  # gzip, whatever the name
    found = read_idx(tmp_path / "one.bin")
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, values)


def test_damaged_idx_is_named(tmp_path):
    whole = idx(IMAGES)
    damages = {
        whole[:-3]: "says shape (40, 4, 5) of 1 bytes an entry and holds 797 bytes; the file is damaged",
        whole + b"1": "damaged or truncated",
        whole[:9]: "damaged or truncated",
        whole[:3]: "is not an IDX file: it starts with 000008",
        b"": "is empty",
        b"nonsense": "is not an IDX file",
        b"\0\0\x08\x03" + b"\xff" * 12 + whole[16:]: "damaged or truncated",  # sizes beyond 64 bits
        gzip.compress(whole)[:-20]: "cannot be read as gzip",
        gzip.compress(whole)[:40] + b"x" * 50: "cannot be read as gzip",
    }
    for content, message in damages.items():
        folder = write(tmp_path / "set", {"train-images-idx3-ubyte": content, "train-labels-idx1-ubyte": LABELS})
        assert "train-images-idx3-ubyte" in refused(folder, re.escape(message))


PIXELS = rng.integers(1, 255, (20, 3072), dtype=np.uint8)
BATCH = {"data": PIXELS, "labels": (np.arange(20) % 2).tolist()}


def test_cifar_pickles_of_every_kind(tmp_path):
    def read(batch, protocol):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=protocol))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return load(tmp_path, allow_pickle=True)

    expected = read({key.encode(): value for key, value in BATCH.items()}, 2)
    for protocol in range(6):
        assert read(BATCH, protocol) == expected
    assert read(BATCH | {"labels": list(np.arange(20) % 2)}, 5) == expected  # NumPy's own numbers
    fortran = pickle.dumps(BATCH, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")  # NumPy 1
    (tmp_path / "data_batch_1").write_bytes(fortran)
    assert load(tmp_path, allow_pickle=True) == expected


def test_damaged_cifar_is_named(tmp_path):
    whole = pickle.dumps(BATCH)
    damages = {
        whole[:500]: "cannot be read as a pickle of CIFAR-10",
        b"\x80\x05garbage": "cannot be read as a pickle of CIFAR-10",
        b"text": "cannot be read as a pickle of CIFAR-10",
        pickle.dumps([1, 2]): "holds a list, not the dictionary",
        pickle.dumps({"data": PIXELS, "fine_labels": [1]}): "holds data, fine_labels and no labels",
        pickle.dumps({"data": PIXELS, "labels": [1, [2]]}): "cannot be read as a batch of CIFAR-10",
        pickle.dumps({"data": PIXELS, "labels": [1, 2]}): r"of shape \(20, 3072\) and labels labels of shape \(2,\)",
    }
    for content, message in damages.items():
        (tmp_path / "data_batch_1").write_bytes(content)
        assert "data_batch_1" in refused(tmp_path, message, allow_pickle=True)
    binary = write(
        tmp_path / "bin", {"data_batch_1.bin": np.column_stack([np.arange(20) % 2, PIXELS]).astype("u1").tobytes()[:-1]}
    )
    refused(binary, "data_batch_1.bin holds 61459 bytes, not a multiple of 3,073")
    write(binary, {"data_batch_1": whole})
    refused(binary, "two candidates for data_batch_1|two candidates for data_batch", allow_pickle=True)
    write(binary, {"train-images-idx3-ubyte": IMAGES})
    refused(binary, "holds IDX files .* and CIFAR-10 batches")


# ---- .npz ------------------------------------------------------------------------------------------------------------


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x=IMAGES, y=LABELS)
    whole = path.read_bytes()
    np.save(tmp_path / "one.npy", IMAGES)
    damages = {
        b"": "mine.npz is empty",
        b"1,2\n3,4\n": "it is text; read it, e.g. with np.loadtxt",
        (tmp_path / "one.npy").read_bytes(): r"it is a single array \(.npy\)",
        pickle.dumps(BATCH): "it is a Python pickle",
        idx(IMAGES): "it is an IDX file; give the folder",
        rng.bytes(100): "it is of no known kind",
        whole[:300]: "cannot be read as an .npz file",
        whole[: len(whole) // 2] + whole[-200:]: "cannot be read as an .npz file",
        whole[:400] + bytes([whole[400] ^ 1]) + whole[401:]: "an .npz file with an array x .*CRC",
        gzip.compress(whole)[:200]: "cannot be read as gzip",
    }
    for content, message in damages.items():
        path.write_bytes(content)
        assert "mine.npz" in refused(path, message)
    (tmp_path / "renamed.dat").write_bytes(gzip.compress(whole))
    path.write_bytes(whole)
    assert load(tmp_path / "renamed.dat") == load(path)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (IMAGES * (1 + 0j), "x has dtype complex128, which holds no real numbers.*.real"),
        (np.full((40, 2), "a"), "x has dtype <U1"),
        (np.full((40, 2), "2020-01-01", "M8[D]"), r"x has dtype datetime64\[D\]"),
        (np.full((40, 2), None), "an .npz file with an array x .*allow_pickle"),
        (IMAGES[:30], r"inputs x of shape \(30, 4, 5\) and labels y of shape \(40,\)"),
    ],
)
def test_arrays_without_real_numbers_are_named(tmp_path, x, message):
    np.savez(tmp_path / "a.npz", x=x, y=LABELS)
    refused(tmp_path / "a.npz", message)


def test_the_command_line_says_it_in_a_line(tmp_path, capsys):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    options = "problem --n-train 4 --depth 1 --learning-rate 1 --steps 1 --overwrite --out"
    out = [*options.split(), str(tmp_path / "p.json"), "--source"]
    assert main([*out, str(tmp_path / "a.npz")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    np.savez(tmp_path / "b.npz", images=IMAGES, labels=np.arange(40) % 4)
    more = "--names x=images y=labels --classes 0,2 1,3 --unbalanced"
    assert main([*out, str(tmp_path / "b.npz"), *more.split()]) == 0
    found = dmft.Problem.from_json((tmp_path / "p.json").read_text()).task
    names = {"x": "images", "y": "labels"}
    assert found == load(tmp_path / "b.npz", n_train=4, names=names, classes=((0, 2), (1, 3)), balanced=False)
    assert main([*out, str(tmp_path / "b.npz"), "--names", "images"]) == 2
    assert "--names 'images' is not PLACE=NAME" in capsys.readouterr().err
