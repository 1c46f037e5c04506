"""The commands that explain: what they print, draw and refuse; and how explanations are drawn."""

import numpy as np
import pytest
from explained import images

import gpuconv
from gpuconv import data, explain, models
from gpuconv.cli import main
from gpuconv.data import load_image, save_image
from gpuconv.explain import METHODS
from gpuconv.viz import attribution_panel, outlined_panel
from gpuconv.viz.attribution import heat, mosaic
from gpuconv.viz.sheet import signed_pixels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("explain") / "lenet.safetensors"
    metadata = {
        "input": {"mean": [0.1307], "std": [0.3081]},
        "classes": ["zero", *map(str, range(1, 10))],
        "image_shape": [1, 28, 28],
        "dark_border": True,
        "settings": {"data": "mnist"},
    }
    gpuconv.save(models.lenet(seed=1), path, **metadata)
    return str(path)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder: (exit code, what it printed, its one line of error)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = main([str(argument) for argument in argv])
        told = capsys.readouterr()
        assert told.err.count("\n") <= 1
        return code, told.out, told.err.removeprefix("gpuconv: ").strip()

    return run


def test_every_method_is_drawn_beside_its_input(run, checkpoint):
    code, out, err = run("explain", checkpoint, "--index", 12, "--method", "all", "--samples", 2)
    assert (code, err) == (0, "")
    assert out.startswith("mnist test 12: ")
    titles = [METHODS[name].title for name in METHODS]
    assert all(title in out for title in titles)
    drawn = load_image("explain.png")
    digit = data.load("mnist", "test").images[12, 0]
    framed = np.zeros((32, 32), np.uint8)
    framed[2:30, 2:30] = digit
    first = drawn[0, 12 : 12 + 192, 12 : 12 + 192]
    assert np.array_equal(first, framed.repeat(6, 0).repeat(6, 1))


def test_the_map_drawn_is_the_functions(run, checkpoint):
    digit = data.load("mnist", "test")
    x = digit.batch([3], 32, [0.1307], [0.3081])
    model = gpuconv.load(checkpoint)
    cases = {
        ("--class", "7"): ("grad-cam", explain.grad_cam(model, x, 7)),
        ("--class", "zero", "--layer", "conv1"): (
            "grad-cam",
            explain.grad_cam(model, x, 0, layer="conv1"),
        ),
        ("--of", "conv2", "--unit", "3,4,5"): (
            "deconvnet",
            explain.deconvnet(model, x, (3, 4, 5), "conv2").sum(1),
        ),
        ("--class", "5", "--window", "7", "--stride", "2", "--value", "1"): (
            "occlusion",
            explain.occlusion(model, x, 5, window=7, stride=2, value=1.0),
        ),
        ("--seed", "3", "--samples", "2", "--noise", "0.3", "--class", "2"): (
            "smooth-grad",
            explain.smooth_grad(model, x, 2, samples=2, noise=0.3, rng=3).sum(1),
        ),
    }
    for options, (name, expected) in cases.items():
        code, _, err = run("explain", checkpoint, "--index", 3, "--method", name, *options)
        assert (code, err) == (0, "")
        signed = METHODS[name].signed
        panel = attribution_panel(expected[0], "", signed).pixels[:, :192]
        drawn = load_image("explain.png")
        assert any(
            np.array_equal(drawn[:, 12 : 12 + 192, left : left + 192], panel)
            for left in range(drawn.shape[2] - 192)
        ), name


def test_a_picture_is_read_as_predict_reads_it(run, checkpoint):
    paper = 255 - data.load("mnist", "test").images[12]
    save_image("digit.png", paper)
    code, out, _ = run("explain", checkpoint, "digit.png", "-o", "why.png", "--method", "saliency")
    assert code == 0
    assert out.startswith("digit.png (inverted): ")
    read = out.split(": ")[1].split(" (")[0]
    assert run("predict", checkpoint, "digit.png", "--top", 1)[1].startswith(f"digit.png: {read}")
    assert load_image("why.png").shape[0] == 3


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["none.png"], "none.png: no such file or directory"),
        ([], "give a picture, or --index N for a test image; one of the two"),
        (["a.png", "--index", "3"], "one of the two"),
        (["--index", "10000"], "there is no image 10000, expected 0 to 9999"),
        (["--index", "1", "--class", "seven"], "unknown class 'seven'"),
        (["--index", "1", "--class", "12"], "unknown class '12'"),
        (["--index", "1", "--method", "gradcam"], "did you mean 'grad-cam'?"),
        (["--index", "1", "--layer", "fc1"], "layer fc1 has no maps"),
        (["--index", "1", "--layer", "conv3"], "unknown layer 'conv3'; did you mean 'conv"),
        (["--index", "1", "--of", "conv2"], "--of LAYER and --unit K go together"),
        (["--index", "1", "--unit", "2"], "--of LAYER and --unit K go together"),
        (["--index", "1", "--of", "conv2", "--unit", "x"], "whole numbers such as 3,0,5, got 'x'"),
        (["--index", "1", "--of", "conv2", "--unit", "16"], "layer conv2 has no unit"),
        (["--index", "1", "--of", "c", "--unit", "1", "--class", "2"], "it takes no --of"),
        (["--index", "1", "--invert"], "--invert is for a picture"),
        (["a.png", "--data", "mnist"], "--data is for --index N"),
        (["a.png", "--window", "3"], "--window is for --method occlusion"),
        (["a.png", "--method", "saliency", "--layer", "conv1"], "for --method grad-cam and guided"),
        (["a.png", "--value", "nan"], "expected a number of at least -1e+06, got 'nan'"),
        (["--index", "1", "-o", "x.txt"], "x.txt: cannot write pictures as .txt"),
    ],
)
def test_explain_refuses_in_one_line(run, checkpoint, argv, told):
    code, _, err = run("explain", checkpoint, *argv)
    assert code == 2
    assert told in err


def test_patches_prints_and_draws_the_strongest(run, checkpoint):
    given = ("--layer", "conv2", "--filters", "3,0", "--count", 2, "--limit", 40)
    code, out, err = run("patches", checkpoint, *given, "-o", "p.png")
    assert (code, err) == (0, "")
    x = data.load("mnist", "test").batch(np.arange(40), 32, [0.1307], [0.3081])
    found = explain.top_activating_patches(gpuconv.load(checkpoint), x, "conv2", 2, [3, 0])
    lines = out.splitlines()
    for patches, line in zip(found, lines, strict=False):
        first = patches[0]
        assert line.split()[:2] == ["filter", str(first.filter)]
        top, bottom, left, right = first.box
        assert f"image {first.image} (" in line
        assert f") {top}-{bottom},{left}-{right}" in line
    assert lines[-1] == "p.png: 2 filters of conv2, 40 images"
    assert load_image("p.png").shape[0] == 3


def test_patches_of_a_large_layer_says_what_it_leaves_out(run, checkpoint):
    code, out, _ = run("patches", checkpoint, "--layer", "fc1", "--limit", 3, "--count", 1)
    assert code == 0
    assert "32 filters of fc1, 3 images; left out: 88 filters, see --filters" in out


def test_patches_refuses_in_one_line(run, checkpoint):
    for argv, told in (
        (["--layer", "conv9"], "unknown layer 'conv9'"),
        (["--filters", "16", "--limit", "2"], "layer conv2 has filters 0 to 15, not 16"),
        (["--count", "0"], "a whole number of at least 1, got '0'"),
        (["--split", "tset"], "unknown split 'tset'"),
    ):
        code, _, err = run("patches", checkpoint, *argv)
        assert code == 2
        assert told in err


def test_filters_of_a_model_by_name_and_of_partial_connections(run):
    assert run("filters", "lenet", "--seed", 4, "-o", "a.png")[1].startswith("a.png: 6 panels")
    gpuconv.save(models.lenet(seed=4), "b.safetensors")
    assert run("filters", "b.safetensors", "-o", "b.png")[0] == 0
    assert np.array_equal(load_image("a.png"), load_image("b.png"))
    code, out, _ = run("filters", "harley_lenet", "--layer", "conv2", "-o", "c.png")
    assert code == 0
    assert out.startswith("c.png: 96 panels")
    code, out, _ = run("filters", "resnet18", "--layer", "layer1.0.conv1", "-o", "d.png")
    assert "left out: 3840 more" in out


def test_heat_rises_in_lightness_and_is_cividis():
    colours = heat(np.linspace(0, 1, 256)[None])[:, 0].astype(np.float64)
    red, green, blue = (np.where(c > 10, ((c + 14) / 269) ** 2.4, c / 3295) for c in colours)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # ITU-R BT.709, near sRGB's curve
    assert (np.diff(luminance) >= -1e-3).all()
    assert luminance[-1] > 15 * luminance[0]
    matplotlib = pytest.importorskip("matplotlib")
    expected = matplotlib.colormaps["cividis"](np.arange(256))[:, :3].T * 255
    assert np.abs(colours - expected).max() <= 16


def test_panels_show_their_scale():
    values = np.zeros((4, 5))
    values[1, 2], values[3, 0] = 2.0, -1.0
    panel = attribution_panel(values, "t", signed=True, size=20)
    assert panel.pixels.shape == (3, 4 * 4 + 3 + 8, 5 * 4)
    assert np.unique(panel.pixels[:, 4:8, 8:12]).tolist() == [255]
    assert np.unique(panel.pixels[:, :4, :4]).tolist() == [128]
    assert panel.pixels[0, -1, 0] == 0
    assert panel.pixels[0, -1, -1] == 255
    plain = attribution_panel(np.abs(values), "t", signed=False, size=20, notes=("note",))
    assert plain.notes[-1] == "note"
    np.testing.assert_array_equal(plain.pixels[:, -1, -1], plain.pixels[:, 4, 8])
    for flat in (np.zeros((3, 3)), np.full((3, 3), 2.0)):
        assert attribution_panel(flat, "t", signed=False).pixels.dtype == np.uint8


def test_the_outline_surrounds_what_is_above_half():
    values = np.zeros((10, 10))
    values[2:5, 3:7] = 1.0
    values[8, 8] = 0.4
    image = np.full((1, 10, 10), 90, np.uint8)
    pixels = outlined_panel(image, values, "t", size=100).pixels
    inside = np.zeros((100, 100), bool)
    inside[20:50, 30:70] = True
    assert (pixels[0][~inside & (pixels[0] != 90)] == 0).all()
    assert (pixels[0][inside & (pixels[0] != 90)] == 255).all()
    assert (pixels[0, 20, 30:70] == 255).all()
    assert (pixels[0, 19, 29:71] == 0).all()
    assert (pixels[0, 60:] == 90).all()
    nothing = outlined_panel(image, -values, "t", size=100)
    assert np.unique(nothing.pixels).tolist() == [90]
    assert nothing.notes == ("nothing speaks for it here",)


def test_mosaics_hold_patches_of_several_sizes():
    pictures = [np.full((1, 2, 3), 10, np.uint8), np.full((3, 2, 1), 20, np.uint8)]
    made = mosaic(pictures, 2)
    assert made.shape == (3, 2, 7)
    assert made[1].tolist() == [[10, 10, 10, 255, 255, 20, 255]] * 2
    assert signed_pixels(np.array([-2.0, 0.0, 1.0])).tolist() == [0, 128, 191]
    assert (signed_pixels(np.zeros((2, 2))) == 128).all()


def test_pixels_are_what_the_network_reads():
    from gpuconv.data import Preprocessing

    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8)).astype(np.uint8)
    scale = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    wanted = Preprocessing.from_metadata({"input": scale}, (3, 8, 8))
    np.testing.assert_array_equal(wanted.to_pixels(data.to_float(pixels, 8, **scale)), pixels)
    plain = Preprocessing.from_metadata({}, (1, 32, 32))
    assert np.array_equal(plain.to_pixels(images((1, 3, 3)) * 0 + 1), np.full((2, 1, 3, 3), 255))


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'grad-cam'"):
        explain.method("gradcam")
