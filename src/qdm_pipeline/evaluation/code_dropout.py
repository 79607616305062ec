"""What of a clip hangs on its token ids: some are lost or changed, and the rest is decoded."""

from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.evaluation.data import Data
from qdm_pipeline.evaluation.frechet import Gaussian, distance
from qdm_pipeline.evaluation.judge import mean_squared_error, psnr
from qdm_pipeline.evaluation.observe import Observation, Observer
from qdm_pipeline.evaluation.readers import Reader
from qdm_pipeline.models.codebook_use import usage_histogram
from qdm_pipeline.models.predictor import Condition
from qdm_pipeline.randomness import generator
from qdm_pipeline.video.autoencoder import to_uint8

DAMAGES = ("nearest code", "random code", "groups lost")
SHARES = (0.125, 0.25, 0.5, 1.0)
CHUNK = 1024  # codes whose distances to all others are held at a time


@torch.inference_mode()
def tokens_of(data: Data, rows: Tensor, batch: int) -> Tensor:
    """The codes of the clips at ``rows`` [N]: int32 [N, G, T, H, W].

    They are what the model's quantized path says where there is no noise (t = 0) and nothing is asked for.
    """
    device, found = data.autoencoder.mean.device, []
    for part in rows.split(batch):
        x0 = data.latents.gather("latent", part).float().to(device)
        codes = data.model(x0, torch.zeros(len(x0), device=device), Condition(), "quantized").codes
        found.append(codes.int().cpu())
    return torch.cat(found)


class Damage:
    """Changes token ids of a codebook [G, K, D] that is used as ``usage`` [G, K] says."""

    def __init__(self, codebook: Tensor, usage: Tensor) -> None:
        codebook = codebook.detach().float().cpu()
        self.size = codebook.shape[1]
        self.nearest = torch.stack([_nearest_other(book) for book in codebook])
        share = usage.float() / usage.sum(1, keepdim=True)
        mean = torch.einsum("gk,gkd->gd", share, codebook)
        self.typical = (codebook - mean[:, None]).square().sum(-1).argmin(1)

    def __call__(self, codes: Tensor, kind: str, share: float, draw: torch.Generator) -> Tensor:
        """Codes [G, T, H, W] of one clip, ``share`` of them changed; a larger one changes the same and more.

        ``nearest code``: the other code of the group that is nearest to theirs; ``random code``: any;
        ``groups lost``: a share of the groups says nothing, so each stays at the code nearest to its mean.
        """
        codes = codes.long()
        groups = torch.arange(len(codes)).view(-1, 1, 1, 1)
        if kind == "groups lost":
            order = torch.randperm(len(codes), generator=draw).view(-1, 1, 1, 1)
            return torch.where(order < round(share * len(codes)), self.typical[groups], codes)
        hit = torch.rand(codes.shape, generator=draw) < share
        if kind == "nearest code":
            return torch.where(hit, self.nearest[groups, codes], codes)
        return torch.where(hit, torch.randint(self.size, codes.shape, generator=draw), codes)


def _nearest_other(book: Tensor) -> Tensor:
    """For every code of ``book`` [K, D] the nearest other one: int64 [K]."""
    found = []
    for start in range(0, len(book), CHUNK):
        away = torch.cdist(book[start : start + CHUNK], book)
        away.diagonal(start).fill_(torch.inf)
        found.append(away.argmin(1))
    return torch.cat(found)


def code_dropout(
    data: Data, codes: Tensor, originals: Reader, observer: Observer, reference: Observation
) -> list[dict[str, Any]]:
    """Fréchet distance and PSNR of clips whose codes [N, G, T, H, W] were damaged, by kind and share.

    ``originals`` reads the clips that the codes are of. Each kind begins with share 0: what is lost by
    autoencoder and codebook alone. All ranks.
    """
    codebook = data.model.quantizer.codebook
    damage = Damage(codebook, usage_histogram(codes, codebook.shape[1]))
    gaussian = reference.gaussians[0]
    found: list[dict[str, Any]] = []
    for kind in DAMAGES:
        for share in (0.0, *SHARES):
            if share == 0 and found:  # the same for every kind
                found.append(found[0] | {"kind": kind})
                continue
            read = _reader(data, codes, damage, kind, share, observer.seed)
            features = observer.features(read, len(codes))
            error = mean_squared_error(read, originals, len(codes), observer.batch, observer.ranks)
            apart = distance(Gaussian.of_features(features, observer.extractor.ddof), gaussian)
            found.append({"kind": kind, "share": share, "frechet": apart, "psnr": psnr(error)})
    return found


def _reader(data: Data, codes: Tensor, damage: Damage, kind: str, share: float, seed: int) -> Reader:
    device = data.autoencoder.mean.device

    @torch.inference_mode()
    def read(positions: Tensor) -> Tensor:
        changed = [
            damage(codes[position], kind, share, generator(seed, position, 0, f"damage: {kind}"))
            for position in positions.tolist()
        ]
        latents = data.model.decode_codes(torch.stack(changed).to(device))
        return to_uint8(data.autoencoder.decode(latents)).cpu()

    return read
