"""Training, evaluate, predict, explain and the page read the same pictures in the same way.

Random folders of random pictures; what each way feeds the network is compared with one definition,
which is computed from the numbers that the pictures were made of.
"""

import io

import numpy as np
import pytest
from pictures import chunk, png, resized
from PIL import Image

from gpuconv import checkpoint, data, train
from gpuconv.cli import main
from gpuconv.page.opening import open_session

WHITE16 = 65535
SEEDS = [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 80))]


def on_white(values, alpha, most=255):
    """Values (H, W, C) with alpha (H, W, 1), both up to `most`, on white; 0 to 255."""
    share = alpha / most
    return np.floor((values * share + most * (1 - share)) * 255 / most + 0.5)


def few_bits(rng, H, W):
    """Gray of 1, 2 or 4 bits with a transparent value."""
    depth = int(rng.choice([1, 2, 4]))
    values = rng.integers(0, 2**depth, (H, W))
    key = int(rng.integers(0, 2**depth))
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    rows = [bytes(row) for row in np.packbits(bits.reshape(H, -1).astype(np.uint8), axis=1)]
    shown = np.where(values == key, 255, values * 255 // (2**depth - 1))
    return png(W, H, depth, 0, rows, (b"tRNS", bytes([0, key]))), shown[..., None]


def deep(rng, H, W, channels):
    """Gray or colour of 16 bits, with alpha or with a transparent value."""
    values = rng.integers(0, 65536, (H, W, channels), np.uint16)
    rows = [row.astype(">u2").tobytes() for row in values]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    if channels in (2, 4):
        shown = on_white(values[..., :-1].astype(float), values[..., -1:], WHITE16)
        return png(W, H, 16, kind, rows), shown
    key = values[H // 2, W // 2].copy()
    shown = np.floor(values / 257 + 0.5)
    shown[(values == key).all(axis=2)] = 255
    return png(W, H, 16, kind, rows, (b"tRNS", key.astype(">u2").tobytes())), shown


def eight_bits(rng, H, W, mode):
    """A mode of Pillow in a format that loses nothing."""
    form = {"CMYK": "TIFF", "P": str(rng.choice(["PNG", "GIF"]))}.get(mode)
    form = form or str(rng.choice(["PNG", "TIFF", *(["PPM", "BMP"] if len(mode) % 2 else [])]))
    size = (H, W, len(mode)) if len(mode) > 1 else (H, W)
    values = rng.integers(0, 256, size, np.uint8)
    if mode == "1":
        image, shown = Image.fromarray(values > 127), (values > 127)[..., None] * 255
    elif mode == "P":
        values %= 7
        palette = rng.integers(0, 256, (7, 3), np.uint8)
        image = Image.fromarray(values).convert("P")
        image.putpalette(palette.tobytes())
        shown = palette[values].astype(float)
        if rng.random() < 0.5:
            image.info["transparency"] = 3
            shown[values == 3] = 255
    else:
        image = Image.frombytes(mode, (W, H), values.tobytes())
        values = values.astype(float).reshape(H, W, -1)
        shown = values
        if mode in ("LA", "RGBA"):
            shown = on_white(values[..., :-1], values[..., -1:])
        elif mode == "CMYK":
            shown = (255 - values[..., :3]) * (255 - values[..., 3:]) / 255
    content = io.BytesIO()
    options = {"transparency": 3} if image.info.get("transparency") == 3 else {}
    image.save(content, form, **options)
    return content.getvalue(), shown.astype(float)


def jpeg(rng, H, W, mode):
    """What is lost depends on the decoder: its pixels are Pillow's."""
    content = io.BytesIO()
    size = (H, W, len(mode)) if len(mode) > 1 else (H, W)
    Image.fromarray(rng.integers(0, 256, size, np.uint8), mode).save(content, "JPEG")
    shown = np.asarray(Image.open(content)).astype(float)
    return content.getvalue(), shown.reshape(H, W, -1)


KINDS = [
    few_bits,
    *(lambda *a, c=c: deep(*a, c) for c in (1, 2, 3, 4)),
    *(lambda *a, m=m: eight_bits(*a, m) for m in ("1", "L", "LA", "RGB", "RGBA", "P", "CMYK")),
    *(lambda *a, m=m: jpeg(*a, m) for m in ("L", "RGB")),
]


def with_exif(rng, content, shown):
    """The picture with an orientation or broken EXIF, if the format is PNG."""
    if not content.startswith(b"\x89PNG") or rng.random() < 0.4:
        return content, shown
    if rng.random() < 0.3:
        exif = rng.bytes(int(rng.integers(0, 40)))
        return content[:33] + chunk(b"eXIf", exif) + content[33:], shown
    turn = int(rng.integers(1, 9))
    exif = Image.Exif()
    exif[0x0112] = turn
    turned = [
        shown, shown[:, ::-1], shown[::-1, ::-1], shown[::-1], shown.swapaxes(0, 1),
        np.rot90(shown, -1), shown[::-1, ::-1].swapaxes(0, 1), np.rot90(shown),
    ][turn - 1]  # fmt: skip
    return content[:33] + chunk(b"eXIf", exif.tobytes()[6:]) + content[33:], turned


def random_picture(rng, gray, tone):
    """tone: "dark" or "light" for a picture that is so altogether, "" for any."""
    H, W = (int(side) for side in rng.integers(3, 60, 2))
    if tone:
        values = rng.integers(0, 50, (H, W) if gray else (H, W, 3), np.uint8)
        values = values if tone == "dark" else 255 - values
        content = io.BytesIO()
        Image.fromarray(values).save(content, "PNG")
        return with_exif(rng, content.getvalue(), values.reshape(H, W, -1).astype(float))
    kinds = KINDS[:3] + KINDS[5:8] if gray else KINDS
    kind = kinds[int(rng.integers(len(kinds)))]
    return with_exif(rng, *kind(rng, H, W))


def write(rng, root, classes, counts, gray, tones):
    """Pictures at any depth of their classes' folders; what is in each, by path."""
    found = {}
    for name, count in zip(classes, counts, strict=True):
        for k in range(count):
            folder = root / name / "/".join(["deeper", "x.y"][: int(rng.integers(0, 3))])
            folder.mkdir(parents=True, exist_ok=True)
            content, shown = random_picture(rng, gray, str(rng.choice(tones)))
            path = folder / f"{k}{rng.choice(['.png', '.JPG', '.tif'])}"  # the content decides
            path.write_bytes(content)
            found[path] = shown
        for litter in (".hidden/0.png", "__MACOSX/0.png", "._1.png", "Thumbs.db", "notes.txt"):
            if rng.random() < 0.4:
                path = root / name / litter
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
    return found


class Definition:
    """What a network of such a kind is fed with."""

    def __init__(self, channels, how, dark):
        self.channels, self.how, self.dark = channels, how, dark

    def __call__(self, shown):
        """Pixels (C, 32, 32) of what a picture shows, and how surely its border is light."""
        planes = shown.transpose(2, 0, 1)
        if self.channels == 1 and len(planes) == 3:
            planes = np.rint([0.299, 0.587, 0.114] @ planes.reshape(3, -1)).reshape(
                1, *planes.shape[1:]
            )
        pixels = resized(np.rint(planes), 32, 32, self.how)
        pixels = np.broadcast_to(pixels, (self.channels, 32, 32))
        light = border(pixels) - 127
        return (255 - pixels if self.dark and light > 0 else pixels), abs(light)


def border(pixels):
    edges = [pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]]
    return np.median(np.concatenate(edges, axis=1), axis=1).mean()


def check(x, pixels, metadata):
    """Whether an input of the network (1, C, 32, 32) shows these pixels."""
    scale = metadata["input"]
    mean = np.reshape(0.0 if scale["mean"] is None else scale["mean"], (-1, 1, 1))
    std = np.reshape(1.0 if scale["std"] is None else scale["std"], (-1, 1, 1))
    assert x.shape == pixels.shape
    return bool((np.abs((x * std + mean) * 255 - pixels) <= 3.01).all())


@pytest.fixture
def fed(monkeypatch):
    """All images that evaluate, predict and explain feed a network with."""
    seen = []
    original = train.answers.to_device

    def watched(array, device):
        if array.ndim == 4:
            seen.extend(array.copy())
        return original(array, device)

    monkeypatch.setattr(train.answers, "to_device", watched)
    return seen


def run(*argv):
    assert main([str(argument) for argument in argv]) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_every_way_in_prepares_pictures_alike(tmp_path, monkeypatch, fed, capsys, seed):
    rng = np.random.default_rng(seed)
    monkeypatch.chdir(tmp_path)
    gray_pictures = rng.random() < 0.3
    classes = ["b", "A", "ü", "train"][: int(rng.integers(2, 5))]
    root = tmp_path / "pictures"
    if own_parts := rng.random() < 0.6:
        names = [("Train", "test"), ("training", "VAL"), ("train", "Testing")][int(rng.integers(3))]
        tones = [["dark"], ["dark", "light"]] if rng.random() < 0.4 else [[""], [""]]
        shown = [
            write(rng, root / name, classes, rng.integers(1, 4, len(classes)), gray_pictures, each)
            for name, each in zip(names, tones, strict=True)
        ]
    else:
        whole = write(rng, root, classes, rng.integers(2, 6, len(classes)), gray_pictures, [""])
        shown = [whole, whole]
    how = str(rng.choice(["stretch", "fit", "centre-crop"]))
    options = {"resize": how, "normalize": str(rng.choice(["data", "none"]))}
    options["gray"] = bool(rng.random() < 0.3)
    prepared = train.prepare(
        train.run_config(
            data=str(root), epochs=1, batch=64, augment="none", device="cpu", seed=seed, **options
        )
    )
    prepared.trainer.out = tmp_path / "run"
    prepared.fit()
    last = tmp_path / "run" / "last.safetensors"
    metadata = checkpoint.read(last).metadata

    training = prepared.training
    colours = any(s.shape[2] == 3 for s in shown[0].values())
    channels = training.input_shape[0]
    if own_parts:
        assert channels == (3 if colours and not options["gray"] else 1)
    dark = own_parts and tones[0] == ["dark"]
    if dark:
        assert metadata["dark_border"] is True
    definition = Definition(channels, how, metadata["dark_border"])
    x = training.dataset.batch(range(len(training.dataset)), 32, training.mean, training.std)
    compare(x, training.dataset, shown[0], definition, metadata, own_parts)
    fed.clear()
    run("evaluate", last)
    test = list(fed)
    held_out = data.Preprocessing.from_metadata(metadata, training.input_shape).load(
        str(root), "test"
    )
    files = compare(test, held_out, shown[1], definition, metadata, own_parts)
    if not own_parts:
        assert set(held_out.labels) == set(training.dataset.labels) == set(range(len(classes)))
        assert len(held_out) + len(training.dataset) == len(whole)
    session = open_session(str(last))
    for k in rng.permutation(len(files))[:2]:
        fed.clear()
        run("predict", last, files[k])
        run("explain", last, files[k], "-o", tmp_path / "x.png", "--method", "saliency")
        run("explain", last, "--index", k, "-o", tmp_path / "x.png", "--method", "saliency")
        uploaded = session.read_picture(files[k].read_bytes())
        sampled = session.sample(int(k))
        assert uploaded["pixels"] == sampled["pixels"]
        for each in fed:
            np.testing.assert_array_equal(each, test[k])
        assert len(fed) == 3
        session.run(held_out.images[k])
        np.testing.assert_array_equal(list(session._runs.values())[-1][0], test[k])
    capsys.readouterr()


def compare(x, dataset, shown, definition, metadata, own_parts):
    """That each input shows one of the files, in their order; returns the files."""
    assert len(x) == len(dataset)
    order = sorted(shown)
    if own_parts:
        assert len(x) == len(order)
    files = []
    for each, label in zip(x, dataset.labels, strict=True):
        while True:
            assert order, "an input that is none of the pictures left"
            path = order.pop(0)
            pixels, sure = definition(shown[path])
            same = check(each, pixels, metadata)
            if not same and definition.dark and sure < 2:  # inverted or not: a matter of rounding
                same = check(each, 255 - pixels, metadata)
            if same:
                break
            assert not own_parts, path
        assert dataset.classes[label] in path.parts
        files.append(path)
    return files
