"""The page for trying a package, in a real browser: it shows what ``predict`` returns.

Screenshots go to the folder that ``SCREENSHOTS`` names, or to pytest's temporary folder.
"""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from huggingface_hub import ModelCard, SpaceCard
from hypothesis import given, settings, strategies as st
from playwright.sync_api import Browser, Locator, Page, Request, expect, sync_playwright
from typer.testing import CliRunner

from hub_release.cli import app
from hub_release.demo.page import app as page_app, files as page_files, results as page_results
from hub_release.demo.serve import space_files
from hub_release.package import ReleaseError
from hub_release.shipped.bundle import bundle
from modeling.infer import EmotionClassifier
from tests.conftest import ROOT, add_to_hub_cache

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
TEXT = "sunny cake, and a slammed door 😀"
INJECTION = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>${window.hacked=1}{{7*7}}'
FEAR = ["fear", "test", "per_label"]
HOSTILE_CARD = """
![one](ELSEWHERE/one.png) ![two]( ELSEWHERE/two.png "title" ) ![three][ref] ![[four](ELSEWHERE/four.png)
<img src="ELSEWHERE/five.png" onerror="window.hacked=1"><iframe src="ELSEWHERE/six"></iframe>
<div style="background: url(ELSEWHERE/seven.png)">seven</div><style>@import "ELSEWHERE/eight.css";</style>
<video src="ELSEWHERE/nine" poster="ELSEWHERE/ten.png"></video><link rel="stylesheet" href="ELSEWHERE/eleven">

[ref]: ELSEWHERE/three.png
"""
RECORD_CONNECTIONS = """
import sys
def record(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open({path!r}, "a") as file: print(event, arguments[-1] if event == "socket.connect" else arguments[0], file=file)
sys.addaudithook(record)
"""
LINES = ["sunny cake", 'says "hello", and goes', "=1+1", "δοκιμή テスト 😀", INJECTION, "dark; cellar"]


def wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> str:
    for _ in range(1_800):  # two servers on a busy machine
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return url
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {url}: {log.read_text()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[SimpleNamespace]:
    """Another host, which remembers what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the base class asks for this name
            asked.append(self.path)
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(address=f"http://localhost:{server.server_port}", asked=asked)
        server.shutdown()


@pytest.fixture(scope="module")
def folder(package: Path, elsewhere: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, with one unreliable label, a hostile card, and thresholds close to this text's probabilities."""
    folder = shutil.copytree(package, tmp_path_factory.mktemp("demo") / "tiny-emotions")
    config = json.loads((folder / "config.json").read_text())
    joy, anger, fear = EmotionClassifier(folder).predict_proba([TEXT])[0].tolist()
    config["thresholds"] = {"joy": joy - 0.02, "anger": anger + 0.02, "fear": fear - 0.01}
    config["unreliable_labels"] = ["fear"]
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "README.md").open("a", encoding="utf-8") as file:
        file.write(HOSTILE_CARD.replace("ELSEWHERE", elsewhere.address))
    return folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> EmotionClassifier:
    return EmotionClassifier(folder)


@pytest.fixture(scope="module")
def servers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """``hub_release demo`` and the Space, each in its own process."""
    base = tmp_path_factory.mktemp("servers")
    for name, content in space_files(folder, "you/tiny-emotions").items():
        (base / "space").mkdir(exist_ok=True)
        (base / "space" / name).write_bytes(content)
    add_to_hub_cache("you/tiny-emotions", folder)
    asked = base / "asked.txt"
    asked.touch()
    alone = (
        RECORD_CONNECTIONS.format(path=str(asked)) + "import sys, runpy\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('modeling', 'training', 'hub_release'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "runpy.run_path(sys.argv[1] + '/app.py', run_name='__main__')\n"
    )
    ports = free_port(), free_port()
    demo = RECORD_CONNECTIONS.format(path=str(asked)) + "from hub_release.cli import app\napp()"
    commands = (
        [sys.executable, "-c", demo, "demo", str(folder), "--port", str(ports[0])],
        [sys.executable, "-I", "-c", alone, str(base / "space")],
    )
    processes, logs = [], [base / "demo.log", base / "space.log"]
    try:
        for command, where, log in zip(commands, (ROOT, base), logs, strict=True):
            with log.open("wb") as file:
                own = {"GRADIO_SERVER_PORT": str(ports[1]), "GRADIO_TEMP_DIR": str(base / "uploads")}
                environment = {**os.environ, **own}
                processes.append(subprocess.Popen(command, cwd=where, env=environment, stdout=file, stderr=file))
        urls = [
            wait_for(p, f"http://127.0.0.1:{port}", log) for p, port, log in zip(processes, ports, logs, strict=True)
        ]
        yield SimpleNamespace(demo=urls[0], space=urls[1], files=base / "space", asked=asked)
    finally:
        for process in processes:
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        reason = "there is no chromium; remedy: apt-get install --no-install-recommends chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(params=[(1280, "light")], ids=lambda param: f"{param[0]}-{param[1]}")
def page(request: pytest.FixtureRequest, browser: Browser, servers: SimpleNamespace) -> Iterator[Page]:
    """A fresh visitor. In every test the page sends no request to another host and has no errors."""
    width, scheme = request.param
    phone = width < 600
    context = browser.new_context(
        viewport={"width": width, "height": 844 if phone else 900},
        color_scheme=scheme,
        device_scale_factor=2 if phone else 1,
        is_mobile=phone,
        has_touch=phone,
    )
    context.set_default_timeout(15_000)
    page = context.new_page()
    requests: list[Request] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(servers.demo)
    expect(one_text(page)).to_be_visible()
    yield page
    asked = [request.url for request in requests if request.failure != "csp"]  # those never leave the browser
    assert len(asked) > 10
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert not errors
    # Texts are never markup: INJECTION would have set a mark.
    assert page.evaluate("window.hacked") is None and page.locator("#table :is(img, script)").count() == 0
    context.close()


def one_text(page: Page) -> Locator:
    return page.get_by_role("textbox", name=re.compile("^Text "))


def classify(page: Page, text: str) -> None:
    one_text(page).fill(text)
    page.get_by_role("button", name="Classify", exact=True).click()


def bars(page: Page) -> dict[str, float]:
    """Label and probability of each bar, from top to bottom."""
    rows = page.locator("#bars tbody tr")
    expect(rows).to_have_count(3)
    names = rows.evaluate_all("rows => rows.map(row => row.dataset.label)")
    figures = rows.evaluate_all("rows => rows.map(row => row.querySelector('.figure').innerText)")
    return {name: float(figure.strip("✓ ")) for name, figure in zip(names, figures, strict=True)}


def predicted(where: Locator) -> set[str]:
    return set(where.locator(".chip b").all_inner_texts())


def paste(page: Page, lines: list[str]) -> None:
    page.get_by_role("tab", name="Many texts").click()
    # One event, as for a paste: with one per line, gradio would measure the box after each line.
    page.get_by_role("textbox", name=re.compile("^Texts, one per line")).evaluate(
        "(box, text) => { box.value = text; box.dispatchEvent(new Event('input', { bubbles: true })) }",
        "\n".join(lines),
    )
    page.get_by_role("button", name="Classify all lines").click()


def download(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as found:
        page.get_by_role("link", name="Download CSV").click()
    assert found.value.suggested_filename == "labels.csv"
    content = found.value.path().read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(content, newline="")))


def check_against_predict(
    rows: list[dict[str, str]], classifier: EmotionClassifier, texts: list[str], threshold: float | None = None
) -> None:
    assert [row["text"] for row in rows] == [page_results.to_cell(text) for text in texts]
    found = np.array([[float(row[label]) for label in classifier.labels] for row in rows])
    np.testing.assert_allclose(found, classifier.predict_proba(texts), atol=2e-6)
    wanted = [list(result) for result in classifier.predict(texts, threshold=threshold)]
    assert [row["predicted"].split("; ") if row["predicted"] else [] for row in rows] == wanted


def test_one_text_gives_what_predict_says(page: Page, classifier: EmotionClassifier, folder: Path, shots: Path) -> None:
    classify(page, TEXT)
    [everything] = classifier.predict([TEXT], threshold=0.0)
    [wanted] = classifier.predict([TEXT])
    assert set(wanted) == {"joy", "fear"}
    found = bars(page)
    assert list(found) == list(everything) and list(found.values()) == [round(p, 3) for p in everything.values()]
    assert predicted(page.locator("#bars .verdict")) == set(wanted)
    assert set(page.locator("#bars tr.predicted th").all_inner_texts()) == {"joy", "fear†"}
    for label in everything:
        row = page.locator(f'#bars tr[data-label="{label}"]')
        track, tick, fill = (row.locator(f".{part}").bounding_box() for part in ("track", "tick", "fill"))
        assert track and tick and fill
        assert fill["width"] / track["width"] == pytest.approx(everything[label], abs=0.01)
        middle = (tick["x"] + tick["width"] / 2 - track["x"]) / track["width"]
        assert middle == pytest.approx(classifier.config.thresholds[label], abs=0.01)
        verdict = "predicted" if label in wanted else "not predicted"
        said = f"{everything[label]:.3f}, threshold {classifier.config.thresholds[label]:.3f}, {verdict}"
        expect(row.get_by_role("img")).to_have_accessible_name(said)
    page.screenshot(path=shots / "one-text-1280.png", full_page=True)
    colors = page.locator("#bars .fill").evaluate_all("bars => bars.map(bar => getComputedStyle(bar).background)")
    assert len(set(colors)) == 3  # predicted, not predicted, predicted but unreliable
    assert page.locator("#bars tr.unreliable").evaluate_all("rows => rows.map(r => r.dataset.label)") == ["fear"]
    page.get_by_text("1 of 3 labels is unreliable").click()
    with (folder / "per_label.csv").open(newline="") as file:
        [row] = [r for r in csv.DictReader(file) if [r["label"], r["split"], r["thresholds"]] == FEAR]
    expect(page.locator("#bars li")).to_contain_text(f"fear {row['support']} test rows, F1 {float(row['f1']):.2f}")


def test_the_words_that_speak_for_a_label(page: Page, classifier: EmotionClassifier, shots: Path) -> None:
    area, label = page.get_by_role("button", name="Color the words"), page.get_by_label("Why this label?")
    words = page.locator("#words mark[title]")
    expect(area).to_be_hidden()
    classify(page, f"{TEXT}\n{INJECTION}")
    likeliest = next(iter(bars(page)))
    expect(label).to_have_value(likeliest)
    area.click()
    for name in (likeliest, next(name for name in classifier.labels if name != likeliest)):
        if name != likeliest:
            label.click()
            page.get_by_role("option", name=name, exact=True).click()
        found = classifier.explain(f"{TEXT}\n{INJECTION}", name)
        expect(words).to_have_text([word.text for word in found.words])
        expect(page.locator("#words")).to_contain_text(f"words speak for {name}")
        expect(page.locator("#words")).to_contain_text(found.meaning)
        assert page.locator("#words .words").evaluate("part => part.textContent") == found.text
        said = words.evaluate_all("all => all.map(word => Number(word.title))")
        np.testing.assert_allclose(said, [word.contribution for word in found.words], atol=2e-3)
        sides = words.evaluate_all("all => all.map(word => word.className)")
        assert sides == ["for" if word.contribution > 0 else "against" for word in found.words]
        colors = words.evaluate_all("all => all.map(word => getComputedStyle(word).backgroundColor)")
        strongest = max(found.words, key=lambda word: abs(word.contribution))
        assert colors.count(colors[found.words.index(strongest)]) < len(found.words) / 2
    page.get_by_text("Contributions in logits").click()
    expect(page.locator("#words tr")).to_have_count(len(found.words))
    page.screenshot(path=shots / "words-1280.png", full_page=True)
    assert page.locator("#words :is(img, script)").count() == 0
    classify(page, "cake " * 201)
    expect(words).to_have_count(0)
    expect(page.locator("#bars")).to_be_visible()
    area.click()
    expect(page.locator("#words")).to_contain_text("201 words, more than the 200 that can be explained. Remedy: ")
    classify(page, " ")
    expect(area).to_be_hidden()


def test_the_slider_sets_one_threshold_for_all(page: Page, classifier: EmotionClassifier) -> None:
    classify(page, TEXT)
    bars(page)
    slider = page.get_by_role("slider", name="Threshold for all labels")
    expect(slider).to_be_hidden()
    page.get_by_label("One for all labels").check()
    probabilities = sorted(classifier.predict_proba([TEXT])[0].tolist())
    between = [round((low + high) / 2, 2) for low, high in itertools.pairwise(probabilities)]
    seen = set()
    for threshold in (0.0, *between, 1.0):
        slider.fill(str(threshold))
        expect(page.locator("#bars .track").first).to_have_attribute(
            "aria-label", re.compile(f"threshold {threshold:.3f}")
        )
        wanted = set(classifier.predict([TEXT], threshold=threshold)[0])
        assert predicted(page.locator("#bars .verdict")) == wanted
        seen.add(frozenset(wanted))
    assert len(seen) >= 3
    expect(page.locator("#bars .verdict")).to_have_text("No label reaches its threshold.")
    page.get_by_label("One for each label, tuned").check()
    expect(page.locator("#bars .chip")).to_have_count(2)


def test_many_lines_as_a_table_and_as_csv(page: Page, classifier: EmotionClassifier, shots: Path) -> None:
    paste(page, [*LINES, "", "  "])
    rows = page.locator("#table tbody tr")
    expect(rows).to_have_count(len(LINES))
    assert page.locator("#table tbody td:nth-child(2)").all_inner_texts() == LINES
    for row, result in zip(rows.all(), classifier.predict(LINES), strict=True):
        assert predicted(row) == set(result)
    check_against_predict(download(page), classifier, LINES)
    page.screenshot(path=shots / "many-texts-1280.png", full_page=True)
    page.get_by_label("One for all labels").locator("visible=true").check()
    page.get_by_role("slider", name="Threshold for all labels").locator("visible=true").fill("0.3")
    expect(page.get_by_role("spinbutton").locator("visible=true")).to_have_value("0.3")
    wanted = [";".join(result) for result in classifier.predict(LINES, threshold=0.3)]
    expect(rows).to_have_text([re.compile(f"^{number}") for number in range(1, len(LINES) + 1)])
    page.wait_for_function(
        "wanted => [...document.querySelectorAll('#table tbody tr')].every((row, i) => "
        "[...row.querySelectorAll('.chip b')].map(b => b.innerText).join(';') === wanted[i])",
        arg=wanted,
    )
    check_against_predict(download(page), classifier, LINES, threshold=0.3)


def test_a_file_comes_back_as_csv_and_that_can_be_given_again(
    page: Page, classifier: EmotionClassifier, tmp_path: Path
) -> None:
    texts = ["two\nlines, one text", *LINES]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    page.get_by_role("tab", name="Many texts").click()
    upload = page.locator('input[type="file"]').locator("visible=true").or_(page.locator('input[type="file"]'))
    upload.first.set_input_files(tmp_path / "texts.jsonl")
    expect(page.locator("#table")).to_contain_text(f"{len(texts)} texts in texts.jsonl.")
    first = download(page)
    check_against_predict(first, classifier, texts)
    page.reload()
    page.get_by_role("tab", name="Many texts").click()
    with (tmp_path / "again.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(first[0]))
        writer.writeheader()
        writer.writerows(first)
    upload.first.set_input_files(tmp_path / "again.csv")
    expect(page.locator("#table")).to_contain_text("texts in again.csv.")
    assert download(page) == first


def test_keyboard_only(page: Page) -> None:
    focused = page.locator(":focus")
    expect(focused).to_have_accessible_name(re.compile("Text"))
    page.keyboard.type("sunny")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("cake")
    page.keyboard.press("Enter")
    expect(one_text(page)).to_have_value("sunny\ncake")
    bars(page)
    page.keyboard.press("Tab")
    expect(focused).to_have_text("Classify")
    page.keyboard.press("Tab")
    expect(focused).to_have_attribute("type", "radio")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    slider = page.get_by_role("slider", name="Threshold for all labels")
    expect(slider).to_be_visible()
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#bars .chip")).to_have_count(3)
    page.get_by_role("tab", name="Many texts").focus()
    page.keyboard.press("Enter")
    page.get_by_role("textbox", name=re.compile("^Texts, one per line")).focus()
    page.keyboard.insert_text("sunny\ncake")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#table tbody tr")).to_have_count(2)
    unnamed = "all => all.filter(e => e.checkVisibility() && !(e.labels?.length || e.ariaLabel || e.innerText.trim()))"
    assert page.locator("input, textarea, button, a").evaluate_all(unnamed + ".map(e => e.outerHTML)") == []


@pytest.mark.parametrize("page", [(390, "light"), (390, "dark")], ids=["390", "390-dark"], indirect=True)
def test_nothing_is_wider_than_the_screen(page: Page, shots: Path, request: pytest.FixtureRequest) -> None:
    def fits(name: str) -> None:
        page.screenshot(path=shots / f"{name}-{request.node.callspec.id}.png", full_page=True)
        width = page.viewport_size["width"] if page.viewport_size else 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    fits("start")
    classify(page, TEXT)
    bars(page)
    page.get_by_role("button", name="Color the words").click()
    expect(page.locator("#words mark[title]").first).to_be_visible()
    narrowest = page.locator("#bars .track").first.bounding_box()
    assert narrowest and narrowest["width"] > 150
    fits("one-text")
    paste(page, [*LINES, "long" * 100, "a text of many words " * 30])
    expect(page.locator("#table tbody tr")).to_have_count(len(LINES) + 2)
    fits("many-texts")
    page.get_by_role("tab", name="Model card").click()
    expect(page.locator("#card h1")).to_be_visible()
    fits("card")


def test_examples_and_odd_input(page: Page, folder: Path, classifier: EmotionClassifier, tmp_path: Path) -> None:
    [first, _] = page_files.read_examples(folder)
    page.get_by_role("button", name=re.compile(f"^{re.escape(first[:40])}")).click()  # gradio cuts long ones
    expect(one_text(page)).to_have_value(first)
    assert bars(page) == {label: round(p, 3) for label, p in classifier.predict([first], threshold=0.0)[0].items()}
    classify(page, "   ")
    expect(page.locator("#bars")).to_contain_text("There is no text yet")
    classify(page, INJECTION)
    bars(page)
    paste(page, ["", " "])
    expect(page.locator("#table")).to_contain_text("There are no texts in the box.")
    paste(page, ["x"] * 1_001)
    expect(page.locator("#table")).to_contain_text("1,001 texts are more than this page takes at once (1,000)")
    started = time.monotonic()
    paste(page, ["sunny " * 350_000])
    expect(page.locator("#table")).to_contain_text(
        "The text has 2,100,000 characters, more than this page takes in one"
    )
    paste(page, ["sunny " * 400] * 900)
    expect(page.locator("#table")).to_contain_text("2,160,000 characters are more than this page takes at once")
    page.get_by_role("tab", name="One text").click()
    one_text(page).evaluate(
        "box => { box.value = 'sunny '.repeat(350000); box.dispatchEvent(new Event('input', { bubbles: true })) }"
    )
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.locator("#bars")).to_contain_text("The text has 2,100,000 characters, more than this page takes in one")
    assert time.monotonic() - started < 30
    page.get_by_role("tab", name="Many texts").click()
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\x00")
    page.locator('input[type="file"]').first.set_input_files(tmp_path / "broken.txt")
    expect(page.locator("#table")).to_contain_text("broken.txt, line 1: the file is UTF-16. Remedy: ")


def test_a_hostile_card_loads_nothing_from_elsewhere(
    page: Page, servers: SimpleNamespace, elsewhere: SimpleNamespace
) -> None:
    """The fixture of the page looks at every request of the browser; this looks at those of the servers too."""
    page.get_by_role("tab", name="Model card").click()
    expect(page.locator("#card h1")).to_be_visible()
    expect(page.locator("#card")).to_contain_text("seven")
    page.wait_for_timeout(1_000)
    shown = page.locator("#card img").evaluate_all("all => all.map(img => [img.src.slice(0, 5), img.naturalWidth > 0])")
    assert shown.count(["data:", True]) == 6, "the package's own pictures"
    assert all(drawn is (source == "data:") for source, drawn in shown)
    policy = page.request.get(servers.demo).headers["content-security-policy"]
    assert policy == page.request.get(servers.space).headers["content-security-policy"] and "'self'" in policy
    assert elsewhere.asked == []
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{elsewhere.address}/alive", timeout=5)
    assert elsewhere.asked == ["/alive"]
    hosts = set(re.findall(r"[\w:.-]+\.\w+|localhost", servers.asked.read_text().replace("socket.", "")))
    assert hosts <= {"127.0.0.1", "localhost", "0.0.0.0"}, hosts


def test_the_space_runs_from_its_files_only(
    browser: Browser, servers: SimpleNamespace, classifier: EmotionClassifier
) -> None:
    page = browser.new_page()
    page.goto(servers.space)
    expect(page.get_by_text("you/tiny-emotions", exact=True)).to_be_visible()
    classify(page, TEXT)
    assert bars(page) == {label: round(p, 3) for label, p in classifier.predict([TEXT], threshold=0.0)[0].items()}
    page.close()


def test_files_of_the_space(servers: SimpleNamespace, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in servers.files.iterdir() if path.is_file()}
    assert set(files) == {"README.md", "app.py", "app.css", "infer.py", "requirements.txt"}
    assert files["app.py"].decode() == bundle(("app",), "hub_release.demo.page")
    assert files["infer.py"] == (folder / "infer.py").read_bytes()
    metadata = SpaceCard(files["README.md"].decode()).data
    assert (metadata.sdk, metadata.app_file, metadata.models) == ("gradio", "app.py", ["you/tiny-emotions"])
    assert metadata.license == ModelCard.load(folder / "README.md").data.license
    assert re.fullmatch(r"\d+\.\d+\.\d+", str(metadata.sdk_version))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(files["app.py"]))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported - set(sys.stdlib_module_names) == {"gradio", "huggingface_hub", "infer", "numpy"}


def test_a_space_needs_the_whole_package(folder: Path, tmp_path: Path) -> None:
    half = shutil.copytree(folder, tmp_path / "half")
    (half / "infer.py").unlink()
    with pytest.raises(ReleaseError, match=r"infer\.py is missing\. Remedy: run hub_release export"):
        space_files(half, "you/half")


def test_demo_says_what_is_wrong(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["demo", *arguments])
        assert result.exit_code == 2, result.output
        return result.output

    assert "is not a package: config.json is missing" in run(str(tmp_path))
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    assert "cannot be loaded" in run(str(broken))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "Remedy: give another --port" in run(str(folder), "--port", str(taken.getsockname()[1]))
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hub_release.demo.page.app")
    monkeypatch.delattr("hub_release.demo.page.app")
    assert "pip install 'goemotions-mistral[demo]'" in run(str(folder))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(name for name, _ in attrs)}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_of_a_package_are_never_markup() -> None:
    label = '"><img src=x onerror=alert(1)>'
    rows = [page_results.LabelResult(label, 0.9, 0.5, True), page_results.LabelResult("'<b>", 0.1, 0.5, False)]
    for html in (
        page_results.render_bars(rows, {label: "<i>why</i>"}),
        page_results.render_table([label, "'<b>"], [label], [rows], "in <u>.csv"),
        page_results.message("<s>"),
    ):
        parser = Tags()
        parser.feed(html)
        assert not parser.seen & {"img", "onerror", "u", "s"} and "<" in parser.text


def test_the_colors_of_words_can_be_read_on() -> None:
    """Text on the strongest color has a contrast of 4.5, in both modes; the text's color is gradio's own."""
    css = Path(page_app.__file__).with_suffix(".css").read_text()
    (most,) = re.findall(r"calc\(var\(--share\) \* (\d+)%\)", css)
    for mode, background, text in ((0, "#ffffff", "#1e293b"), (1, "#0b0f19", "#f1f5f9")):
        colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css.split("}")[mode]))
        for side in ("strong", "mark"):
            mixed = [
                round(
                    (int(colors[side][i : i + 2], 16) * int(most) + int(background[i : i + 2], 16) * (100 - int(most)))
                    / 100
                )
                for i in (1, 3, 5)
            ]
            assert contrast("#" + bytes(mixed).hex(), text) >= 4.5, (mode, side)


def test_a_package_of_an_earlier_version_shows_no_words(folder: Path, classifier: EmotionClassifier) -> None:
    """Its classifier explains nothing."""
    earlier = SimpleNamespace(
        config=classifier.config, labels=classifier.labels, predict_proba=classifier.predict_proba
    )
    shown = {}
    for name, loaded in (("earlier", earlier), ("now", classifier)):
        page = page_app.build_page(loaded, folder, "name")
        function = next(f for f in page.fns.values() if f.name == "classify")
        _, _, area, _, _ = function.fn(TEXT, page_app.OWN, 0.5)
        shown[name] = area.visible if hasattr(area, "visible") else area["visible"]
    assert shown == {"earlier": False, "now": True}


def test_a_card_is_read_in_linear_time_and_bounded_memory(tmp_path: Path) -> None:
    """The seconds stand for the kind: the pattern took 10 seconds for 100 kB, and 200,000 pictures took 6 GiB."""
    (tmp_path / "own.png").write_bytes(b"\x89PNG" + bytes(30_000))
    for unit in ("![", "![a](", "![a](own.png", "![own](own.png)", "---\n", "[![]("):
        (tmp_path / "README.md").write_text("---\na: 1\n---\n" + unit * (1_000_000 // len(unit)))
        started = time.process_time()
        assert len(page_files.read_card(tmp_path)) < 1_100_000
        assert time.process_time() - started < 2, unit


def test_pictures_of_a_card_have_a_limit_of_bytes(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(20)]
    for name in names:
        (tmp_path / name).write_bytes(bytes(1_000_000))
    (tmp_path / "README.md").write_text("\n".join(f"![{name}]({name})" for name in names))
    card = page_files.read_card(tmp_path)
    assert 5 < card.count("](data:") < 12 and all(name in card for name in names)


def test_what_takes_too_long_is_shown_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        config, labels = None, ("a",)

        def predict_proba(self, texts: list[str]) -> np.ndarray:
            clock[0] += 50
            return np.array([[len(text)] for text in texts], dtype=np.float32)

    clock = [0.0]
    monkeypatch.setattr(page_app.time, "monotonic", lambda: clock[0])
    texts = ["x" * length for length in range(9_000, 9_020)]
    found = page_app.classify_in_time(Slow(), texts)
    assert found == [[length] for length in range(9_000, 9_006)], "three portions of two texts, 50 seconds each"
    assert page_app.classify_in_time(Slow(), ["a", "bb"]) == [[1], [2]]


starts = st.sampled_from(["=", "+", "-", "@", "\t", "\r", "＝", "'", " ", "a", "\n"])


@given(text=st.text(), first=starts, label=st.text(min_size=1))
def test_no_cell_of_a_download_is_a_formula(text: str, first: str, label: str) -> None:
    rows = [[page_results.LabelResult(first + label, 0.75, 0.5, False)]]
    written = page_results.write_csv([first + label], [first + text], rows).decode("utf-8-sig")
    for row in csv.reader(io.StringIO(written, newline="")):
        for cell in row:
            assert not cell.startswith(tuple("=+-@\t\r＝"))
            texts = (value.encode("utf-8", "replace").decode() for value in (first + text, first + label))
            assert cell in ("text", "predicted", "0.750000") or page_results.from_cell(cell) in texts


texts = st.lists(st.builds(str.__add__, starts, st.text(min_size=1)).filter(str.strip), min_size=1)


@settings(max_examples=40)
@given(texts=texts)
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    path.write_bytes(
        page_results.write_csv(["joy"], texts, [[page_results.LabelResult("joy", 0.25, 0.5, False)]] * len(texts))
    )
    assert page_files.read_upload(path) == texts


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.csv", 'id,Text\r\n1,one\r\n2,"two, and\nmore"\r\n3,\r\n', ["one", "two, and\nmore", ""]),
        ("a.csv", 'Text;label\none, really;joy\n"two; too";\n', ["one, really", "two; too"]),
        ("a.csv", "label\ttext\njoy\tone, really\n", ["one, really"]),
        ("a.TSV", 'label\ttext\njoy\t"one"\n', ["one"]),
        ("a.csv", "text,label\none, really,joy\n", "a.csv, line 2: 3 cells for the 2 columns 'text', 'label'"),
        ("a.csv", "text,label\none\n", "a.csv, line 2: 1 cells"),
        ("a.csv", "text\n" + "x" * 140_000, ["x" * 140_000]),
        ("a.csv", 'one\n"two, too"\n', "a.csv, line 2 has no column 'text', only 'one'"),
        ("a.csv", "", []),
        ("a.txt", "\ufeffone\r\ntwo, too\n", ["one", "two, too"]),
        ("a.jsonl", '{"text": "one"}\n\n"two"\n', ["one", "two"]),
        ("a.json", '[{"text": "one"}, "two"]', ["one", "two"]),
        ("a.csv", "id,body\n1,one\n", "has no column 'text', only 'id', 'body'"),
        ("a.csv", 'text\n"open\n', "a.csv, line 2, column 1: unexpected end of data"),
        ("a.jsonl", '{"text": "one"}\n{"text": 2}\n', "a.jsonl, line 2 is not a text: 2"),
        ("a.jsonl", "[1", "a.jsonl, line 1: '[1' is not JSON"),
        (
            "a.jsonl",
            '[\n"one"\n]\n',
            "a.jsonl, line 1: '[', so a value goes over several lines. Remedy: write one object",
        ),
        ("a.json", '{\n "text": "one"\n}\n', "a.json, line 1: '{', so a value goes over several lines. Remedy: "),
        ("a.csv", "text,\none\n", "a.csv, line 2: 1 cells for the 2 columns 'text', ''"),
        ("a.csv.gz", "text\none\n", "a.csv.gz is none of .csv, .tsv"),
    ],
)
def test_files_that_can_be_given(tmp_path: Path, name: str, content: str, wanted: list[str] | str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    if isinstance(wanted, list):
        assert page_files.read_upload(tmp_path / name) == wanted
    else:
        with pytest.raises(page_files.OddInputError, match=re.escape(wanted)):
            page_files.read_upload(tmp_path / name)


def test_the_card_carries_its_own_pictures_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    for picture in (tmp_path / "package" / "own.png", tmp_path / "foreign.png"):
        picture.write_bytes(b"\x89PNG")
    (tmp_path / "package" / "README.md").write_text(
        "---\nlicense: mit\n---\n# Title\n![own](own.png) ![foreign](../foreign.png)\n"
    )
    card = page_files.read_card(tmp_path / "package")
    assert card == "# Title\n![own](data:image/png;base64,iVBORw==) foreign\n"


def test_the_card_of_a_snapshot_carries_its_pictures(tmp_path: Path) -> None:
    """In the Hub's cache, and so in a Space, every file is a link to a blob."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "own.png").write_bytes(b"\x89PNG")
    (tmp_path / "package" / "README.md").write_text("![own](own.png)")
    snapshot = add_to_hub_cache("you/pictured", tmp_path / "package", tmp_path / "cache")
    assert page_files.read_card(snapshot) == "![own](data:image/png;base64,iVBORw==)"


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colors, from 1 to 21 (WCAG 2.1)."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("mode", "background"), [(0, "#ffffff"), (1, "#0b0f19")])
def test_colors_can_be_told_apart(mode: int, background: str) -> None:
    css = Path(page_app.__file__).with_suffix(".css").read_text()
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css.split("}")[mode]))
    assert set(colors) == {"strong", "weak", "doubt", "doubt-weak", "track", "mark", "quiet"}
    for name in ("strong", "doubt", "mark", "quiet"):
        assert contrast(colors[name], background) >= 4.5, name
    for name in ("strong", "weak", "doubt", "doubt-weak", "mark"):
        assert contrast(colors[name], colors["track"]) >= 3, name
    assert contrast(colors["strong"], colors["weak"]) >= 2
