"""Every page that the project writes, in a real headless browser: light and dark, in wide and in narrow windows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_up_scores import write_scores
from PIL import Image, ImageStat

from solopo_nemo.config.schema import load_config
from solopo_nemo.evaluation.measured import Measured
from solopo_nemo.evaluation.report import write_report as write_evaluation
from solopo_nemo.training.report.page import write_report as write_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")]

WINDOWS = {"wide": (1280, 1600), "narrow": (500, 1600)}  # Chromium has no narrower window
SCHEMES = {"dark": 0, "light": 1}
# what the page says about itself, as JSON in an attribute
PROBE = """<script>addEventListener("load", () => {
  const broken = [...document.images].filter(image => !image.naturalWidth).map(image => image.src);
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const shown = [...document.images].map(image => image.currentSrc.split("/").pop());
  document.documentElement.dataset.probe = encodeURIComponent(JSON.stringify({broken, wide, shown}));
});</script>"""


def _run_page(folder: Path) -> Path:
    config = load_config("solo_dpo", [])
    config.output_dir = str(folder)
    folder.mkdir()
    keys = ("loss", "loss/po", "loss/align", "rewards/margin", "rewards/chosen", "logps/chosen", "align/gap", "lr")
    rows = [{"step": n, "epoch": n / 60, **{key: 1 / (n + len(key)) for key in keys}} for n in range(1, 61)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_run(config)
    return folder / "report" / "index.html"


def _evaluation_page(folder: Path) -> Path:
    write_scores(folder / "base", seed=0)
    return write_evaluation([Measured.read(folder / "base")], folder / "page")


def _comparison_page(folder: Path) -> Path:
    names = ("base", "long-dpo", "solo-dpo-with-a-rather-long-name")
    for seed, name in enumerate(names):
        write_scores(folder / name, seed=seed, name=name)
    return write_evaluation([Measured.read(folder / name) for name in names], folder / "page")


PAGES: dict[str, Callable[[Path], Path]] = {
    "run": _run_page,
    "evaluation": _evaluation_page,
    "comparison": _comparison_page,
}


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    path = PAGES[request.param](tmp_path_factory.mktemp(request.param) / "out")
    html = path.read_text(encoding="utf-8")
    path.write_text(html.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    yield request.param, path


def _browse(path: Path, window: tuple[int, int], scheme: int, shot: Path) -> str:
    """The page's elements; a picture of it goes to ``shot``."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=5000",
        f"--window-size={window[0]},{window[1]}",
        f"--blink-settings=preferredColorScheme={scheme}",
        "--dump-dom",
        f"--screenshot={shot}",
        path.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_page_looks_right(page: tuple[str, Path], window: str, scheme: str, tmp_path: Path) -> None:
    name, path = page
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    shot = folder / f"{name}-{window}-{scheme}.png"
    dom = _browse(path, WINDOWS[window], SCHEMES[scheme], shot)
    found = re.search(r'data-probe="([^"]+)"', dom)
    assert found is not None
    from urllib.parse import unquote

    probe = json.loads(unquote(found.group(1)))
    assert probe["broken"] == []
    assert probe["wide"] <= 0, "the page is wider than its window"
    assert probe["shown"] and all(file.endswith("-dark.png") == (scheme == "dark") for file in probe["shown"])

    print(f"screenshot: {shot}")
    with Image.open(shot) as image:
        assert image.width == WINDOWS[window][0]
        grey = image.convert("L")
        corner = grey.getpixel((2, 2))
        assert isinstance(corner, int) and (corner < 60) == (scheme == "dark")
        assert ImageStat.Stat(grey).stddev[0] > 5  # something is drawn on it
