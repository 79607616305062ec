import logging

import pytest
import torch

from qdm_pipeline.models import precision
from qdm_pipeline.models.precision import autocast, multiplies_bfloat16

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget():
    multiplies_bfloat16.cache_clear()
    yield
    multiplies_bfloat16.cache_clear()


def product_dtype(choice):
    with autocast(CPU, choice):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
    ],
)
def test_auto_takes_what_the_processor_multiplies(monkeypatch, caplog, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with caplog.at_level(logging.INFO, precision.__name__):
        assert product_dtype("auto") == product_dtype("auto") == dtype
    said = [record for record in caplog.records if "float32" in record.message]
    assert len(said) == (dtype == torch.float32)  # a choice against bfloat16 is said, once


def test_a_named_precision_is_taken_whatever_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert product_dtype("bf16") == torch.bfloat16 and product_dtype("fp32") == torch.float32
    assert product_dtype("fp16") == torch.float16
