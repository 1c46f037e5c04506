"""The offline page's own forward pass, explanations and gradient, layer by layer, against `cpu`."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gpuconv import explain as explanations
from gpuconv import models, nn
from gpuconv.nn import functional as F
from gpuconv.page import of_model
from gpuconv.page.export import export
from gpuconv.page.graph import FUNCTIONS, KINDS

EPS = np.finfo(np.float32).eps


class Swish(nn.Module):
    """A layer of one's own, of functions that the page knows."""

    def forward(self, x):
        return x * F.sigmoid(x)


class Double(nn.Module):
    """One function that reads one map twice."""

    def forward(self, x):
        return x + x


def every_kind():
    """A network of every layer that the page knows, over 2x13x12 pictures."""
    rng = np.random.default_rng(8)
    norm = nn.BatchNorm2d(6)
    for holder in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        holder.data[...] = rng.uniform(0.3, 1.5, 6)
    table = rng.integers(0, 2, (9, 5)) | np.eye(9, 5, dtype=int)
    partial = nn.Conv2d(9, 5, 2, connections=table, rng=5)
    return nn.Sequential(
        conv=nn.Conv2d(2, 6, (3, 2), stride=(1, 2), padding=((1, 0), (2, 1)), rng=0),
        norm=norm,
        relu=nn.ReLU(),
        swish=Swish(),
        double=Double(),
        groups=nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=3, bias=False, rng=1),
        lrn=nn.LocalResponseNorm(4, alpha=0.7, k=1.2),
        around=nn.Residual(nn.Sequential(nn.Conv2d(6, 6, 1, rng=2), nn.Sigmoid())),
        max=nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        join=nn.Concat(nn.Conv2d(6, 2, 3, padding=1, rng=3), nn.Tanh(), nn.Conv2d(6, 1, 1, rng=4)),
        average=nn.AvgPool2d((2, 3), stride=1, padding=1, count_include_pad=False),
        counted=nn.AvgPool2d(2, stride=1, padding=1),
        sum=nn.SumPool2d(2, stride=1),
        partial=partial,
        scaled=nn.ScaledTanh(),
        drop=nn.Dropout(0.5),
        adaptive=nn.AdaptiveAvgPool2d((3, 2)),
        same=nn.Identity(),
        flat=nn.Flatten(),
        fc=nn.Linear(30, 4, rng=6),
        softmax=nn.Softmax(),
    )


def session_of(model, image, size):
    model.input_shape = (image[0], *size)
    return of_model(model, image, mean=0.3, std=0.6, title="<script>alert(1)</script>")


@pytest.fixture(scope="module")
def session():
    return session_of(every_kind(), (2, 11, 12), (13, 12))


@pytest.fixture(scope="module")
def page(browser, session, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "page.html"
    size = export(session, path)
    assert size == path.stat().st_size
    browser.open(path.as_uri())
    return browser


@pytest.fixture(scope="module")
def run(page, session):
    """The same picture through both: the page's values, the cpu's, and the input."""
    pixels = np.random.default_rng(2).integers(0, 256, (2, 11, 12), np.uint8)
    found = page.driver.execute_async_script(
        "const [pixels, done] = arguments;"
        "gpuconv.source.run({shape: [2, 11, 12], pixels: Uint8Array.from(pixels)})"
        ".then(r => { window.ran = r.run; done(r.maps.map(m => [...m.values])); })",
        pixels.ravel().tolist(),
    )
    x = session.preprocessing.to_float(pixels)
    return found, session.graph.outputs(x), x


def test_every_layers_values(run, session):
    values, outputs, _ = run
    kinds = {*KINDS.values(), *FUNCTIONS.values(), "input"}
    assert {node.kind for node in session.graph} == kinds
    for node, shown, expected in zip(session.graph, values, outputs, strict=True):
        assert len(shown) == expected.size, node.name
        scale = np.abs(expected).max()
        assert (np.abs(np.array(shown) - expected.ravel()) <= 64 * EPS * scale).all(), node.name
    assert (np.array(values[0], np.float32) == outputs[0].ravel()).all()  # the input, bit for bit


def test_the_gradient(page, run, session):
    _, _, x = run
    for target in range(4):
        shown = page.driver.execute_async_script(
            "const [target, done] = arguments;"
            "gpuconv.source.explanation(ran, 'gradient', target).then(r => done([...r.values]))",
            target,
        )
        scores = nn.Sequential(*list(session.graph.model)[:-1]).eval()  # before the softmax
        expected = explanations.as_map(explanations.gradient(scores, x, target)).ravel()
        assert (np.abs(np.array(shown) - expected) <= 1e-5 * np.abs(expected).max()).all()


def test_a_title_cannot_break_out_of_the_page(page):
    assert page.text("#title") == "<script>alert(1)</script>"
    page.logs()
    assert page.complaints == []


def test_the_file_holds_all_it_needs(session, tmp_path):
    export(session, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "https://" not in text
    assert "script-src 'sha256-" in text


@pytest.mark.parametrize("resize", ["stretch", "fit", "centre-crop"])
def test_a_picture_is_prepared_as_predict_does(browser, tmp_path, resize):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 16, 2))
    session = session_of(network, (3, 12, 16), (12, 16))
    session.preprocessing = replace(session.preprocessing, resize=resize, dark_border=True)
    export(session, tmp_path / "page.html")
    browser.open((tmp_path / "page.html").as_uri())
    ramp = np.linspace(90, 250, 60)[None, :, None] + np.linspace(-60, 0, 31)[:, None, None]
    ramp = ramp + np.array([0, -20, 5])
    for pixels in (ramp, 255 - ramp, np.full_like(ramp, 200)):
        content = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(content, "PNG")
        shown, *words = browser.driver.execute_async_script(
            "const [bytes, done] = arguments;"
            "gpuconv.source.picture(new File([Uint8Array.from(bytes)], 'x.png'))"
            ".then(r => done([[...r.pixels], r.inverted, r.blank]))",
            list(content.getvalue()),
        )
        expected = session.preprocessing.picture(io.BytesIO(content.getvalue()))
        assert words == [expected.inverted, expected.blank]
        # The browser interpolates in its own way; the ramp changes by 3 to 13 from pixel to pixel.
        assert (np.abs(np.array(shown) - expected.pixels.ravel().astype(int)) <= 8).all()


def test_networks_that_are_too_large_or_strange(tmp_path):
    large = nn.Sequential(nn.Flatten(), nn.Linear(3 * 900 * 900, 10)).eval()
    with pytest.raises(ValueError, match="up to 2,000,000 parameters, this one has 24,300,010"):
        export(session_of(large, (3, 900, 900), (900, 900)), tmp_path / "page.html")
    wide = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    with pytest.raises(ValueError, match="up to 200,000,000 multiply-adds"):
        export(session_of(wide, (3, 96, 96), (96, 96)), tmp_path / "page.html")

    class Doubled(nn.ReLU):
        def forward(self, x):
            return super().forward(x) * 2

    strange = nn.Sequential(own=Doubled(), flat=nn.Flatten(), fc=nn.Linear(12, 2)).eval()
    with pytest.raises(ValueError, match="own is a Doubled, which an exported page cannot compute"):
        export(session_of(strange, (3, 2, 2), (2, 2)), tmp_path / "page.html")

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 2)

        def forward(self, x):
            return self.fc(x.flatten(1) / 2)

    with pytest.raises(ValueError, match="there is the function scale, which an exported page"):
        export(session_of(Half().eval(), (3, 2, 2), (2, 2)), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_zoos_small_networks_are_exported(tmp_path):
    for name in ("lenet", "lenet5", "harley_lenet"):
        model = models.MODELS[name](seed=0)
        session = session_of(model, (1, 28, 28), (32, 32))
        assert export(session, tmp_path / f"{name}.html") < 1_500_000
