"""What an extractor sees: distance of spoilt clips over the floor, at four strengths.

Needs the clips and the classifier of a finished ``make demo``; ``--help`` lists what else can be chosen.
"""

import argparse
import json
from pathlib import Path

import torch

from qdm_pipeline.evaluation.corruptions import CORRUPTIONS, corrupted_reader
from qdm_pipeline.evaluation.extractors import load_extractor
from qdm_pipeline.evaluation.features import load_classifier
from qdm_pipeline.evaluation.frechet import Gaussian, distance
from qdm_pipeline.evaluation.observe import Observer
from qdm_pipeline.evaluation.readers import clip_reader
from qdm_pipeline.files import read_json
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.video.shards import ShardSet

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
COUNT = 1000
GOAL = 4  # times the floor, at full strength


def artefact(data: Path, handle: str) -> Path:
    file = data / handle
    return file.parent / Path(read_json(file)["path"]).name


def main(data: Path, names: list[str], count: int, spec: str) -> None:
    torch.set_num_threads(1)
    clips = ShardSet(artefact(data, "02_intermediate/clips.json"))
    classifier = load_classifier(artefact(data, "06_models/classifier.json"))
    extractor = load_extractor(spec, data / "06_models", classifier, torch.device("cpu"))
    observer = Observer(extractor, classifier, 50, 10, 0, Path(), Ranks())
    rows = {split: clips.rows(split)[:count] for split in ("train", "test")}
    train, test = (clip_reader(clips, chosen) for chosen in rows.values())
    reference = Gaussian.of_features(observer.features(test, len(rows["test"])))
    floor = distance(Gaussian.of_features(observer.features(train, count)), reference)
    for name in names:
        ratios = []
        for strength in STRENGTHS:
            features = observer.features(corrupted_reader(train, name, strength, 0), count)
            ratios.append(round(distance(Gaussian.of_features(features), reference) / floor, 2))
        grows = all(a < b for a, b in zip(ratios, ratios[1:], strict=False))
        case = f"{name}, {extractor.name}"
        row = {"case": case, "metric": f"distance over the floor of {floor:.3g}", "strengths": ratios,
               "monotone": grows, "goal": f">= {GOAL}", "ok": grows and ratios[-1] >= GOAL}  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corruptions", nargs="*", default=list(CORRUPTIONS))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--extractor", default="classifier")
    asked = parser.parse_args()
    main(asked.data, asked.corruptions, asked.count, asked.extractor)
