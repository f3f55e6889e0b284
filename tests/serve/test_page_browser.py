"""The page of `foveate demo --page` as a process of its own: over HTTP, and in a Chromium where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foveate import tiny
from foveate.serve.page.answers import LIMITS, PageError
from foveate.serve.page.html import OWN
from tests.serve.browser import CHROMIUM, Browser

gradio = pytest.importorskip("gradio")

from foveate.serve.page import app  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@contextlib.contextmanager
def serving(folder):
    """The command, with its temporary files in a folder: the process, and where the page is."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "foveate", "demo", "--page", "--port", "0"],
        env=environment, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            said = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
            assert said, process.communicate(timeout=30)
            yield process, said[0]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("page")) as (_, address):
        yield address


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    scene, _ = next(iter(tiny.held_out(1)))
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    scene.pil().save(path)
    return path


def request(address, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer, answer.read()


def test_nothing_leaves_the_machine(page):
    answer, text = request(page, "GET", "/")
    assert answer.status == 200
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    config = json.loads(re.search(r"window.gradio_config = (.*?);</script>", text.decode())[1])
    assert config["analytics_enabled"] is False
    assert config["version"] == gradio.__version__
    stylesheets = [one for one in config.get("stylesheets") or [] if "://" in one]
    assert stylesheets == []


def test_an_address_is_not_fetched(page):
    _, text = request(page, "GET", "/config")
    press = next(one for one in json.loads(text)["dependencies"] if len(one["inputs"]) == 6)
    image = {"path": "https://example.org/image.png", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [image, "what?", "random", 0.5, False, OWN], "fn_index": press["id"], "session_hash": "one"}
    answer, _ = request(page, "POST", "/gradio_api/queue/join", json.dumps(body), {"Content-Type": "application/json"})
    assert answer.status == 200
    _, events = request(page, "GET", "/gradio_api/queue/data?session_hash=one")
    assert b"an image is a file, not an address" in events
    with pytest.raises(gradio.Error, match="not an address"):
        asyncio.run(app.upload().async_move_resource_to_block_cache("http://127.0.0.1/x.png"))


def test_too_large_a_file_is_not_taken(page):
    large = b"x" * (LIMITS.max_image_bytes + 1)
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n' + large + b"\r\n--b--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer, _ = request(page, "POST", "/gradio_api/upload", form, kind)
    assert answer.status == 413


def test_ports_and_hosts_that_are_not_there():
    with app.listen("127.0.0.1", 0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(PageError, match="in use"):
            app.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(PageError, match="cannot listen"):
        app.listen("n" * 300, 0)
    with pytest.raises(PageError, match="cannot listen"):
        app.listen("192.0.2.1", 0)


def test_interrupted_it_ends_cleanly(tmp_path):
    """While somebody looks at the page; its folder of uploads is gone then."""
    with serving(tmp_path) as (process, address):
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/gradio_api/heartbeat/one")
        assert connection.getresponse().status == 200
        assert list(tmp_path.glob("foveate-page-*"))
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "", "")
    assert not list(tmp_path.glob("foveate-page-*"))


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def tab(page, browser):
    """Opens the page in tabs; at the end none had an error or asked for anything from elsewhere."""
    opened = []

    def open_page(width=1280):
        tab = browser.open(width, 900)
        tab.go(f"http://{page}/")
        tab.wait("document.querySelector('#example-7') && document.querySelector('#keep input[type=range]')")
        opened.append(tab)
        return tab

    yield open_page
    for one in opened:
        assert one.problems() == []
        assert one.addresses()
        assert {url for url in one.addresses() if not url.startswith((f"http://{page}/", "data:", "blob:"))} == set()


DONE = "document.querySelector('#result table') && !document.querySelector('#result').innerText.includes('timing')"
RESULT = "document.querySelector('#result').innerText"
WIDE = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


def table(tab):
    tab.wait(DONE)
    return tab.value("[...document.querySelectorAll('#result tr')].map(r => [...r.children].map(c => c.innerText))")


@needs_browser
def test_upload_question_and_enter(tab, file):
    one = tab()
    one.upload("#image input[type=file]", file)
    one.wait("document.querySelector('#image img')")
    one.value("document.querySelector('#question textarea, #question input').focus()")
    one.type("what is in the top row?")
    one.press("Enter")
    rows = table(one)
    assert rows[1][1:] == ["256", "64", "25.0 %"]
    assert one.value("document.querySelectorAll('#result figure img').length") == 2
    assert one.value("[...document.querySelectorAll('#result img')].every(image => image.naturalWidth > 0)")


@needs_browser
def test_by_keyboard_alone(tab):
    """Everything can be reached in the order in which it stands there; arrows move the slider, enter answers."""
    one = tab()
    wanted = ["image", "question", "method", "keep", "layer", "ask", "example-0", "example-1"]
    met = []
    while "example-1" not in met and len(met) < 40:
        one.press("Tab")
        met.append(one.value(f"{wanted}.find(name => document.activeElement.closest('#' + name))"))
        if one.value("document.activeElement.type == 'range'"):
            one.press("ArrowRight", times=3)
    assert {*wanted} <= {*met}, met
    assert sorted(wanted, key=met.index) == wanted, met
    assert one.value("document.querySelector('#keep input[type=number]').value") == "0.28"
    one.press("Enter")
    assert table(one)[1][1:] == ["256", "72", "28.1 %"]
    assert one.value("document.querySelector('#question textarea, #question input').value")


@needs_browser
def test_a_method_by_keyboard(tab):
    one = tab()
    one.value("document.querySelector('#method input').focus()")
    one.value("document.querySelector('#method input').select()")
    one.type("pyramid")
    one.press("Enter")
    one.wait("document.querySelector('#method input').value == 'pyramiddrop'")
    one.value("document.querySelector('#example-0').click()")
    one.wait(DONE)
    assert one.value("document.querySelectorAll('#result figure').length") == 4


@needs_browser
def test_messages_on_the_page(tab, tmp_path):
    one = tab()
    one.value("document.querySelector('#ask').click()")
    one.wait(f"{RESULT} == 'Not answered: choose an image'")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    one.upload("#image input[type=file]", tmp_path / "broken.png")
    one.wait("document.querySelector('#image img')")
    one.value("document.querySelector('#ask').click()")
    one.wait(f"{RESULT}.startsWith('Not answered: an image')")
    assert one.value("document.querySelector('#result [role=alert]').innerText.split('\\n').length") == 1


@needs_browser
def test_on_a_phone(tab):
    one = tab(375)
    assert one.value(WIDE)
    one.value("document.querySelector('#example-5').click()")
    one.wait(DONE)
    assert one.value(WIDE)
    assert one.value("document.querySelector('#result').getBoundingClientRect().right <= 375")


@needs_browser
def test_two_tabs_at_once(tab):
    """Each gets its own answer."""
    few, many = tab(), tab()
    for one, press in ((few, "Home"), (many, "End")):
        one.value("document.querySelector('#keep input[type=range]').focus()")
        one.press(press)
        one.press({"Home": "ArrowRight", "End": "ArrowLeft"}[press], times=4)
    for one, number in ((few, 4), (many, 5)):
        one.value(f"document.querySelector('#example-{number}').click()")
    assert table(few)[1][1:] == ["256", "13", "5.1 %"]
    assert table(many)[1][1:] == ["256", "246", "96.1 %"]
    asked = [one.value("document.querySelector('#question textarea, #question input').value") for one in (few, many)]
    assert asked[0] != asked[1]
