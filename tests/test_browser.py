"""The notebooks as their readers have them: in JupyterLab, in a browser. Only `pytest -m browser` runs these tests.

Runs are those of the run store; what is missing there is trained, which takes much longer than the rest.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from ipykernel.kernelspec import write_kernel_spec
from kit.notebooks import executed as executed_headless
from nbclient import NotebookClient
from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, expect, sync_playwright

import resnotes
from resnotes import datasets, models
from resnotes.book import notebooks
from resnotes.book.tidy import tidied
from resnotes.figures.examination import Subject
from resnotes.figures.explorer import tried
from resnotes.files import lock

pytestmark = [pytest.mark.browser, pytest.mark.timeout(4 * 3600)]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ENVIRONMENT = dict(os.environ)  # as the user set it: when tests start, it names a run store of theirs, which is empty
BOOKS = notebooks.discover()
MAKEFILE = Path(resnotes.__file__).parent.parent / "Makefile"
# What a notebook may say on stderr: that the reader's copy of ADE20K is a sample, which is true of that copy.
OF_THE_DATA = r".* has no training images: a part of ADE20K, whose training split is empty\n"
SECOND = 1000  # as Playwright counts
LONG = 3600 * SECOND  # for a notebook that trains first

READY = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
CELLS = "window.jupyterapp.shell.currentWidget.content.model.cells"
RUNNING = f"() => Array.from({CELLS}).some(cell => cell.executionState === 'running')"
# Words in outputs and controls that hardly stand out from what is behind them: the contrast ratio of WCAG 2, which asks
# for 3 to 1 of large text and controls. What is disabled is meant to be faint.
FAINT = """() => {
  const parsed = color => (color.match(/[\\d.]+/g) || []).map(Number);
  const light = color => parsed(color).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    const color = getComputedStyle(element).backgroundColor;
    return element.parentElement && (parsed(color)[3] ?? 1) < 0.5 ? behind(element.parentElement) : color;
  };
  const words = element => Array.from(element.childNodes).some(node => node.nodeType === 3 && node.data.trim());
  return Array.from(document.querySelectorAll('.jp-OutputArea-output *'))
    .filter(element => words(element) && !element.disabled)
    .map(element => [light(getComputedStyle(element).color), light(behind(element)), element])
    .filter(([front, back]) => (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05) < 3)
    .map(([front, back, element]) => `${element.textContent}: ${front.toFixed(2)} on ${back.toFixed(2)}`);
}"""
PAGES = ["index.html", "en/report.html", "zh/report.html", "notebooks/01_degradation.html"]
FITS = "all => all.every(each => each.scrollWidth <= each.parentElement.clientWidth)"
UNFOLD = "() => document.querySelectorAll('details').forEach(each => each.open = true)"
# What axe-core calls serious or critical: rule and elements.
BARRIERS = """() => axe.run({resultTypes: ['violations']}).then(({violations}) => violations
  .filter(({impact}) => ['serious', 'critical'].includes(impact))
  .map(({id, nodes}) => [id, nodes.map(({html}) => html)]))"""
SAVING = next(word for word in MAKEFILE.read_text().split() if "pre_save_hook" in word)  # as in `make lab`
SAVED = "() => !window.jupyterapp.shell.currentWidget.context.model.dirty"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"found no browser ({', '.join(BROWSERS)}); on Debian, `apt-get install chromium` brings one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own, which fails its test if it reports an error.

    But for one of JupyterLab itself, which now and then takes a cell out of the page twice as it draws those in view
    (jupyterlab/jupyterlab#15415): the cells are there all the same, and the tests look at them.
    """
    errors = []

    def raised(error: Error) -> None:
        if "'removeChild' on 'Node'" not in error.message or "/static/lab/jlab_core" not in (error.stack or ""):
            errors.append(f"{error}\n{error.stack}")

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(f"{message.text} ({message.location['url']})")

    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.on("console", note)
    page.on("pageerror", raised)
    yield page
    context.close()
    assert errors == []


@dataclass(frozen=True)
class Lab:
    """A JupyterLab at work on copies of the notebooks."""

    url: str
    token: str
    folder: Path
    log: Path

    def asked(self, path: str, method: str = "GET") -> Any:
        """An answer of the server's interface."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/{path}", headers=headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def open(self, page: Page, name: str) -> None:
        """Show a notebook, and wait for its kernel."""
        page.goto(f"{self.url}/lab/tree/{name}?token={self.token}&reset")  # reset: without what was opened before
        page.wait_for_function(READY, timeout=60 * SECOND)


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab with settings, kernels and results of its own, on copies of the notebooks; if there is a browser."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    committed = {book.path: book.path.read_bytes() for book in BOOKS}
    folder.mkdir()
    for path in committed:
        shutil.copy(path, folder)
    # `python3` must mean this interpreter, whatever kernels the user has installed under that name.
    write_kernel_spec(home / "data" / "kernels" / "python3")
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')  # a question and a download
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(), folder, home / "log")
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={lab.token}"]
    command += [SAVING, "--LabApp.expose_app_in_browser=True", *(["--allow-root"] if os.geteuid() == 0 else [])]
    package = str(Path(resnotes.__file__).parent.parent)
    environment = {
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join(filter(None, [package, ENVIRONMENT.get("PYTHONPATH")])),
        "JUPYTER_PATH": str(home / "data"),
        **{f"JUPYTER_{kind.upper()}_DIR": str(home / kind) for kind in ("data", "config", "runtime")},
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "RESNOTES_OUT": str(home / "out"),
    }
    with lab.log.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(lab, process)
        yield lab
    finally:
        _stop(psutil.Process(process.pid))
    assert {path: path.read_bytes() for path in committed} == committed


def _wait_for(lab: Lab, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            lab.asked("api/status")
        except OSError:
            assert process.poll() is None, lab.log.read_text()
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"JupyterLab is not there after a minute:\n{lab.log.read_text()}")


def _stop(process: psutil.Process) -> None:
    """End the server and all that it started; kernels are not in its process group."""
    family = [process, *process.children(recursive=True)]
    process.terminate()  # upon which it ends its kernels
    _, alive = psutil.wait_procs(family, timeout=20)
    for each in alive:
        each.kill()
    assert alive == []


@pytest.fixture
def lab(server: Lab) -> Iterator[Lab]:
    """JupyterLab, whose kernels end with the test."""
    yield server
    print(server.log.read_text()[-10_000:])  # pytest shows it if the test failed
    for session in json.loads(server.asked("api/sessions")):
        server.asked(f"api/sessions/{session['id']}", "DELETE")


def start_all(page: Page) -> None:
    """Run all cells, as a reader does."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(RUNNING)


def finish(page: Page) -> None:
    """Wait for the last cell, or for one that fails."""
    page.wait_for_function(f"() => !({RUNNING})()", timeout=LONG)


def saved(page: Page, path: Path) -> Any:
    """The notebook in `path`, saved as it is shown."""
    page.keyboard.press("Control+s")
    page.wait_for_function(SAVED)
    return nbformat.read(path, as_version=4)


def change_theme(page: Page, name: str) -> None:
    """Change the colours of JupyterLab."""
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
    page.locator(f"body[data-jp-theme-name='{name}']").wait_for(state="attached")


def pictures(notebook: Any) -> list[bytes]:
    """The PNG files in its outputs."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return [b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", ())]


def expect_pictures(page: Page, count: int) -> None:
    """That so many figures are shown, each with its picture."""
    expect(page.locator(".jp-OutputArea-output img")).to_have_count(count, timeout=30 * SECOND)
    page.wait_for_function(
        "() => Array.from(document.querySelectorAll('.jp-OutputArea-output img')).every(img => img.naturalWidth > 0)"
    )


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_a_notebook_runs(book: notebooks.Notebook, lab: Lab, page: Page) -> None:
    committed = notebooks.read(book.path)
    lab.open(page, book.path.name)
    expect_pictures(page, len(pictures(committed)))
    assert page.get_by_text("Error displaying widget").count() == 0

    start_all(page)
    finish(page)
    notebook = saved(page, lab.folder / book.path.name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    wrong = [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert [f"{output.ename}: {output.evalue}" for output in wrong] == []
    warnings = [output.text for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert [text for text in warnings if not re.fullmatch(OF_THE_DATA, text)] == []
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(pictures(notebook)) == len(pictures(committed))

    explorer = page.locator(".resnotes-explorer")
    assert explorer.count() == any("explorer import explore" in cell.source for cell in code)
    if explorer.locator(".resnotes-explorer-swap").count():
        explore_lesions(explorer)
    elif explorer.count():
        explore_scenes(explorer)
    change_theme(page, "JupyterLab Dark")
    assert page.evaluate(FAINT) == []
    if explorer.count():
        expect(explorer.locator("img.resnotes-dark")).to_be_visible()
        expect(explorer.locator("img.resnotes-light")).to_be_hidden()
    change_theme(page, "JupyterLab Light")  # for the next test: the server remembers it


def after(explorer: Locator, act: Callable[[], object]) -> str:
    """The figure after `act`, in a light theme; words and figure show another, and the words are its alternative."""
    status, image = explorer.locator(".resnotes-explorer-status"), explorer.locator("img.resnotes-light")
    said, before = status.text_content() or "", image.get_attribute("src") or ""
    act()
    expect(status).not_to_have_text(re.compile(f"{re.escape(said)}|computing"), timeout=60 * SECOND)
    expect(image).not_to_have_attribute("src", before)
    expect(image).to_have_attribute("alt", status.text_content() or "")
    return image.get_attribute("src") or ""


def explore_scenes(explorer: Locator) -> None:
    """Choose something of everything."""
    chosen = {"scene": "1", "backdrop": "street", "vehicle": "bus", "removed": "road", "cover": "patch"}
    for part, name in chosen.items():
        after(explorer, partial(explorer.locator(f".resnotes-explorer-{part} select").select_option, name))


def explore_lesions(explorer: Locator) -> None:
    """Move every control of the lesion explorer, and see what it says and draws change."""
    status, image = explorer.locator(".resnotes-explorer-status"), explorer.locator("img.resnotes-light")

    def part(name: str, inside: str = "") -> Locator:
        return explorer.locator(f".resnotes-explorer-{name} {inside}")

    image.scroll_into_view_if_needed()
    example = image.get_attribute("src")
    intact = after(explorer, part("reset").click)
    expect(status).to_contain_text(re.compile(r"\b0 of \d+ predictions changed.*Kendall τ 1.00"))
    without_five = after(explorer, explorer.locator("button.resnotes-block-5").click)
    part("count", "input").fill("2")
    two_gone = after(explorer, part("again").click)
    two_others_gone = after(explorer, part("again").click)
    part("first", "input").fill("1")
    part("second", "input").fill("2")
    reordered = after(explorer, part("swap").click)
    assert len({example, intact, without_five, two_gone, two_others_gone, reordered}) == 6
    assert after(explorer, part("reset").click) == intact
    assert after(explorer, lambda: part("network", "select").select_option(index=1)) != example


EXPLORERS = """
import torch
from resnotes import datasets, models, progress
from resnotes.datasets.scenes import CLASSES
from resnotes.figures.explorer import explore
from resnotes.figures.scene_explorer import explore_scenes

progress.DELAY = 0
torch.manual_seed(0)
print("before")
list(progress.bar(range(3)))
print("after")
digits, normalization = datasets.load("digits"), datasets.load("scenes", train=1, test=1).normalization
explore({name: models.build(name, in_channels=1, width=2) for name in ("resnet-14", "resnet-56")}, digits)
explore_scenes({name: torch.nn.Conv2d(3, len(CLASSES), 1) for name in ("FCN", "PSPNet")}, normalization)
"""


def test_explorers_are_for_all_and_not_saved(
    lab: Lab, page: Page, axe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = tidied(executed_headless(EXPLORERS, tmp_path, monkeypatch, NotebookClient), {})
    path = lab.folder / "explorers.ipynb"
    nbformat.write(committed, path)
    lab.open(page, path.name)
    start_all(page)
    finish(page)
    assert saved(page, path) == committed

    page.set_viewport_size({"width": 700, "height": 1000})
    page.evaluate("window.jupyterapp.shell.collapseLeft()")
    explorers = page.locator(".resnotes-explorer")
    expect(explorers).to_have_count(2)
    expect(page.locator(".jp-OutputArea-output img:visible")).to_have_count(2)  # theirs, and not the saved ones
    assert explorers.evaluate_all(FITS)
    tops = explorers.locator("select:visible").evaluate_all("all => all.map(each => each.getBoundingClientRect().top)")
    assert len(set(tops)) == 3  # of networks, and two rows of the scene's controls
    page.evaluate(axe)
    for theme in ("Dark", "Light"):  # the latter for the next test: the server remembers it
        change_theme(page, f"JupyterLab {theme}")
        assert page.evaluate(BARRIERS.replace("run(", "run('.resnotes-explorer', ")) == []


@pytest.fixture(scope="module")
def executed(browser: Browser, shared: Path) -> Path:
    """The folder of a run of two notebooks, with reports in both languages."""
    out = shared / "run"
    with lock(out.with_suffix(".lock")):
        if not out.exists():
            resnotes_command(["run", "00", "01", "--out", out])
            for lang in ("en", "zh"):
                resnotes_command(["report", "--lang", lang, "--results", out, "--out", out / lang])
    return out


def resnotes_command(arguments: list[str | Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "resnotes", *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, which finds what keeps people out of a page."""
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("found no npm, which brings axe-core; on Debian, `apt-get install npm` brings it")
    command = ["npm", "pack", "--silent", "axe-core@4"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        pytest.skip(f"npm brought no axe-core: {done.stdout}")
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        file = package.extractfile("package/axe.min.js")
        assert file is not None
        return file.read().decode()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_from_disk(name: str, executed: Path, page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((executed / name).as_uri())
    page.wait_for_load_state("networkidle")
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []

    images = page.locator("img")
    assert images.count() >= (2 if "report" in name else 5)  # a report shows the headlines
    page.evaluate(UNFOLD)
    # Also those that are loaded once they are looked at; it fails where there is no picture.
    images.evaluate_all("images => Promise.all(images.map(image => (image.loading = 'eager', image.decode())))")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.locator(".cards, .cards td").evaluate_all(FITS)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(FAINT.replace(".jp-OutputArea-output *", "main *")) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_keeps_nobody_out(name: str, scheme: Any, executed: Path, page: Page, axe: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto((executed / name).as_uri())
    page.evaluate(UNFOLD)
    page.evaluate(axe)
    assert page.evaluate(BARRIERS) == []


def test_the_index_is_searched_in_two_languages(executed: Path, page: Page) -> None:
    page.goto((executed / "index.html").as_uri())
    rows, shown = page.locator("tr[data-strongest]"), page.locator("tr[data-strongest]:visible")
    expect(shown).to_have_count(0)  # all are folded
    page.locator("[value='false']").check()
    page.locator("[value='published']").check()
    expect(page.locator("output")).to_have_text(re.compile(rf"^[1-9]\d* / {rows.count()}$"))
    assert set(shown.evaluate_all("rows => rows.map(row => row.dataset.published)")) == {"false"}
    page.get_by_role("searchbox").fill("degradation no-such-word")
    expect(shown).to_have_count(0)
    assert page.locator("span[lang='zh-CN']:visible").count() == 0
    page.get_by_role("button", name="中文").click()
    assert page.locator("span[lang='en']:visible").count() == 0
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("用测量检验残差网络", use_inner_text=True)


def test_lesions_are_tried_without_a_kernel(tmp_path: Path, page: Page, axe: str) -> None:
    subject = Subject(models.build("resnet-14", in_channels=1, width=2), datasets.load("digits"))
    html = f"<html lang='en'><title>Lesions</title><main><h1>Lesions</h1>{tried('a net', subject)}</main></html>"
    (tmp_path / "page.html").write_text(html)
    page.goto((tmp_path / "page.html").as_uri())
    said, block = page.locator("output"), partial(page.get_by_role, "button", exact=True)
    for number, text in (("4", "block 4 deleted: "), ("3", "blocks 4 and 3 deleted: "), ("4", "block 3 deleted: ")):
        block(name=number).click()
        expect(said).to_contain_text(text)
        expect(block(name="3")).to_have_attribute("aria-pressed", str("3" in text).lower())
    page.get_by_label("swap").check()
    expect(said).to_contain_text("choose 2 of the blocks")
    for number in "01":
        block(name=number).click()
    expect(said).to_have_text(re.compile("^blocks 0 and 1 in each other's place: error .* of 100 predictions changed$"))
    block(name="5").click()
    expect(said).to_contain_text("cannot change places")
    page.evaluate(axe)
    assert page.evaluate(BARRIERS) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_for_keyboards_and_screen_readers(name: str, executed: Path, page: Page) -> None:
    page.goto((executed / name).as_uri())
    page.evaluate(UNFOLD)
    alternatives = page.locator("img").evaluate_all("images => images.map(image => image.alt)")
    assert all(len(text) > 10 for text in alternatives)
    # Everything that can be clicked, and every table that may have to be scrolled, is reached by the tab key.
    targets = page.locator("a[href], [tabindex='0'], summary, button, [type='search'], input:checked").count()
    reached = set()
    for _ in range(targets):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("Array.from(document.querySelectorAll('*')).indexOf(document.activeElement)"))
    assert len(reached) == targets
