"""What the page offers of `gpuconv.explain`, over HTTP: every method, and patches."""

import base64
import json
import re
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from served import serving
from test_show_export import every_kind

from gpuconv import explain, models, nn
from gpuconv.autograd import record
from gpuconv.data import Dataset, Preprocessing, to_float
from gpuconv.page import Session, explanations, of_model
from gpuconv.page.explanations import options
from gpuconv.page.export import export
from gpuconv.page.session import Missing


def session_of(model, image, count=23, mean=0.2, std=0.4):
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (count, *image), np.uint8)
    labels = np.arange(count) % 3
    metadata = {"image_shape": image, "input": {"mean": [mean], "std": [std]}}
    return Session(
        model,
        Preprocessing.from_metadata(metadata, model.input_shape),
        "net",
        test=Dataset(pixels, labels),
    )


@pytest.fixture(scope="module")
def session():
    return session_of(models.lenet(seed=3), (1, 28, 28))


@pytest.fixture(scope="module")
def served(session):
    with serving(session) as server:
        yield server.url


def get(url):
    with urlopen(url, timeout=30) as answer:
        return json.load(answer)


def array(found, key="values", kind="f4"):
    return np.frombuffer(base64.b64decode(found[key][kind]), f"<{kind}").reshape(found["shape"])


def pictures(session, size=32):
    return to_float(session.test.images, size, 0.2, 0.4)


def fresh(session):
    """Searches that have seen nothing yet."""
    return explanations.Searches(session.graph, session.preprocessing, session.test)


def ask_all(session, number, filter):
    answers = [session.patches(number, filter)]
    while "patches" not in answers[-1]:
        answers.append(session.patches(number, filter))
    return answers


@pytest.mark.parametrize("method", explain.METHODS)
def test_every_methods_answer_is_the_functions(session, served, method):
    pixels = session.test.images[7]
    run = session.run(pixels)["run"]
    x = session.preprocessing.to_float(pixels)
    answers = []
    for target in range(10):
        found = get(f"{served}api/explanation?run={run}&method={method}&target={target}")
        how = {}
        if method == "occlusion":  # an eighth of 32, covered with the picture's darkest colour
            how = {"window": 4, "stride": 1, "value": float(x.min())}
        expected = explain.method(method).function(session.graph.model, x, target, **how)
        assert found["shape"] == [1, 32, 32]
        assert (array(found) == explain.as_map(expected)).all()
        answers.append(np.ptp(array(found)))
        assert explain.METHODS[method].signed or array(found).min() >= 0
    assert np.count_nonzero(answers) >= 3  # Grad-CAM may find nothing for a class
    described = get(f"{served}api/model")["methods"]
    assert [each["name"] for each in described] == list(explain.METHODS)


def test_of_a_network_with_a_softmax_the_scores_are_explained():
    own = nn.Sequential(
        conv=nn.Conv2d(1, 4, 3, rng=0), relu=nn.ReLU(), flat=nn.Flatten(),
        fc=nn.Linear(4 * 36, 3, rng=1), softmax=nn.Softmax(),
    )  # fmt: skip
    session = of_model(own, (1, 8, 8))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8), np.uint8)
    run = session.run(pixels)["run"]
    scores = nn.Sequential(*list(own)[:-1]).eval()
    x = session.preprocessing.to_float(pixels)
    for method in ("gradient", "guided-backprop", "grad-cam"):
        expected = explain.as_map(explain.method(method).function(scores, x, 2))
        found = array(session.explanation(run, method, 2))
        assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_a_layer_without_a_way_back_is_told():
    def refuse(dy, over):
        raise NotImplementedError("OneWay has no backward")

    class OneWay(nn.Module):
        def forward(self, x):
            return record("one_way", x.data, (x,), refuse)

    model = nn.Sequential(own=OneWay(), flat=nn.Flatten(), fc=nn.Linear(64, 2))
    session = of_model(model, (1, 8, 8))
    run = session.run(np.ones((1, 8, 8), np.uint8))["run"]
    with serving(session) as server:
        with pytest.raises(HTTPError) as refused:
            get(f"{server.url}api/explanation?run={run}&method=gradient&target=0")
        assert (refused.value.code, refused.value.read()) == (501, b"OneWay has no backward\n")


def test_slow_and_impossible_methods_are_not_offered():
    class Strange(nn.Sequential):
        def forward(self, x):
            return super().forward(x)[:, ::-1]

    odd = nn.Sequential(own=Strange(nn.Conv2d(1, 2, 3)), flat=nn.Flatten(), fc=nn.Linear(72, 2))
    odd.input_shape = (1, 8, 8)
    described = session_of(odd, (1, 8, 8)).describe()
    assert [each["name"] for each in described["methods"]] == list(explain.METHODS)
    assert described["patches"] == []  # what indexing reads is not known
    slow = of_model(models.resnet18(), (3, 224, 224)).describe()["methods"]
    assert {"grad-cam", "smooth-grad"} <= {each["name"] for each in slow}
    assert "occlusion" not in {each["name"] for each in slow}
    flat = of_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), (1, 8, 8)).describe()["methods"]
    assert not {"grad-cam", "guided-grad-cam"} & {each["name"] for each in flat}
    assert "gradient" in {each["name"] for each in flat}


def test_occlusions_window_fits_any_picture():
    for sides in ((32, 32), (2, 3), (224, 160), (1, 1), (40, 700)):
        graph = of_model(
            nn.Sequential(nn.Flatten(), nn.Linear(3 * sides[0] * sides[1], 2)), (3, *sides)
        ).graph
        x = np.random.default_rng(0).random((1, 3, *sides), np.float32)
        how = options("occlusion", graph, x)
        assert all(1 <= w <= s for w, s in zip(how["window"], sides, strict=True))
        assert how["value"] == [plane.min() for plane in x[0]]
        assert explain.occlusion(graph.model, x, 0, **how).shape == (1, *sides)


def test_the_patches_are_found_a_little_at_a_time(session, served, monkeypatch):
    monkeypatch.setattr(explanations, "STEP_PICTURES", 10)
    monkeypatch.setattr(session, "_searches", fresh(session))
    node, filter = next(n for n in session.graph if n.name == "conv2"), 5
    answers = [get(f"{served}api/patches?layer={node.number}&filter={filter}") for _ in range(3)]
    assert [(each["seen"], each["pictures"], each["of"]) for each in answers] == [
        (10, 23, 23), (20, 23, 23), (23, 23, 23),
    ]  # fmt: skip
    assert ["patches" in each for each in answers] == [False, False, True]
    x = pictures(session)
    maps = explain.activations(session.graph.model, x, ["conv2"])["conv2"][:, filter]
    order = np.argsort(-maps.reshape(len(x), -1).max(axis=1), kind="stable")[:9]
    assert [patch["image"] for patch in answers[-1]["patches"]] == order.tolist()
    for patch in answers[-1]["patches"]:
        k, p, q = patch["index"]
        assert (k, patch["label"]) == (filter, patch["image"] % 3)
        assert patch["value"] == maps[patch["image"], p, q] == maps[patch["image"]].max()
        # two 5x5 convolutions with a 2x2 pool between: 14 pixels, every second
        assert patch["box"] == [2 * p, 2 * p + 14, 2 * q, 2 * q + 14]
        top, bottom, left, right = patch["box"]
        framed = np.pad(session.test.images[patch["image"]], ((0, 0), (2, 2), (2, 2)))
        assert (array(patch, "pixels", "u1") == framed[:, top:bottom, left:right]).all()
        back = explain.deconvnet(session.graph.model, x[[patch["image"]]], [(k, p, q)], "conv2")[0]
        assert (array(patch, "projection") == back[:, top:bottom, left:right]).all()
        assert not np.delete(back, np.s_[top:bottom], axis=1).any()  # the rest sees nothing


def test_new_weights_begin_the_search_anew(session):
    session._searches = fresh(session)
    first = ask_all(session, 1, 0)[-1]
    state = {name: a.copy() for name, a in session.graph.model.state_dict().items()}
    session.load({name: -a if name.startswith("conv1") else a for name, a in state.items()})
    second = ask_all(session, 1, 0)[-1]
    assert second["version"] == first["version"] + 1
    assert [p["value"] for p in second["patches"]] != [p["value"] for p in first["patches"]]
    session.load(state)
    assert ask_all(session, 1, 0)[-1]["patches"] == first["patches"]


def test_the_search_is_bounded(session, monkeypatch):
    monkeypatch.setattr(explanations, "MAX_WORK", 15 * session.graph.multiply_adds)
    monkeypatch.setattr(explanations, "STEP_WORK", 4 * session.graph.multiply_adds)
    monkeypatch.setattr(session, "_searches", fresh(session))
    answers = ask_all(session, 4, 1)
    assert [each["seen"] for each in answers] == [4, 8, 12, 15]
    assert (answers[-1]["pictures"], answers[-1]["of"]) == (15, 23)
    for number in range(1, 7):
        ask_all(session, number, 0)
    assert session._searches._search.cache_info().currsize == explanations.MAX_SEARCHES


def test_parts_of_every_kind_of_layer_with_maps():
    model = every_kind()
    model.input_shape = (2, 13, 12)
    session = session_of(model, (2, 11, 12))
    offered = session.describe()["patches"]
    maps = [node.name for node in session.graph[1:] if len(node.shape) == 3]
    maps.remove("swish.sigmoid")  # a function within a layer, which has no name for it
    assert [session.graph[n].name for n in offered] == maps
    for number in offered:
        found = ask_all(session, number, session.graph[number].shape[0] - 1)[-1]
        values = [patch["value"] for patch in found["patches"]]
        assert len(values) == 9
        assert values == sorted(values, reverse=True)
        json.dumps(found, allow_nan=False)


def test_what_cannot_be_looked_for(session):
    with pytest.raises(ValueError, match="filters of conv1 go from 0 to 5, got 6"):
        session.patches(1, 6)
    with pytest.raises(Missing, match="fc1 has no maps"):
        session.patches(next(n.number for n in session.graph if n.name == "fc1"), 0)
    with pytest.raises(ValueError, match="layers go from 0 to 13"):
        session.patches(14, 0)
    with pytest.raises(Missing, match="there are no test pictures"):
        of_model(models.lenet(), (1, 28, 28)).patches(1, 0)


def test_an_exported_file_has_the_parts_of_small_convolutions(session, tmp_path, monkeypatch):
    def read():
        export(session, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        return json.loads(re.search(r'id="network">(.*?)</script>', text)[1])

    found = read()
    assert found["model"]["patches"] == [1, 4]
    assert found["model"]["note"] == "top-activating patches in this file for conv1, conv2 alone"
    for number in (1, 4):
        for k, each in enumerate(found["patches"][str(number)]):
            assert each == ask_all(session, number, k)[-1]
    monkeypatch.setitem(export.__globals__, "MAX_PATCH_BYTES", 1000)
    found = read()
    assert found["model"]["patches"] == []
    assert found["model"]["note"] == "top-activating patches not in this file"
