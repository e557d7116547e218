"""Pages as a reader meets them: in a browser, on a desk and on a phone, light and dark, by mouse and by keyboard."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bstune.tests.report import told as studies
from bstune.tuner.core.diagnosis import Finding
from bstune.tuner.report.charts.curves import curve_records
from bstune.tuner.report.charts.landscape import landscape_records
from bstune.tuner.report.comparison import comparison
from bstune.tuner.report.page import page
from bstune.tuner.report.page_told import Told

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

DESK, PHONE = (1280, 800), (390, 844)
MAKERS = {
    "demo": studies.demo,
    "interrupted": lambda: studies.after(20),
    "one trial": lambda: studies.after(1),
    "failed": studies.failed,
    "empty": studies.empty,
    "large": lambda: studies.large(10_000),
    "hostile": studies.hostile,
}


class Opened:
    """A page in the browser, with all that it complained of or asked for."""

    def __init__(self, browser: BrowserContext, path: Path, *, size: tuple[int, int], scheme: Any = "light") -> None:
        """Open a file and wait until its charts are drawn."""
        self.complaints: list[str] = []
        self.page: Page = browser.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.complaints.append(request.url))
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.emulate_media(color_scheme=scheme)
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
        self.complaints.remove(path.as_uri())

    def ask(self, script: str) -> Any:
        """Return what a script finds in the page."""
        return self.page.evaluate(script)


@dataclasses.dataclass(frozen=True)
class Written:
    """A page in its file."""

    told: Told
    path: Path
    seconds: float
    """Of this process, for writing it: others may keep the machine busy."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """What writes the page of a kind of study, each once."""
    folder = tmp_path_factory.mktemp("pages")
    made: dict[str, Written] = {}

    def write(kind: str) -> Written:
        if kind not in made:
            told = MAKERS[kind]()
            path = folder / f"{kind.replace(' ', '-')}.html"
            started_s = time.process_time()
            path.write_text(page(told))
            made[kind] = Written(told, path, time.process_time() - started_s)
        return made[kind]

    return write


@pytest.fixture(scope="module")
def demo(browser: BrowserContext, written: Callable[[str], Written]) -> Iterator[Opened]:
    """The page of the demo, for tests that change something in it; to draw its charts takes a second."""
    opened = Opened(browser, written("demo").path, size=DESK)
    yield opened
    opened.page.close()


@pytest.fixture
def anew(demo: Opened) -> Opened:
    """That page at its top, with nothing picked and the trials in order."""
    demo.page.set_viewport_size({"width": DESK[0], "height": DESK[1]})
    demo.page.keyboard.press("Escape")
    if demo.ask("document.querySelector('#trials th').getAttribute('aria-sort')") != "ascending":
        demo.page.locator("#trials th button").first.click()
    demo.ask("scrollTo(0, 0)")
    assert len(opacities(demo, "c-samples")) == 1
    return demo


@pytest.fixture(scope="module")
def look_at(browser: BrowserContext, written: Callable[[str], Written]) -> Iterator[Any]:
    """What opens the page of a kind of study once for all tests that change nothing in it."""
    opened: dict[tuple[Any, ...], Opened] = {}

    def look(kind: str, size: tuple[int, int] = DESK, scheme: str = "light") -> Opened:
        key = (kind, size, scheme)
        if key not in opened:
            opened[key] = Opened(browser, written(kind).path, size=size, scheme=scheme)
        return opened[key]

    yield look
    for each in opened.values():
        each.page.close()


@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_page_is_drawn_without_a_word_and_asks_for_nothing(look_at: Any, kind: str) -> None:
    """No error, no request, every chart drawn with marks in it, and nothing that a study holds runs."""
    opened = look_at(kind)

    marks = opened.ask(
        "[...document.querySelectorAll('.chart')].map("
        "c => [c.id, c.querySelectorAll('.role-mark path, .role-mark line').length])"
    )
    assert opened.complaints == []
    assert [name for name, n in marks if n == 0] == []
    assert opened.ask("document.documentElement.dataset.drawn") == str(len(marks))
    assert opened.ask("window.hacked") is None
    assert opened.ask("document.querySelectorAll('img, script[src], link').length") == 0


def test_the_demo_has_every_chart_and_each_trial_has_its_mark(look_at: Any, written: Any) -> None:
    """Dots of the landscape, curves and rows of the table are as many as the trials that they show."""
    told = written("demo").told
    opened = look_at("demo")

    names = set(opened.ask("[...document.querySelectorAll('.chart')].map(c => c.id)"))
    dots = opened.ask("document.querySelectorAll('#c-landscape .mark-symbol.role-mark path').length")
    lines = opened.ask("document.querySelectorAll('#c-samples .mark-line.role-mark path').length")
    assert names == {
        "c-limits",
        "c-landscape",
        "c-samples",
        "c-seconds",
        "c-frontier",
        "c-confirm",
        "c-memory",
        "c-speed",
        "c-reach-samples",
        "c-reach-step",
        "c-reach-seconds",
        "c-noise",
        "c-spending",
    }
    assert dots == len(landscape_records(told.records)) + 1  # The ring about the answer.
    assert lines == len(curve_records(told.records))
    assert opened.ask("document.querySelectorAll('#trials tbody tr').length") == len(told.records)


def test_every_chart_of_a_page_follows_the_schema(written: Any) -> None:
    """Much that is wrong would be drawn without a word, and what writes a page does not look."""
    from altair import Root

    text = written("demo").path.read_text()
    found = re.search(r'<script type="application/json" id="bstune-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None

    charts = json.loads(found[1])["charts"]
    assert len(charts) == 13
    for chart in charts:
        Root.validate(chart["spec"])


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")])
def test_the_answer_is_seen_without_scrolling(look_at: Any, written: Any, size: tuple[int, int], scheme: str) -> None:
    """What to train with, and the short answer to each question, at both sizes; nothing sticks out at the side."""
    told = written("demo").told
    opened = look_at("demo", size, scheme)

    assert told.result is not None
    best = told.result.recommendation
    assert f"batch {best.global_batch_size} and learning rate {best.learning_rate:.3g}" in opened.ask(
        "document.querySelector('h1').textContent"
    )
    bottoms = opened.ask(
        "[...document.querySelectorAll('h1, .badge, .parts strong')].map(e => e.getBoundingClientRect().bottom)"
    )
    assert len(bottoms) == 6
    assert max(bottoms) <= size[1]
    assert opened.ask("document.documentElement.scrollWidth") <= size[0]
    cells = "[...document.querySelectorAll('.findings td')].map(e => e.getBoundingClientRect().right)"
    assert max(opened.ask(cells)) <= size[0]  # On a phone a finding is a card, and nothing of it is cut.


def opacities(opened: Opened, chart: str) -> set[str]:
    """The opacities of the curves of a chart."""
    found = opened.ask(
        f"[...document.querySelectorAll('#{chart} .mark-line.role-mark path')].map(p => getComputedStyle(p).opacity)"
    )
    return set(found)


def test_a_trial_is_picked_by_mouse_and_by_keyboard(anew: Opened) -> None:
    """In a chart, the table or by its number: it then stands out everywhere, and Escape shows all again."""
    opened = anew
    page = opened.page

    page.locator("#c-landscape .mark-symbol.role-mark path").last.click(force=True)
    by_mouse = int(opened.ask("document.documentElement.dataset.picked"))
    assert by_mouse >= 0
    assert len(opacities(opened, "c-samples")) == len(opacities(opened, "c-seconds")) == 2
    assert opened.ask("document.querySelector('#trials tr.picked').dataset.trial") == str(by_mouse)

    page.keyboard.press("Escape")
    assert opened.ask("document.documentElement.dataset.picked") == "-1"

    page.locator("#trial").fill("7")
    page.keyboard.press("Enter")
    assert opened.ask("document.documentElement.dataset.picked") == "7"
    assert "trial 7:" in opened.ask("document.getElementById('picked').textContent")

    page.locator("#c-samples").focus()
    page.keyboard.press("ArrowRight")
    assert opened.ask("document.documentElement.dataset.picked") == "8"

    page.locator("#trials tbody button").nth(2).focus()
    page.keyboard.press("Enter")
    assert opened.ask("document.documentElement.dataset.picked") == "2"
    assert opened.ask("document.querySelector('#trials tr.picked button').getAttribute('aria-pressed')") == "true"
    assert opened.complaints == []


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_a_trial_that_is_picked_in_the_table_is_seen_in_a_chart(
    anew: Opened, written: Any, size: tuple[int, int]
) -> None:
    """The first chart that has it comes into sight, and the focus stays on its number."""
    number = str(curve_records(written("demo").told.records)[-1].number)
    opened = anew
    opened.page.set_viewport_size({"width": size[0], "height": size[1]})
    opened.page.locator(f"#trials tr[data-trial='{number}'] button").focus()
    opened.page.keyboard.press("Enter")

    assert opened.ask("document.documentElement.dataset.picked") == number
    specs = json.loads(opened.ask("document.getElementById('bstune-data').textContent"))["charts"]
    it = re.compile(rf'"trial": {number}\b')
    (first, *_) = [chart["id"] for chart in specs if chart["picks"] and it.search(json.dumps(chart))]
    top, bottom = opened.ask(
        f"(({{top, bottom}}) => [top, bottom])(document.getElementById('{first}').getBoundingClientRect())"
    )
    assert 0 <= top < bottom <= size[1]
    assert opened.ask("document.activeElement.textContent") == number


def test_a_table_that_is_cut_says_so(look_at: Any) -> None:
    """All trials are, on a desk too; the few rows of claims are shown in full, what does not hold first."""
    opened = look_at("demo")
    notes = dict(
        opened.ask(
            "[...document.querySelectorAll('.scroll')].map(e => [e.getAttribute('aria-label'), "
            "e.previousElementSibling.hidden ? '' : e.previousElementSibling.textContent])"
        )
    )
    assert notes == {
        "Table of claims": "",
        "Table of all trials": "Move the table sideways for more columns, and down for more rows.",
    }


def test_the_runs_of_the_answer_are_drawn_thicker_and_last(look_at: Any, written: Any) -> None:
    """Among others of its batch size its curve is told by that."""
    told = written("demo").told
    best = told.result.recommendation
    own = [
        record
        for record in curve_records(told.records)
        if (record.global_batch_size, record.learning_rate) == (best.global_batch_size, best.learning_rate)
    ]
    widths = look_at("demo").ask(
        "[...document.querySelectorAll('#c-samples .mark-line.role-mark path')]"
        ".map(p => Number(p.getAttribute('stroke-width')))"
    )

    assert widths == sorted(widths)
    assert sum(width > widths[0] for width in widths) == len(own) > 0


def test_loss_is_not_drawn_against_time_where_one_batch_size_was_run_to_the_end(written: Any) -> None:
    """A sentence says so in place of the chart, and no line is promised."""
    told = studies.demo()
    assert told.result is not None
    best = told.result.recommendation
    alone = dataclasses.replace(
        best,
        fastest=None,
        smallest_within_tolerance=None,
        lowest_loss=None,
        lowest_loss_at_equal_seconds=None,
        frontier=(),
        compared=(),
        alternatives=(),
    )
    text = page(dataclasses.replace(told, result=dataclasses.replace(told.result, recommendation=alone)))

    assert page(told) == written("demo").path.read_text()  # As it was when it was written before.
    assert 'id="c-frontier"' in written("demo").path.read_text()
    assert 'id="c-frontier"' not in text
    assert f"of all batch sizes, only {best.global_batch_size} was run to the end" in text
    assert "dashed line" not in text


def test_the_table_is_sorted_by_its_headings(anew: Opened) -> None:
    """Once up, twice down; a screen reader is told."""
    opened = anew
    columns = opened.ask("[...document.querySelectorAll('#trials th button')].map(b => b.firstChild.textContent)")
    loss = columns.index("loss")

    def shown() -> list[float]:
        cells = opened.ask(f"[...document.querySelectorAll('#trials tbody tr')].map(r => r.cells[{loss}].textContent)")
        return [float(cell) for cell in cells if cell]

    heading = opened.page.locator("#trials th button").nth(loss)
    heading.click()
    assert shown() == sorted(shown())
    assert opened.ask(f"document.querySelectorAll('#trials th')[{loss}].getAttribute('aria-sort')") == "ascending"
    heading.click()
    assert shown() == sorted(shown(), reverse=True)


@pytest.mark.parametrize(
    ("kind", "size", "scheme"), [("demo", DESK, "light"), ("demo", PHONE, "dark"), ("failed", DESK, "dark")]
)
def test_a_page_is_accessible(look_at: Any, kind: str, size: tuple[int, int], scheme: str) -> None:
    """Contrast, landmarks, headings, names and labels, as axe-core sees them."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(look_at(kind, size, scheme).page).response["violations"]

    assert [(each["id"], [node["html"][:200] for node in each["nodes"][:3]]) for each in found] == []


def test_a_page_of_ten_thousand_trials_is_soon_written_and_small(written: Any) -> None:
    """Under ten seconds and five megabytes; the demo's is under one and a half."""
    large = written("large")

    assert large.seconds < 10
    assert large.path.stat().st_size < 5e6
    assert written("demo").path.stat().st_size < 1.5e6


def test_what_a_study_holds_is_text(look_at: Any) -> None:
    """Markup in names, reasons, settings and versions is shown as it is, and ends no script of ours."""
    opened = look_at("hostile")

    assert studies.EVIL in opened.ask("document.querySelector('.top').textContent")
    assert studies.EVIL in opened.ask("document.querySelector('#trials').textContent")
    assert studies.EVIL in opened.ask("document.querySelector('.warnings').textContent")
    opened.page.locator("#c-landscape .mark-symbol.role-mark path").last.hover(force=True)
    assert opened.ask("window.hacked") is None
    assert opened.complaints == []


def test_two_searches_stand_side_by_side(browser: BrowserContext, tmp_path: Path) -> None:
    """Both answers in one table, and the landscapes on the same axes."""
    one, other = studies.demo(), studies.after(30)
    path = tmp_path / "two.html"
    path.write_text(comparison(one, dataclasses.replace(other, study="<b>other</b>")))
    opened = Opened(browser, path, size=DESK)

    try:
        assert opened.complaints == []
        assert "<b>other</b>" in opened.ask("document.querySelector('h1').textContent")
        assert opened.ask("document.querySelectorAll('.compare tbody tr').length") > 10
        specs = json.loads(opened.ask("document.getElementById('bstune-data').textContent"))["charts"]
        drawn = [chart["spec"] for chart in specs if chart["id"].startswith("c-landscape")]
        domains = [re.findall(r'"domain": \[[\d., e-]+\]', json.dumps(spec))[:2] for spec in drawn]
        assert domains[0] == domains[1] != []
    finally:
        opened.page.close()


def test_what_holds_is_said_and_harmless() -> None:
    """What a diagnosis found has a table of its own, whatever text a study holds."""
    found = Finding("a", studies.EVIL, "", "holds", studies.EVIL, 1.0, "%", (0.5, 2.0), studies.EVIL)
    hidden = dataclasses.replace(found, verdict="cannot tell")
    text = page(dataclasses.replace(studies.demo(), findings=(found, hidden)))

    assert "What holds for your model" in text
    assert "<script>window.hacked" not in text
    assert text.count("1 %, in 9 of 10 cases 0.5 % to 2 %") == 1
