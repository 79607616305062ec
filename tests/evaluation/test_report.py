"""The report: every row is in it, nothing outside it is."""

import io
import re
from typing import Any

import pytest
import torch
from PIL import Image

from qdm_pipeline.evaluation.figures import (
    code_dropout_figure,
    codebook_figure,
    corruption_figure,
    curves_figure,
)
from qdm_pipeline.evaluation.gallery import mixed
from qdm_pipeline.evaluation.report import animation, by_chance, summary, write_report
from qdm_pipeline.evaluation.rows import COLUMNS


def row(name: str, frechet: float, **values: Any) -> dict[str, Any]:
    interval = {"frechet": frechet, "frechet_low": frechet - 2, "frechet_high": frechet + 2, "count": 50}
    interval |= {
        "frechet_limit": frechet - 5,
        "frechet_limit_low": frechet - 8,
        "frechet_limit_high": frechet,
    }
    interval |= {"kernel": 0.25, "kernel_low": -0.5, "kernel_high": 1, "motion": 0.02, "flicker": 0.03}
    interval |= {
        "precision": 0.711,
        "recall": 0.622,
        "density": 0.533,
        "coverage": 0.444,
        "first_frame": 3.21,
        "patches": 0.0456,
    }
    interval |= {"class_score": 2.5, "class_score_split": 2.25, "motion_distance": 0.0125}
    return dict.fromkeys(COLUMNS) | {"name": name} | interval | values


def sampled(name: str, frechet: float, nfe: int) -> dict[str, Any]:
    return row(
        name,
        frechet,
        nfe=nfe,
        steps=4,
        guidance=1.5,
        accuracy=0.875,
        utilization=0.97,
        utilization_tokens=12800,
        utilization_ceiling=0.99,
        perplexity=412.3,
        codebook_size=512,
        latent_mean=-0.001,
        latent_std=1.01,
        seconds_per_clip=nfe / 1000,
        mebibytes_per_clip=0.43,
        bits_per_second=3072.0,
        entropy_bits_per_second=2961.0,
        compression=64.0,
        nearest_train=1.18,
    )


def make_metrics(labelled: bool = True) -> dict[str, Any]:
    rows = [sampled("teacher", 40, 64), sampled("student <4>", 30, 4), sampled("student", 20, 4)]
    rows += [row("real", 5.0, accuracy=0.98), row("reconstruction", 8.0, psnr=28.54)]
    if not labelled:
        rows = [one | {"accuracy": None} for one in rows]
    return {
        "metric": "frechet[classifier-2plus1d-diff-64d-bound4,9f,32,50]",
        "reference": {"split": "test", "count": 50},
        "classes": ["zero", "one", "two"] if labelled else [],
        "fps": 8,
        "rows": rows,
        "extractor": {"frames": None, "size": None, "resize": "none", "values": "[-1, 1]", "ddof": 1},
        "corruptions": [
            {"name": "blur", "frechet": 70.0, "ratio": 14.0, "seen": True},
            {"name": "frame drop", "frechet": 6.0, "ratio": 1.2, "seen": False},
        ],
        "code_dropout": [
            {"kind": kind, "share": share, "frechet": 9 + 90 * share, "psnr": 28 - 9 * share}
            for kind in ("nearest code", "groups lost")
            for share in (0.0, 0.5, 1.0)
        ],
        "warnings": ["student: 50 clips for 64 features"],
    }


def make_pictures(labelled: bool = True) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    video = torch.randint(256, (2, 3, 3, 5, 8, 8), generator=draw).to(torch.uint8)
    histogram = torch.randint(20, (2, 16), generator=draw)
    return {
        "classes": torch.tensor([0, 1, 2] if labelled else [-1] * 3),
        **{f"videos/{name}": video for name in ("real", "reconstruction", "teacher", "student")},
        **{f"usage/{name}": histogram for name in ("teacher", "student", "real")},
        "used/1-7": video[:1],
        "rare/0-3": video[:1, :2],
        **{f"{kind}/{name}": video for kind in ("nearest", "codes") for name in ("teacher", "student")},
    }


CURVES = {
    "teacher": [{"step": 10, "loss": 100.0}, {"step": 20, "loss": 1.0, "late": 2.0}],
    "not trained here": [],
}


@pytest.fixture(scope="module")
def html() -> str:
    return write_report(
        make_metrics(), CURVES, make_pictures(), {"teacher": {"lr": 0.001}}, {"command": "make demo"}
    )


def test_every_row_and_number_is_there(html: str) -> None:
    for text in (
        "teacher",
        "student &lt;4&gt;",
        "reconstruction",
        "28.5 dB",
        "87.5 %",
        "12,800",
        "412",
        "0.43 MiB",
        "make demo",
        "3,072",
        "64 ×",
        "1.18 × as far as test clips",
        "−0.5 – 1",
        "These features do not see: frame drop.",
        "student: 50 clips for 64 features",
        "0.711",
    ):
        assert text in html
    assert "4 network evaluations a clip, better than the teacher’s 64" in html
    assert "<h3>teacher</h3>" in html
    assert "not trained here" not in html
    assert html.count("data:image/webp") == 8 + 2
    assert "<b>group 1, code 7</b>" in html and "clips that use code 3 of group 0 most" in html
    assert "Codes lost" in html and ">groups lost</text>" in html
    assert html.count("<span>zero</span>") == 4
    assert "-0.00" not in html


def test_clips_to_guess_are_shown_one_by_one_and_counted() -> None:
    video = torch.randint(256, (6, 3, 5, 8, 8)).to(torch.uint8)
    pictures = make_pictures() | mixed(video[:3], video[3:], seed=0)
    html = write_report(make_metrics(), {}, pictures, {}, {})
    sheet = html.split('<div class="sheet">')[1].split("</div>")[0]
    kinds = re.findall(r'<label class="(made|real)">', sheet)
    assert [kind == "made" for kind in kinds] == pictures["guess/made"].tolist() and sum(
        map("made".__eq__, kinds)
    ) == 3
    assert sheet.count("data:image/webp") == 6 and "of 6 right" in html
    for clip, made in zip(pictures["guess/clips"], pictures["guess/made"], strict=True):
        assert any(torch.equal(clip, one) for one in (video[3:] if made else video[:3]))


def test_by_chance_is_the_binomial_distribution() -> None:
    assert by_chance(40) == (14, 26)  # scipy.stats.binom(40, 1 / 2).interval(0.95)
    assert (by_chance(100), by_chance(5)) == ((40, 60), (0, 5))


def test_nothing_is_fetched(html: str) -> None:
    assert "http" not in html
    assert "<script" not in html
    sources = re.findall(r'(?:src|href)="([^"]{0,11})', html)
    assert all(source.startswith(("data:image/", "#")) for source in sources)


def test_figures_take_the_colours_of_the_page(html: str) -> None:
    assert "var(--accent)" in html
    assert "#2f6fde" not in html.split("</style>")[1]


def test_clips_without_labels() -> None:
    html = write_report(make_metrics(False), {}, make_pictures(False), {}, {})
    assert "was not measured: the clips have no labels" in html
    assert "Training</h2>" not in html


def test_the_verdict_needs_intervals_apart() -> None:
    teacher, student = sampled("teacher", 40, 64), sampled("student", 39, 4)
    for distance, verdict in ((39, "on a par with"), (20, "better than"), (60, "worse than")):
        found = summary([teacher, sampled("student", distance, 4)])
        assert found is not None
        assert found["verdict"] == verdict
        assert found["fewer"] == 16
    assert summary([student]) is None


def test_the_animation_loops_over_all_frames() -> None:
    video = torch.arange(5, dtype=torch.uint8).view(5, 1, 1).expand(2, 3, 3, 5, 8, 8).contiguous()
    video[0, 1, 0, 3, 2, 4] = 255
    with Image.open(io.BytesIO(animation(video, fps=8))) as image:
        assert (image.size, image.n_frames, image.info["loop"]) == ((26, 17), 5, 0)
        image.seek(3)
        assert image.convert("RGB").getpixel((9 + 4, 2)) == (255, 3, 3)


def test_curves_show_every_metric_ever_logged() -> None:
    axes = curves_figure(CURVES["teacher"]).axes
    assert [axis.get_title(loc="left") for axis in axes] == ["loss", "late"]
    assert [axis.get_yscale() for axis in axes] == ["log", "linear"]


def test_codebook_use_is_relative_to_uniform() -> None:
    figure = codebook_figure({"student": torch.tensor([[0, 4, 8, 4]])})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [2, 1, 1, 0]


def test_losses_have_a_line_a_kind() -> None:
    distance, psnr = code_dropout_figure(make_metrics()["code_dropout"]).axes
    assert [line.get_label() for line in psnr.lines] == ["nearest code", "groups lost"]
    assert distance.lines[1].get_xydata().tolist() == [[0, 9], [50, 54], [100, 99]]


def test_nothing_measured_is_an_empty_figure() -> None:
    for figure in (code_dropout_figure([]), corruption_figure([]), curves_figure([])):
        figure.savefig(io.BytesIO())
