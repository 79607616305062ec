"""Our losses and those of NVIDIA ModelOpt (Apache-2.0), whose formulas are FastGen's, on the same numbers.

The peer runs in a process of its own: importing it touches torch and transformers.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.losses import (
    discriminator_loss,
    generator_loss,
    matching_gradient,
    matching_loss,
)

PEER = """
import sys
import torch
from modelopt.torch.fastgen.losses import dsm_loss, gan_disc_loss, gan_gen_loss, vsd_loss
from safetensors.torch import load_file, save_file

given, found = load_file(sys.argv[1]), {}
for kind in ("plain", "near"):
    for dtype in (torch.float32, torch.bfloat16):
        sample, fake, real = (given[f"{kind}/{role}"].to(dtype) for role in ("sample", "fake", "real"))
        sample = sample.detach().clone().requires_grad_()
        loss = vsd_loss(sample, real, fake)
        loss.backward()
        found |= {f"{kind}/{dtype}/loss": loss.detach(), f"{kind}/{dtype}/gradient": sample.grad}
real, made = given["logits/real"], given["logits/made"]
found |= {"discriminator": gan_disc_loss(real, made), "generator": gan_gen_loss(made)}
velocity = (given["x_t"] - given["answer"]) / given["t"].view(-1, 1, 1)
found["denoising"] = dsm_loss("flow", velocity, x0=given["plain/real"], eps=given["noise"])
save_file(found, sys.argv[2])
"""


@pytest.fixture(scope="module")
def given():
    """Latents as they are, and as at a distillation's start, where the fake score is nearly the teacher."""
    draw = torch.Generator().manual_seed(0)
    made = {f"plain/{role}": 3 * torch.randn(4, 6, 10, generator=draw) for role in ("sample", "fake", "real")}
    made |= {f"near/{role}": made[f"plain/{role}"] for role in ("sample", "real")}
    made["near/fake"] = made["near/real"] + 1e-3 * made["plain/fake"]
    made |= {f"logits/{role}": torch.randn(5, 3, generator=draw) for role in ("real", "made")}
    t, noise = torch.tensor([0.3, 0.5, 0.7, 0.95]), torch.randn(4, 6, 10, generator=draw)
    return made | {"t": t, "noise": noise, "x_t": Schedule("flow").add_noise(made["plain/real"], noise, t),
                   "answer": made["plain/sample"]}  # fmt: skip


@pytest.fixture(scope="module")
def peer(given, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("peer")
    files = [str(folder / "given.safetensors"), str(folder / "found.safetensors")]
    save_file({name: value.clone() for name, value in given.items()}, files[0])
    done = subprocess.run([sys.executable, "-c", PEER, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(files[1])


def ours(given, kind, dtype):
    sample, fake, real = (given[f"{kind}/{role}"].to(dtype) for role in ("sample", "fake", "real"))
    answer = sample.float().clone().requires_grad_()
    loss = matching_loss(answer, matching_gradient(sample, fake, real))
    loss.backward()
    return loss.detach(), answer.grad


def apart(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_matching_agrees_in_float32(given, peer):
    loss, gradient = ours(given, "plain", torch.float32)
    assert apart(gradient, peer["plain/torch.float32/gradient"]) < 1e-6
    assert apart(loss, peer["plain/torch.float32/loss"]) < 1e-6


def test_where_scores_are_near_ours_keeps_what_the_peer_rounds_away(given, peer):
    """The exact gradient of the very same inputs, in float64; the peer's in bfloat16 is mostly rounding."""
    for dtype, least in ((torch.float32, 1e-5), (torch.bfloat16, 0.5)):
        roles = ("sample", "fake", "real")
        sample, fake, real = [given[f"near/{role}"].to(dtype).double() for role in roles]
        normaliser = (sample - real).abs().mean((1, 2), keepdim=True)
        exact = (fake - real) / normaliser / sample.numel()
        assert apart(ours(given, "near", dtype)[1], exact) < 1e-6
        assert apart(peer[f"near/{dtype}/gradient"], exact) > least


def test_adversarial_losses_agree(given, peer):
    real, made = given["logits/real"], given["logits/made"]
    torch.testing.assert_close(discriminator_loss(real, made), peer["discriminator"], rtol=1e-6, atol=0)
    torch.testing.assert_close(generator_loss(made), peer["generator"], rtol=1e-6, atol=0)


def test_the_weighted_error_in_x0_is_the_peers_error_in_velocity(given, peer):
    weight = Schedule("flow").velocity_weight(given["t"], limit=20.0)
    error = (given["answer"] - given["plain/real"]).square().mean((1, 2))
    torch.testing.assert_close((weight * error).mean(), peer["denoising"], rtol=1e-5, atol=0)
