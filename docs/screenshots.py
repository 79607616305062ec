"""Pictures of Kedro-Viz, MLflow and the report as a user sees them, into a folder.

Run where there are results: ``python docs/screenshots.py docs/images``. Needs ``pip install playwright`` and
Chromium on the PATH.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import torch
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, sync_playwright

from qdm_pipeline.files import read_json
from qdm_pipeline.video.media import write_animation
from qdm_pipeline.video.shards import ShardSet

BIN = Path(sys.executable).parent
VIZ, MLFLOW = "http://127.0.0.1:4151", "http://127.0.0.1:5051"
STORE = "sqlite:///mlflow.db"
PATIENCE = 12_000  # milliseconds until a page is taken to be still
HINTS = ("text=Dismiss",)  # of Kedro-Viz
NO_TOUR = """() => {
    const number = [...document.querySelectorAll("*")].find((e) => /^\\d of \\d$/.test(e.textContent.trim()));
    let box = number;
    while (box && box.parentElement.offsetWidth < 500 && box.parentElement.offsetHeight < 500)
        box = box.parentElement;
    if (box) box.style.visibility = "hidden";
}"""  # it lies over the page, once a browser
ASSISTANT = ('[aria-label="Close"]',)  # of MLflow


@contextmanager
def serving(url: str, *command: str) -> Iterator[None]:
    """A server that answers at ``url`` for as long as the block lasts."""
    process = subprocess.Popen([BIN / command[0], *command[1:]], start_new_session=True)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def shoot(browser: Browser, url: str, file: Path, size: tuple[int, int], *clicks: str) -> None:
    """A picture of a page once it is still; what ``clicks`` select is clicked first, where it is there."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(url)
    page.wait_for_timeout(PATIENCE)
    for selector in clicks:
        for found in page.locator(selector).all()[:1]:
            found.click(force=True)
            page.wait_for_timeout(PATIENCE // 8)
    page.evaluate(NO_TOUR)
    page.screenshot(path=file)
    page.close()
    print(file)


def samples_picture(file: Path) -> None:
    """Two rows each of real test clips, of the teacher's and of the student's samples, moving."""
    handle = read_json(Path("data/02_intermediate/clips.json"))
    clips = ShardSet(Path("data/02_intermediate") / handle["path"])
    labels, rows = clips.column("label"), clips.rows("test").tolist()
    picked = [[row for row in rows if labels[row] == label][turn] for turn in (0, 1) for label in range(10)]
    with tempfile.TemporaryDirectory() as folder:
        real = Path(folder) / "real.webp"
        write_animation(real, clips.gather("video", torch.tensor(picked)), 10, 8, 2)
        parts = [("real clips", real)]
        for name, calls in (("teacher", 64), ("student", 4)):
            parts.append((f"{name}, {calls} calls", Path(f"data/08_reporting/{name}_samples.webp")))
        opened = [(title, Image.open(part)) for title, part in parts]
        width, high = opened[0][1].size
        frames = []
        for index in range(opened[0][1].n_frames):
            frame = Image.new("RGB", (width + 130, 3 * high + 20), "white")
            for number, (title, image) in enumerate(opened):
                image.seek(index)
                top = number * (high + 10)
                frame.paste(image.convert("RGB").crop((0, 0, width, high)), (130, top))
                ImageDraw.Draw(frame).text((6, top + high // 2 - 6), title, fill="black")
            frames.append(frame)
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=125, loop=0, quality=80)
    print(file)


def mlflow_pages() -> dict[str, str]:
    """The list, the charts and the comparison of the newest finished runs."""
    from mlflow import MlflowClient

    client = MlflowClient(STORE)
    experiment = client.get_experiment_by_name("qdm-pipeline")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=3)
    ids = quote(str([run.info.run_id for run in runs]).replace("'", '"').replace(" ", ""))
    number = experiment.experiment_id
    page = f"{MLFLOW}/#/experiments/{number}/runs"
    pages = {
        "mlflow-runs": page,
        "mlflow-charts": f"{page}?compareRunsMode=CHART",
        "mlflow-compare": f"{MLFLOW}/#/compare-runs?runs={ids}&experiments=%5B%22{number}%22%5D",
    }
    return pages | {"mlflow-run": f"{page}/{runs[0].info.run_id}/model-metrics"} if runs else pages


def main() -> None:
    """All pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        samples_picture(folder / "samples.webp")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        report = Path("data/08_reporting/report.html").resolve().as_uri()
        shoot(browser, report, folder / "report-wide.png", (1400, 2400))
        shoot(browser, report, folder / "report-narrow.png", (500, 2400))
        with serving(VIZ, "kedro", "viz", "run", "--no-browser", "--port", VIZ.rpartition(":")[2]):
            shoot(browser, VIZ, folder / "viz-collapsed.png", (1400, 900), *HINTS)
            expanded = f"{VIZ}/?expandAllPipelines=true"
            shoot(browser, expanded, folder / "viz-expanded.png", (1800, 1400), *HINTS)
            for name in ("student_samples_grid", "train.distill_student"):
                node = f'.pipeline-node:has-text("{name.rpartition(".")[2]}")'
                file = folder / f"viz-{name.rpartition('.')[2]}.png"
                shoot(browser, expanded, file, (1800, 1200), *HINTS, node)
        with serving(
            MLFLOW, "mlflow", "ui", "--backend-store-uri", STORE, "--port", MLFLOW.rpartition(":")[2]
        ):
            for name, url in mlflow_pages().items():
                shoot(browser, url, folder / f"{name}.png", (1500, 950), *ASSISTANT)


if __name__ == "__main__":
    main()
