"""One row of the report: what was observed in a set of videos against what was observed in test clips."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.evaluation.class_score import class_score
from qdm_pipeline.evaluation.frechet import Gaussian, distance, frechet_estimates, furthest
from qdm_pipeline.evaluation.intervals import Estimate, random_blocks
from qdm_pipeline.evaluation.kernel import kernel_distance
from qdm_pipeline.evaluation.motion import wasserstein
from qdm_pipeline.evaluation.neighbours import manifolds, nearest
from qdm_pipeline.evaluation.observe import Observation
from qdm_pipeline.evaluation.sample_set import SampleSet
from qdm_pipeline.models.codebook_use import codebook_use
from qdm_pipeline.randomness import generator

# Every row has all of these; None where a value has no meaning. docs/evaluation.md says what each is.
COLUMNS = (
    "name", "nfe", "steps", "guidance", "frechet", "frechet_low", "frechet_high",
    "furthest", "frechet_without", "accuracy",
    "utilization", "utilization_tokens", "utilization_ceiling", "perplexity", "codebook_size",
    "latent_mean", "latent_std", "psnr", "seconds_per_clip", "count",
    "frechet_limit", "frechet_limit_low", "frechet_limit_high", "kernel", "kernel_low", "kernel_high",
    "precision", "recall", "density", "coverage", "class_score", "class_score_split", "first_frame",
    "patches", "motion", "motion_distance", "flicker", "drift", "identity", "nearest_train",
    "bits_per_second", "entropy_bits_per_second", "compression", "mebibytes_per_clip",
)  # fmt: skip


def compare(
    name: str, seen: Observation, reference: Observation, neighbours: int, splits: int
) -> dict[str, Any]:
    """The row ``name``: distances, shares and scores of ``seen`` against ``reference``."""
    found = dict.fromkeys(COLUMNS) | {"name": name, "accuracy": seen.accuracy, "count": len(seen.labels)}
    as_it_is, limit = frechet_estimates(seen.gaussians, reference.gaussians)
    kernel = kernel_distance(
        seen.features, reference.features, seen.block_of, reference.block_of, seen.blocks
    )
    found |= _ends("frechet", as_it_is) | _ends("frechet_limit", limit) | _ends("kernel", kernel)
    found["furthest"], found["frechet_without"] = furthest(seen.features, reference.gaussians[0], seen.ddof)
    stills = [Gaussian.of_features(each.stills, each.ddof) for each in (seen, reference)]
    found["first_frame"] = distance(*stills)
    found["patches"] = distance(seen.close_up, reference.close_up)
    found["drift"] = float(seen.drift.double().mean())
    found["identity"] = None if seen.same.isnan().any() else float(seen.same.double().mean())
    if min(len(seen.labels), len(reference.labels)) > neighbours:
        found |= vars(manifolds(reference.features, seen.features, neighbours))
    if seen.logits.shape[1]:
        parts = random_blocks(len(seen.logits), splits, generator(0, 0, 0, "splits of the class score"))
        found["class_score"] = class_score(seen.logits)
        found["class_score_split"] = class_score(seen.logits, parts)
    if not seen.motion.isnan().any():
        found["motion"], found["flicker"] = seen.motion.double().mean(0).tolist()
        found["motion_distance"] = wasserstein(seen.motion[:, 0], reference.motion[:, 0])
    return found


def _ends(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def memorisation(seen: Observation, reference: Observation, train: Tensor) -> float:
    """Median distance to the nearest train clip over that of test clips: far below 1, samples are copies.

    ``train`` [N, D] are features of train clips. Cf. the authenticity of Alaa et al. 2022 (arXiv:2102.08921).
    """
    samples, real = (nearest(each.features, train)[0].median() for each in (seen, reference))
    return float(samples / real.clamp(min=1e-12))


def sampling_facts(samples: SampleSet, clip_shape: Sequence[int], fps: float) -> dict[str, Any]:
    """What does not depend on how the samples are read: cost, use of the codebook, rate of its tokens.

    ``clip_shape`` [3, T, H, W]; rates are bits per second of video, compression against 24 bits a pixel.
    """
    use = codebook_use(samples.usage)
    _, frames, height, width = clip_shape
    groups, tokens = samples.codes.shape[1], math.prod(samples.codes.shape[2:])
    share = samples.usage.double() / samples.usage.sum(1, keepdim=True)
    entropy = -float(torch.special.xlogy(share, share).sum()) / math.log(2)  # bits, of all groups
    per_second = tokens * fps / frames
    rate = groups * math.log2(use.size) * per_second
    return {key: samples.metadata[key] for key in ("nfe", "steps", "guidance", "seconds_per_clip")} | {
        "mebibytes_per_clip": samples.metadata.get("mebibytes_per_clip"),  # older sets do not say
        "utilization": use.utilization,
        "utilization_tokens": use.tokens,
        "utilization_ceiling": use.ceiling,
        "perplexity": use.perplexity,
        "codebook_size": use.size,
        "bits_per_second": rate,
        "entropy_bits_per_second": entropy * per_second,
        "compression": 24 * height * width * fps / rate,
    }
