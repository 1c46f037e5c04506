"""The page's server: what it answers, and what it refuses in one line and survives."""

import base64
import http.client
import io
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from explained import scores
from PIL import Image, ImageFile
from served import serving

from gpuconv import models
from gpuconv.data import Dataset, Preprocessing
from gpuconv.page import Session, routes
from gpuconv.page import server as server_module
from gpuconv.page.description import to_json
from gpuconv.page.server import PageServer


def digits():
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (5, 1, 28, 28), np.uint8), [3, 1, 4, 1, 5], "0123456789")


@pytest.fixture(scope="module")
def session():
    model = models.lenet()
    metadata = {"image_shape": [1, 28, 28], "dark_border": True}
    return Session(
        model, Preprocessing.from_metadata(metadata, model.input_shape), "lenet", test=digits()
    )


@pytest.fixture
def server(session):
    with serving(session) as made:
        yield made


def ask(server, path, body=None, method=None, **headers):
    """(status, content type, body) of one request; the header names' underscores are dashes."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read()
    finally:
        connection.close()


def get(server, path):
    status, kind, body = ask(server, path)
    assert (status, kind) == (200, "application/json"), body
    return json.loads(body)


def post(server, path, found):
    return ask(server, path, json.dumps(found), Content_Type="application/json")


def picture(seed=0, shape=(1, 28, 28)):
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return pixels, pixels.tobytes()


def run(server, seed=0):
    pixels, sent = picture(seed)
    status, _, body = ask(server, "/api/run", sent, Content_Type="application/octet-stream")
    assert status == 200, body
    return pixels, json.loads(body)


def assert_alive(server):
    assert len(get(server, "/api/model")["layers"]) == 14


def assert_refused(answer, status, words):
    """A 4xx with one line of text that says why."""
    assert answer[0] == status, answer
    assert answer[1].startswith("text/plain")
    assert answer[2].endswith(b"\n")
    assert answer[2].count(b"\n") == 1
    assert words in answer[2].decode()


# ---- what it answers -----------------------------------------------------------------------------


def test_the_page_and_its_files_load_nothing_from_elsewhere(server):
    for path, (kind, content) in server_module.assets().items():
        status, given, body = ask(server, path)
        assert (status, given, body) == (200, kind, content)
        assert b"http://" not in body.replace(b"http://www.w3.org", b"")
        assert b"https://" not in body
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.request("GET", "/")
    policy = connection.getresponse().getheader("Content-Security-Policy")
    connection.close()
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


def test_a_runs_maps_are_the_cpu_devices(server, session):
    pixels, found = run(server)
    x = session.preprocessing.to_float(pixels)
    model = session.graph.model
    assert len(found["maps"]) == 14
    for node, sent in zip(session.graph, found["maps"], strict=True):
        values = np.frombuffer(base64.b64decode(sent["values"]["f4"]), "<f4").reshape(node.shape)
        assert (values == session.graph.outputs(x)[node.number]).all()
        assert (sent["min"], sent["max"]) == (values.min(), values.max())
        if node.kind == "conv" and node.name == "conv1":
            assert (values == scores(model["conv1"], x)[0]).all()
    assert np.argmax(found["probabilities"]) == scores(model, x)[0].argmax()
    assert abs(sum(found["probabilities"]) - 1) < 1e-6


def test_maps_nodes_filters_samples_and_explanations(server, session):
    _, found = run(server)
    name = found["run"]
    again = get(server, f"/api/maps?run={name}&layer=4&first=0")
    assert again == found["maps"][4]
    x = np.frombuffer(base64.b64decode(found["maps"][3]["values"]["f4"]), "<f4").reshape(6, 14, 14)
    window = {"from": 3, "channels": [5, 2], "top": 12, "left": 1, "rows": 5, "columns": 4}
    parts = json.dumps({"run": name, "windows": [window | {"dilation": [1, 1]}]})
    _, _, body = ask(server, "/api/values", parts, Content_Type="application/json")
    (data,) = json.loads(body)["values"]
    expected = np.pad(x, ((0, 0), (0, 3), (0, 0)))[[5, 2], 12:17, 1:5]
    assert (np.frombuffer(base64.b64decode(data["f4"]), "<f4") == expected.ravel()).all()
    weights = get(server, "/api/weights?layer=4&channel=7")
    layer = session.graph.model["conv2"]
    assert base64.b64decode(weights["weight"]["f4"]) == layer.weight.data[7].tobytes()
    assert base64.b64decode(weights["bias"]["f4"]) == layer.bias.data[7].tobytes()
    filters = get(server, "/api/filters?layer=1&when=now")
    w = np.frombuffer(base64.b64decode(filters["values"]["f4"]), "<f4").reshape(filters["shape"])
    assert (w == session.graph.model["conv1"].weight.data).all()
    sample = get(server, "/api/sample?index=3")
    assert base64.b64decode(sample["pixels"]["u1"]) == digits().images[3].tobytes()
    assert (sample["label"], sample["shape"]) == (1, [1, 28, 28])
    explained = get(server, f"/api/explanation?run={name}&method=gradient&target=3")
    assert explained["shape"] == [1, 32, 32]


def test_gradient_saliency_is_the_gradient_by_central_differences(session):
    pixels, _ = picture(3)
    model = session.graph.model
    name = session.run(pixels)["run"]
    kept = [parameter.grad for parameter in model.parameters()]
    found = session.explanation(name, "gradient", 6)
    values = np.frombuffer(base64.b64decode(found["values"]["f4"]), "<f4").reshape(1, 32, 32)
    assert all(a is b.grad for a, b in zip(kept, model.parameters(), strict=True))
    exact = models.lenet().to("reference", np.float64).eval()
    x = session.preprocessing.to_float(pixels).astype(np.float64)
    rng = np.random.default_rng(0)
    for row, column in rng.integers(2, 30, (40, 2)):
        step = np.zeros_like(x)
        step[0, 0, row, column] = 1e-6
        slope = (scores(exact, x + step) - scores(exact, x - step))[0, 6] / 2e-6
        assert abs(values[0, row, column] - slope) <= 1e-5, (row, column)


def test_runs_that_were_forgotten_say_so(server, session):
    _, first = run(server)
    version = session.version
    session.load(session.graph.model.state_dict())
    assert "gone" in get(server, f"/api/maps?layer=1&first=0&run={first['run']}")
    parts = json.dumps({"run": first["run"], "windows": []})
    assert b"gone" in ask(server, "/api/values", parts, Content_Type="application/json")[2]
    assert session.version == version + 1


def test_an_upload_is_read_as_predict_reads_it(server, session, tmp_path):
    pixels = np.full((40, 30), 230, np.uint8)
    pixels[10:30, 12:18] = 20
    Image.fromarray(pixels).save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    status, _, body = ask(server, "/api/picture", content, Content_Type="application/octet-stream")
    found = json.loads(body)
    assert status == 200
    assert found["inverted"] is True
    fitted = np.frombuffer(base64.b64decode(found["pixels"]["u1"]), np.uint8).reshape(1, 28, 28)
    expected = session.preprocessing.picture(tmp_path / "one.png").pixels
    assert (fitted == expected).all()


def test_uploads_at_once_are_decoded_one_after_the_other(server, monkeypatch):
    """So that eight small files need the memory of one."""
    lock, active, counts = threading.Lock(), [], []
    load = ImageFile.ImageFile.load

    def counted(image):
        with lock:
            active.append(image)
            counts.append(len(active))
        time.sleep(0.02)
        try:
            return load(image)
        finally:
            active.pop()

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    whole = io.BytesIO()
    Image.new("L", (300, 200)).save(whole, "PNG")
    kind = {"Content_Type": "application/octet-stream"}
    with ThreadPoolExecutor(8) as threads:
        sent = [
            threads.submit(ask, server, "/api/picture", whole.getvalue(), **kind) for _ in range(8)
        ]
        assert [each.result()[0] for each in sent] == [200] * 8
    assert set(counts) == {1}


def test_numbers_that_json_does_not_have_are_null():
    found = to_json({"a": [np.nan, np.inf, -np.inf, -0.0, 1.5], "b": "NaN"})
    assert json.loads(found) == {"a": [None, None, None, 0, 1.5], "b": "NaN"}
    assert b"-0.0" in found


# ---- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8123",
        "",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "evil@localhost",
        "[::1]evil",
        "[",
        "localhost:http",
        "localhost#",
        "localhost/",
        "localhost.",
    ],
)
def test_a_name_that_was_pointed_here_is_refused(server, host):
    for path in ("/", "/api/model"):
        assert_refused(ask(server, path, Host=host), 403, "open the page by the address")
    assert_alive(server)


def test_local_names_are_answered(server):
    port = server.server_address[1]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LocalHost"):
        assert ask(server, "/api/model", Host=host)[0] == 200


def test_posts_of_another_site_are_refused(server):
    (_, body), kind = picture(), "application/octet-stream"
    own = f"127.0.0.1:{server.server_address[1]}"
    for origin in (
        "https://evil.example",
        "null",
        f"http://localhost:{own[-4:]}",
        "http://127.0.0.1",
    ):
        answer = ask(server, "/api/run", body, Content_Type=kind, Origin=origin)
        assert_refused(answer, 403, "are not answered")
    for site in ("cross-site", "same-site"):
        answer = ask(server, "/api/model", Sec_Fetch_Site=site)
        assert_refused(answer, 403, "another site")
    answer = ask(server, "/api/run", body, Content_Type="text/plain")  # as a form can send it
    assert_refused(answer, 415, "must be application/octet-stream")
    assert ask(server, "/api/run", body, Content_Type=kind, Origin=f"http://{own}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/static/../../server.py",
        "/%2e%2e/server.py",
        "/style.css/..",
        "//etc/passwd",
    ],
)
def test_no_path_escapes(server, path):
    assert_refused(ask(server, path), 404, "nothing at")


def test_bodies_that_are_too_large_or_of_no_length(server):
    kind = {"Content_Type": "application/octet-stream"}
    answer = ask(server, "/api/picture", b"x", Content_Length=str(1 << 40), **kind)
    assert_refused(answer, 413, "at most")
    for length in ("-1", "0x10", "", "1e3", "٣"):
        with socket.create_connection(server.server_address) as raw:
            head = "POST /api/picture HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
            raw.sendall(head.encode())
            assert raw.recv(4096).split()[1] in (b"411", b"400"), length
    answer = ask(server, "/api/picture", iter([b"abc"]), Transfer_Encoding="chunked", **kind)
    assert_refused(answer, 411, "Content-Length")
    assert_alive(server)


def test_windows_that_cannot_be(server):
    name = run(server)[1]["run"]
    good = {"from": 0, "channels": [0], "top": 0, "left": 0, "rows": 1, "columns": 1}
    good |= {"dilation": [1, 1]}
    for change in (
        {"from": 99}, {"from": -1}, {"channels": 5}, {"channels": [1]}, {"channels": [0.0]},
        {"rows": 1 << 29, "columns": 0}, {"rows": True}, {"top": 10**400}, {"dilation": [1]},
        {"dilation": None}, {"left": "0"}, {"more": 1},
    ):  # fmt: skip
        answer = post(server, "/api/values", {"run": name, "windows": [good | change]})
        assert answer[0] == 400, change
        assert answer[2].count(b"\n") == 1
    for windows in ([good] * 17, [None], [{}], None):
        assert post(server, "/api/values", {"run": name, "windows": windows})[0] == 400
    assert post(server, "/api/values", {"run": name, "windows": [good]})[0] == 200


MALFORMED_PICTURES = {
    "nothing": (b"", "not a picture"),
    "text": (b"hello", "not a picture"),
    "a cut PNG": (None, "damaged or unreadable"),
    "a bomb": (b"bomb", "too large"),
}


@pytest.mark.parametrize("name", MALFORMED_PICTURES)
def test_malformed_pictures(server, name):
    content, words = MALFORMED_PICTURES[name]
    if content is None:
        whole = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(
            whole, "PNG"
        )
        content = whole.getvalue()[:300]
    elif content == b"bomb":
        whole = io.BytesIO()
        Image.new("1", (12_000, 12_000)).save(whole, "PNG")
        content = whole.getvalue()
        assert len(content) < 20_000
    answer = ask(server, "/api/picture", content, Content_Type="application/octet-stream")
    assert_refused(answer, 400, words)


def malformed_questions(count):
    """Wrong requests of every kind, drawn at random: (path, body or None, content type)."""
    rng = np.random.default_rng(7)
    good = {"from": 1, "channels": [0], "top": 0, "left": 0, "rows": 2, "columns": 2}
    good |= {"dilation": [1, 1]}
    text = json.dumps({"run": "1", "windows": [good] * 3})
    names = (
        "/api/maps",
        "/api/weights",
        "/api/filters",
        "/api/explanation",
        "/api/sample",
        "/api/patches",
    )
    values = ["", "-1", "99999999999", "x", "1,2", "0,0,0,0", "NaN", "٣", "1e9", "%00", "' or 1"]
    for number in range(count):
        kind = number % 6
        if kind == 0:
            yield "/api/values", text[: int(rng.integers(len(text)))], "application/json"
        elif kind == 1:
            yield "/api/run", rng.bytes(int(rng.integers(784))), "application/octet-stream"
        elif kind == 2:
            wrong = [[], {}, None, "x", 1e999, [[]] * 3, {"run": 5}, {"run": "1", "windows": {}}]
            found = [wrong[number % 8], {"run": "1", "windows": [good | {"rows": "2"}]}, good]
            yield "/api/values", json.dumps(found[int(rng.integers(3))]), "application/json"
        elif kind == 3:
            yield "/api/values", "[" * 20_000 + "]" * 20_000, "application/json"
        elif kind == 4:
            yield "/api/picture", rng.bytes(int(rng.integers(2000))), "application/octet-stream"
        else:
            keys = ("run", "layer", "first", "index", "when", "method", "target")
            query = "&".join(f"{key}={values[rng.integers(len(values))]}" for key in keys)
            yield (
                f"{names[int(rng.integers(5))]}?{query.encode('ascii', 'ignore').decode()}",
                None,
                "",
            )


def test_a_thousand_malformed_requests_leave_it_serving(server):
    for path, body, kind in malformed_questions(1000):
        if isinstance(body, str):
            body = body.encode()
        headers = {"Content_Type": kind} if body is not None else {}
        path = path.replace(" ", "%20")
        status, given, text = ask(server, path, body, **headers)
        assert 400 <= status < 500, (path, text)
        assert given.startswith("text/plain")
        assert text.count(b"\n") == 1
    assert_alive(server)
    run(server)


LINES = (
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x00\xff\xfe\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n",
    b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"OPTIONS /api/run HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n folded: x\r\n\r\n",
)


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_malformed_lines(server, line):
    with socket.create_connection(server.server_address, timeout=10) as raw:
        raw.sendall(line)
        raw.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    if answer:
        assert answer.split()[1][:1] == b"4", answer
        assert answer.split(b"\r\n\r\n", 1)[1].count(b"\n") == 1
    assert_alive(server)


def test_a_refusal_arrives_while_the_client_still_sends(server):
    head = b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    sent = head + b"Content-Length: 30000000\r\n\r\n" + b"x" * 30_000_000
    for _ in range(5):
        with socket.create_connection(server.server_address, timeout=10) as raw:
            raw.sendall(sent)
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 415 ")
        assert answer.endswith(b"must be application/octet-stream, got text/plain\n")


@pytest.mark.parametrize("end", [b"", b"Host: localhost\r\n", b"Host: localhost\r\n\r\n"])
def test_a_client_that_dribbles_is_dropped(server, monkeypatch, end):
    """In the middle of a line, of the headers or of the body."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.3)
    with socket.create_connection(server.server_address, timeout=20) as raw:
        raw.sendall(b"POST /api/picture HTTP/1.1\r\nContent-Length: 1000\r\n")
        raw.sendall(b"Content-Type: application/octet-stream\r\n" + end)
        began, ended = time.monotonic(), False
        while time.monotonic() < began + 15:  # a byte now and then, each well within the limit
            try:
                raw.sendall(b"x")
                raw.settimeout(0.1)
                if raw.recv(1) == b"":
                    ended = True
                    break
            except TimeoutError:
                continue
            except OSError:
                ended = True
                break
        assert ended
    assert_alive(server)


def test_idle_connections_give_way(server):
    """Whatever waits for its request: nothing sent, a part of one, or one after an answer."""
    sent = (b"", b"GET / HTTP/1.1\r\nHost", b"GET /style.css HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for first in sent:
        idle = []
        for _ in range(2 * server_module.MAX_CLIENTS):
            idle.append(socket.create_connection(server.server_address, timeout=10))
            idle[-1].sendall(first)
        began = time.monotonic()
        for _ in range(3):
            assert_alive(server)
        assert time.monotonic() - began < 5
        for each in idle:
            each.close()


def test_the_number_of_clients_is_bounded(server, monkeypatch):
    """Those whose answers are on their way keep their places; one more is told so at once."""
    release, busy = threading.Event(), threading.Semaphore(0)

    def slow(session):
        busy.release()
        release.wait(60)
        return {}

    monkeypatch.setitem(routes.QUESTIONS, "/api/slow", (slow, {}))
    threads = [
        threading.Thread(target=get, args=(server, "/api/slow"))
        for _ in range(server_module.MAX_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert busy.acquire(timeout=30)
        began = time.monotonic()
        with socket.create_connection(server.server_address, timeout=10) as one_more:
            assert one_more.recv(100).startswith(b"HTTP/1.1 503")
        assert time.monotonic() - began < 5
    finally:
        release.set()
        for thread in threads:
            thread.join()
    assert_alive(server)


def test_a_busy_port_gives_the_next_free_one(server, session):
    busy = server.server_address[1]
    with PageServer(session, port=busy) as other:
        assert other.server_address[1] > busy
        assert other.url == f"http://127.0.0.1:{other.server_address[1]}/"


def test_an_address_that_is_not_here(session):
    with pytest.raises(OSError, match=r"show: cannot listen on 192\.0\.2\.1:8123"):
        PageServer(session, "192.0.2.1", 8123)


def test_only_this_machine_by_default(server):
    assert server.server_address[0] == "127.0.0.1"


def test_the_terminal_stays_quiet(server, capfd):
    ask(server, "/nothing")
    with socket.create_connection(server.server_address) as raw:
        raw.sendall(b"GET / HTT")
    assert_alive(server)
    assert capfd.readouterr() == ("", "")


def test_files_of_the_page_are_packaged():
    folder = os.path.join(os.path.dirname(server_module.__file__), "static")
    known = {*server_module.assets()} - {"/"}
    scripts = {f"/{name}" for name in os.listdir(folder) if name.endswith((".js", ".css"))}
    from gpuconv.page.assets import OFFLINE_SCRIPTS

    assert scripts == known | {f"/{name}" for name in OFFLINE_SCRIPTS}
