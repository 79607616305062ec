import pytest
import torch

from qdm_pipeline.models.quantizer import QuantizerSettings, VectorQuantizer
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.codebook_log import CodebookLog


def test_use_is_told_apart_by_time_and_starts_anew():
    settings = QuantizerSettings(
        kind="vq", codebook_size=4, codebook_dim=2, groups=2, decay=0.9, revival_threshold=0.0
    )
    quantizer = VectorQuantizer(4, settings)
    log = CodebookLog(quantizer, Ranks())
    quantizer(torch.randn(100, 4), collect=True)
    quantizer.commit(0, 0)
    codes = torch.zeros(2, 2, 1, 2, 2, dtype=torch.int64)
    codes[1, :, 0, 0] = torch.tensor([[1, 2], [1, 3]])
    log.add(codes, torch.tensor([0.05, 1.0]))
    taken = log.take()
    assert taken["codebook/tokens"] == 100 and taken["codebook/utilization_ceiling"] == pytest.approx(1)
    assert taken["codebook/utilization_t0.1"] == 1 / 4 and taken["codebook/utilization_t0.9"] == 3 / 4
    assert taken["codebook/utilization_t0.5"] == 0
    again = log.take()
    assert again["codebook/tokens"] == 0 and again["codebook/utilization_t0.9"] == 0
