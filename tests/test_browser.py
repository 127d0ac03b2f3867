"""The page of a run, and that where a model is tried, in a real browser, without a network: `make browser-test` installs what this needs."""

import base64
import json
import shutil
import socket
import threading

import pytest
from conftest import ROOT, TINY

from cifar10_main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs chromium and chromedriver: make browser-test"),
]
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in (("a", []), ("b", ["--seed=1"])):
        assert main(["--mode=train", *TINY, f"--version={name}", f"--runs_dir={folder}", *flags]) == 0
    assert main(["--mode=report", f"--runs_dir={folder}", "--versions=a,b"]) == 0
    return folder


@pytest.fixture(params=[(1200, 900), (390, 844)], ids=["desktop", "phone"])
def browser(request, tmp_path):
    """Chromium that writes down what a page asks for and complains of."""
    options, (width, height) = webdriver.ChromeOptions(), request.param
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.add_experimental_option(
        "mobileEmulation", {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1.0}}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def open_page(browser, path):
    """Opens a page and waits for its plots. Returns a function of (script, arguments) that runs JavaScript in it."""
    browser.get(path.as_uri())
    browser.set_script_timeout(30)
    browser.execute_async_script(
        "const done = arguments[0]; (function wait() { const views = Object.values(Bokeh.index);"
        "views.length && Bokeh.documents.every((d) => d.is_idle) ? done() : setTimeout(wait, 50); })()"
    )
    return browser.execute_script


def check_quiet(browser):
    """No error, nothing loaded but the page, nothing wider than the window."""
    complaints = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not complaints
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if not url.startswith(("file:", "data:", "blob:", "chrome:"))]
    assert sum(url.startswith("file:") for url in asked) == 1
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_tables_sort_and_filter_and_cells_open_their_images(browser, runs_dir):
    run = open_page(browser, runs_dir / "a" / "report.html")
    # Sorting, by the keyboard: the header of the column of recall has a button.
    column = "return [...document.querySelectorAll('#class-table tbody tr')].map((row) => row.cells[3].textContent)"
    button = run("return document.querySelectorAll('#class-table th button')[3]")
    for order in ("ascending", "descending"):
        button.send_keys("\ue007")
        values = [float(value) for value in run(column)]
        assert values == sorted(values, reverse=order == "descending")
        assert run("return arguments[0].parentElement.getAttribute('aria-sort')", button) == order
    # Filtering.
    field = run("return document.querySelector('#classes').closest('section').querySelector('input[type=search]')")
    name = run("return document.querySelector('#class-table tbody th').textContent")
    field.send_keys(name)
    shown = run("return [...document.querySelectorAll('#class-table tbody tr')].filter((r) => !r.hidden).length")
    assert shown == 1 and run("return document.querySelector('#classes').closest('section').querySelector('[role=status]').textContent").startswith("1 of")  # fmt: skip
    # The gallery.
    cell = run("return document.querySelector('.matrix td:not(.right) button[data-cell]')")
    cell.send_keys("\ue007")
    assert run("return document.getElementById('cell').open")
    assert run("return document.querySelectorAll('#cell-images img').length") == int(cell.get_attribute("data-count"))
    assert run("return [...document.querySelectorAll('#cell-images img')].every((i) => i.complete && i.naturalWidth)")
    run("return document.querySelector('#cell button')").send_keys("\ue007")
    assert not run("return document.getElementById('cell').open")
    assert 0 < run("return document.querySelectorAll('#mistakes img').length") <= 24
    # The plots of the curves are zoomed together.
    run("const p = Object.values(Bokeh.index.roots ?? Bokeh.index)[0].model; p.x_range.start = 1; p.x_range.end = 2")
    ranges = run("return Object.values(Bokeh.documents[0].roots()).map((root) => root.x_range.start)")
    assert ranges.count(1) == 4
    check_quiet(browser)


def test_runs_beside_each_other_sort(browser, runs_dir):
    run = open_page(browser, runs_dir / "comparison" / "report.html")
    run("return document.querySelectorAll('#run-table th button')[0]").send_keys("\ue007")
    names = "return [...document.querySelectorAll('#run-table tbody th')].map((cell) => cell.textContent)"
    assert run(names) == ["a", "b"]
    run("return document.querySelectorAll('#run-table th button')[0]").send_keys("\ue007")
    assert run(names) == ["b", "a"]
    check_quiet(browser)


@pytest.fixture(scope="module")
def address(runs_dir):
    """Where a run and the shipped weights answer."""
    uvicorn = pytest.importorskip("uvicorn")
    from hyper_parameters import from_preset
    from resnet_study.serving.app import HOST, make_app
    from resnet_study.serving.served_model import ServedModel

    models = [ServedModel(name, path, from_preset("fast")) for name, path in (("shipped", "cifar10"), ("a", str(runs_dir / "a")))]  # fmt: skip
    server = uvicorn.Server(uvicorn.Config(make_app(models), log_level="warning"))
    listening = socket.create_server((HOST, 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://{HOST}:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_model_is_tried_with_a_file_a_drop_a_paste_and_the_camera(browser, address):
    browser.get(address)
    run, wait = browser.execute_script, WebDriverWait(browser, 30)
    cat = ROOT / "examples" / "cat.jpg"
    give = """
        const bytes = Uint8Array.from(atob(arguments[0]), (character) => character.charCodeAt(0)), data = new DataTransfer();
        data.items.add(new File([bytes], "image", { type: "image/jpeg" }));
        dispatchEvent(arguments[1] === "drop" ? new DragEvent("drop", { dataTransfer: data }) : new ClipboardEvent("paste", { clipboardData: data }));
    """

    def told():
        return wait.until(lambda _: run("const text = document.getElementById('told').textContent; return text.includes(';') && text"))  # fmt: skip

    for way in ("file", "drop", "paste"):
        run("document.getElementById('told').textContent = ''")
        if way == "file":
            run("return document.getElementById('file')").send_keys(str(cat))
        else:
            run(give, base64.b64encode(cat.read_bytes()).decode(), way)
        assert told().startswith("shipped: cat ")
        assert run("return [...document.querySelectorAll('#answers h2')].map((h) => h.textContent)") == ["shipped", "a"]
        assert run("return [...document.querySelectorAll('#answers section')].map((s) => [s.querySelectorAll('figure img').length, s.querySelectorAll('.images img').length])") == [[2, 0], [2, 8]]  # fmt: skip
        assert run("return [...document.querySelectorAll('#answers img')].every((i) => i.complete && i.naturalWidth)")
    run("document.getElementById('told').textContent = ''")
    run("return document.getElementById('photograph')").send_keys("\ue007")
    wait.until(lambda _: run("return !document.getElementById('shoot').disabled"))
    run("return document.getElementById('shoot')").send_keys("\ue007")
    assert told()
    assert not run("return document.getElementById('camera').open")
    assert run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    # What is no image is said, and the answers before it go.
    run(give, base64.b64encode(b"hello").decode(), "drop")
    wait.until(lambda _: "no image of a kind" in run("return document.getElementById('problem').textContent"))
    assert not run("return document.querySelector('#answers section')")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if not url.startswith((address, "data:", "blob:", "chrome:"))]
