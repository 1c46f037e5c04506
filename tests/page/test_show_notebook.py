"""What notebooks show: `model.show()`, and the rich representations of networks and tensors."""

import base64
import html
import io
import re
import types
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import gpuconv
from gpuconv import models, nn
from gpuconv.page import notebook

IN_FRAME = """
const [done] = arguments;
gpuconv.source.run({shape: [2, 4, 4], pixels: new Uint8Array(32)})
  .then(r => done(r.maps.map(m => [...m.values])));
"""


def small():
    return nn.Sequential(
        conv=nn.Conv2d(2, 3, 3, rng=0), norm=nn.BatchNorm2d(3), flat=nn.Flatten(),
        fc=nn.Linear(12, 2, rng=1),
    )  # fmt: skip


@pytest.fixture
def in_notebook(monkeypatch):
    shell = types.SimpleNamespace(kernel=None)
    fake = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(notebook.sys.modules, "IPython", fake)


def test_the_page_in_a_cell(in_notebook, browser, tmp_path):
    model = small()
    shown = model.show((2, 4, 4), classes=["<cat>", "dog"])
    assert model.training
    assert model.norm.training
    path = tmp_path / "cell.html"
    path.write_text(f"<!doctype html><html><body>{shown._repr_html_()}</body></html>")
    driver = browser.driver
    driver.get(path.as_uri())
    driver.switch_to.frame(0)
    browser.until("return window.gpuconv && gpuconv.page && gpuconv.page.ran > 0")
    maps = driver.execute_async_script(IN_FRAME)
    driver.switch_to.default_content()
    with gpuconv.no_grad():
        expected = model.eval()(np.zeros((1, 2, 4, 4), np.float32)).numpy()[0]
    assert np.allclose(maps[4], expected, atol=1e-6)
    browser.logs()
    assert browser.complaints == []


def test_what_does_not_fit_into_a_cell_is_served(in_notebook):
    class Lower(nn.Module):
        def forward(self, x):
            return x - 1

    model = nn.Sequential(Lower(), nn.Flatten(), nn.Linear(4, 2))
    shown = gpuconv.show(model, (1, 2, 2))
    assert shown.url.startswith("http://127.0.0.1:")
    assert "0 is a Lower, which an exported page cannot compute" in shown._repr_html_()


def test_elsewhere_it_is_served_until_ctrl_c(monkeypatch):
    served = []
    monkeypatch.setattr(notebook, "serve", lambda session, port: served.append((session, port)))
    assert models.lenet().show(port=9000) is None
    assert [(session.title, port) for session, port in served] == [("lenet", 9000)]
    model = small()
    model.device = "sim"
    with pytest.raises(ValueError, match="is on sim, the page runs it on cpu or reference"):
        model.show((2, 4, 4))
    with pytest.raises(ValueError, match="show: this network does not know its input"):
        small().show()


class Cells(HTMLParser):
    """The texts of a table's cells, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, text):
        if self.rows and self.get_starttag_text() in ("<td>", "<th>"):
            self.rows[-1].append(text)


def test_a_network_is_the_table_of_its_layers():
    model = models.lenet()
    rows = Cells(model._repr_html_()).rows
    assert rows[0][:2] == ["name", "type"]
    assert rows[1][:3] == ["conv1", "Conv2d", "1, 6, 5"]
    assert len(rows) == 1 + len(gpuconv.summary(model).rows)
    assert "parameters      63,802" in model._repr_html_()
    assert small()._repr_html_() is None  # its input is not known: the text is shown
    model = small()
    model.input_shape = (3, 4, 4)  # which does not fit
    assert "stopped here: " in html.unescape(model._repr_html_())


def test_tensors_as_numbers_and_as_pictures():
    text = nn.Tensor([[1.5, -2], [0, 1e-5]], requires_grad=True)._repr_html_()
    assert "Tensor float32 (2, 2) on cpu, from -2 to 1.5, mean -0.125, requires_grad" in text
    assert Cells(text).rows == [["1.5", "-2"], ["0", "1e-05"]]
    text = nn.Tensor(np.arange(2600.0).reshape(100, 26))._repr_html_()
    assert len(Cells(text).rows) == 12
    assert "100 rows of 26" in text
    for values in (np.float32(3), np.zeros(3, np.float32), np.zeros((0, 3), np.float32)):
        text = nn.Tensor(values)._repr_html_()
        assert (text is None) == (values.size == 0)
    maps = np.zeros((5, 4, 3, 6), np.float32)
    maps[0, 1] = [[0, 1, -1, 0.5, np.nan, np.inf]] * 3
    text = nn.Tensor(maps)._repr_html_()
    pictures = re.findall(r'base64,([^"]*)"', text)
    assert len(pictures) == 16
    assert "and 4 more maps" in text
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[1]))))
    assert pixels.shape == (30, 60)
    assert pixels[0, ::10].tolist() == [128, 255, 0, 191, 128, 128]
