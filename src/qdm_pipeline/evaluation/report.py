"""One self-contained HTML file that shows and explains what was measured."""

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from einops import rearrange
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional

from qdm_pipeline.evaluation import figures

THEMED = {"INK": "ink", "MUTED": "muted", "GRID": "line", "MAIN": "accent", "SECOND": "second"}
GAPS = {"codes": 4}  # pixels between pictures, where their edges cannot be told apart
# What is better: the least or the most of it. Real clips and reconstructions do not compete.
BEST = {
    "frechet": min,
    "accuracy": max,
    "nfe": min,
    "seconds_per_clip": min,
    "utilization": max,
    "perplexity": max,
    "frechet_limit": min,
    "kernel": min,
    "first_frame": min,
    "patches": min,
    "motion_distance": min,
    "identity": max,
    **dict.fromkeys(("precision", "recall", "density", "coverage", "class_score"), max),
}


def write_report(
    metrics: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    pictures: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    reproduce: Mapping[str, str],
) -> str:
    """The report as HTML text.

    ``metrics`` as `evaluate` and ``pictures`` as `gallery` return them; ``curves``: `Run.metrics` by job;
    ``settings``: JSON-like, by job; ``reproduce``: what to type and what it was run from, by heading.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    template = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.jinja")
    rows = metrics["rows"]
    usage = codebook_usage(pictures)
    return template.render(
        metrics=metrics,
        rows=rows,
        best={key: _best(rows, key, choose) for key, choose in BEST.items()},
        summary=summary(rows),
        columns=_column_names(pictures["classes"], metrics["classes"]),
        references=figures.REFERENCES,
        real=next((row for row in rows if row["name"] == "real"), None),
        videos=_videos(rows, pictures, metrics["fps"]),
        guess=_guess(pictures, metrics["fps"]),
        nearest=_animations("nearest", rows, pictures, metrics["fps"]),
        codes=_animations("codes", rows, pictures, metrics["fps"]),
        distances=_svg(figures.distance_figure(rows)),
        corruptions=_svg(figures.corruption_figure(metrics["corruptions"]))
        if metrics["corruptions"]
        else None,
        blind=[one["name"] for one in metrics["corruptions"] if not one["seen"]],
        curves={name: _svg(figures.curves_figure(values)) for name, values in curves.items() if values},
        codebook=_svg(figures.codebook_figure(usage)),
        code_clips={kind: _code_clips(kind, pictures, metrics["fps"]) for kind in ("used", "rare")},
        code_dropout=_svg(figures.code_dropout_figure(metrics["code_dropout"]))
        if metrics["code_dropout"]
        else None,
        settings={name: json.dumps(value, indent=2, ensure_ascii=False) for name, value in settings.items()},
        reproduce=reproduce,
    )


def codebook_usage(pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How often each code is used, int64 [G, K] by sample set, real clips first."""
    names = sorted(pictures, key=lambda name: name != "usage/real")
    return {name.removeprefix("usage/"): pictures[name] for name in names if name.startswith("usage/")}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The rows "teacher" and "student" against each other; None unless both are there.

    ``verdict`` says "better" or "worse" only where the 95 % intervals of the distances do not touch.
    """
    named = {row["name"]: row for row in rows}
    if not {"teacher", "student"} <= set(named):
        return None
    teacher, student = named["teacher"], named["student"]
    verdict = "on a par with"
    if student["frechet_high"] < teacher["frechet_low"]:
        verdict = "better than"
    elif student["frechet_low"] > teacher["frechet_high"]:
        verdict = "worse than"
    return {
        "teacher": teacher,
        "student": student,
        "verdict": verdict,
        "fewer": teacher["nfe"] / student["nfe"],
        "faster": teacher["seconds_per_clip"] / student["seconds_per_clip"],
    }


def animation(videos: Tensor, fps: float, gap: int = 1) -> bytes:
    """Lossless animated WebP of ``videos`` uint8 [lines, columns, 3, T, H, W] in a grid, looping."""
    apart = functional.pad(videos, (0, gap, 0, gap), value=128)
    frames = rearrange(apart, "lines columns c t h w -> t (lines h) (columns w) c")[:, :-gap, :-gap]
    first, *rest = (Image.fromarray(frame.numpy()) for frame in frames.contiguous())
    stream = io.BytesIO()
    first.save(
        stream, "WEBP", lossless=True, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0
    )
    return stream.getvalue()


def _videos(
    rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, Tensor], fps: float
) -> list[dict[str, Any]]:
    """What the template shows of every set with pictures: real clips first, then what was made of them."""
    order = sorted(rows, key=lambda row: row["name"] not in figures.REFERENCES)
    return _animations("videos", order, pictures, fps)


def _animations(
    kind: str, rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, Tensor], fps: float
) -> list[dict[str, Any]]:
    """The pictures KIND/NAME of every row that has them, with that row."""
    return [
        {"row": row, "data": base64.b64encode(animation(pictures[name], fps, GAPS.get(kind, 1))).decode()}
        for row in rows
        if (name := f"{kind}/{row['name']}") in pictures
    ]


def _guess(pictures: Mapping[str, Tensor], fps: float) -> dict[str, Any] | None:
    """Clips to tell real from made, with how many are told right by chance."""
    if "guess/clips" not in pictures:
        return None
    clips = [
        {"made": made, "data": base64.b64encode(animation(clip[None, None], fps)).decode()}
        for clip, made in zip(pictures["guess/clips"], pictures["guess/made"].tolist(), strict=True)
    ]
    return {"clips": clips, "chance": by_chance(len(clips))}


def by_chance(count: int) -> tuple[int, int]:
    """The central 95 % of how many of ``count`` fair coins fall heads: fewer, or more, 2.5 % at most each."""
    below, fewest = 0, 0
    while (below := below + math.comb(count, fewest)) <= 0.025 * 2**count:
        fewest += 1
    return fewest, count - fewest


def _code_clips(kind: str, pictures: Mapping[str, Tensor], fps: float) -> list[dict[str, Any]]:
    """The clips that use a code most, with its name and its share of the tokens of real clips."""
    found = []
    for name in (name for name in pictures if name.startswith(f"{kind}/")):
        group, code = map(int, name.removeprefix(f"{kind}/").split("-"))
        usage = pictures["usage/real"][group]
        data = base64.b64encode(animation(pictures[name], fps, gap=2)).decode()
        share, even = float(usage[code] / usage.sum()), 1 / len(usage)
        found.append({"group": group, "code": code, "share": share, "times": share / even, "data": data})
    return sorted(found, key=lambda one: -one["share"])


def _column_names(classes: Tensor, names: Sequence[str]) -> list[str]:
    return [names[index] for index in classes.tolist() if index >= 0]


def _best(rows: Sequence[Mapping[str, Any]], key: str, choose: Any) -> Any:
    values = [row[key] for row in rows if row["name"] not in figures.REFERENCES and row[key] is not None]
    return choose(values) if len(set(values)) > 1 else None


def _svg(figure: Figure) -> str:
    """The figure as an inline SVG with text, in the colours of the page's theme."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "report"}):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    for name, variable in THEMED.items():
        text = text.replace(getattr(figures, name), f"var(--{variable})")
    return text
