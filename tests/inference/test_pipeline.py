"""An exported student: the same samples as in the project, anywhere."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qdm_pipeline import QuantizedVideoPipeline
from qdm_pipeline.errors import InputError
from qdm_pipeline.models.predictor import Condition
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training.int8 import weight_bytes
from qdm_pipeline.training.sampling import sample

Export = Callable[..., Path]


def test_samples_are_those_of_the_sampling_job(export: Export, tmp_path: Path) -> None:
    exported = Run.read(export({"guidance": 1.5}) / "run.json")
    job = Run.create("samples", exported.settings, exported.inputs, tmp_path / "runs")
    sample(job, Ranks())
    expected = load_file(job.directory / "samples.safetensors")
    found = QuantizedVideoPipeline.from_pretrained(exported.directory)(count=10)
    assert len(expected["codes"].unique()) > 4
    assert torch.equal(found.codes, expected["codes"]) and torch.equal(found.latents, expected["latents"])
    assert found.videos.shape == (10, 3, 1, 16, 16) and found.videos.dtype == torch.uint8
    assert found.residual is None


def test_a_sample_is_a_function_of_seed_and_number(export: Export) -> None:
    pipe = QuantizedVideoPipeline.from_pretrained(export())
    found = pipe(["odd"], count=6, seed=3)
    draw = generator(3, 1, 0, "sampling")  # samples 4 and 5 are the second batch of 4
    x, asked = torch.randn(2, 3, 1, 2, 2, generator=draw), Condition(torch.tensor([1, 1]))
    with torch.inference_mode():
        x0 = pipe.predictor(x, torch.ones(2), asked, "quantized").x0
        x = 0.5 * x0 + 0.5 * torch.randn(x0.shape, generator=draw)
        codes = pipe.predictor(x, torch.full((2,), 0.5), asked, "quantized").codes
    assert torch.equal(found.codes[4:], codes.int())


def test_codes_alone_give_the_videos_bit_for_bit(export: Export) -> None:
    pipe = QuantizedVideoPipeline.from_pretrained(export())
    made = pipe(["even", "odd"], count=9, seed=2)
    assert torch.equal(pipe.decode_codes(made.codes), made.videos)
    some = torch.tensor([7, 2])
    assert torch.equal(pipe.decode_codes(made.codes[some]), made.videos[some])
    changed = (made.codes + 1) % 16
    assert not torch.equal(pipe.decode_codes(changed), made.videos)


def test_what_a_model_keeps_beside_its_codes_is_decoded_with_them(export: Export) -> None:
    pipe = QuantizedVideoPipeline.from_pretrained(export(size={"residual_dim": 2}))
    made = pipe(count=3)
    assert made.residual is not None and made.residual.shape == (3, 2, 1, 2, 2)
    assert torch.equal(pipe.decode_codes(made.codes, made.residual), made.videos)
    assert not torch.equal(pipe.decode_codes(made.codes), made.videos)


def test_a_size_other_than_that_of_the_clips(export: Export) -> None:
    pipe = QuantizedVideoPipeline.from_pretrained(export())
    made = pipe(count=2, size=(24, 40))
    assert made.videos.shape == (2, 3, 1, 24, 40) and made.codes.shape[-2:] == (3, 5)
    assert torch.equal(pipe(count=2, size=(16, 16)).codes, pipe(count=2).codes)
    with pytest.raises(InputError, match=r"size: found \[24, 20\], both must be multiples of 8"):
        pipe(size=(24, 20))
    pipe.config["space"] = None
    with pytest.raises(InputError, match="set it to null"):
        pipe(size=(24, 40))


def test_saved_and_loaded_is_the_same(export: Export, tmp_path: Path) -> None:
    directory = export({"guidance": 2.0})
    pipe = QuantizedVideoPipeline.from_pretrained(directory)
    pipe.save_pretrained(tmp_path / "copy")
    again = QuantizedVideoPipeline.from_pretrained(str(tmp_path / "copy"))
    assert torch.equal(again(count=2).videos, pipe(count=2).videos)
    assert (again.fps, again.settings) == (pipe.fps, pipe.settings) and again.settings.guidance == 2.0
    files = [path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert all((tmp_path / "copy" / file).read_bytes() == (directory / file).read_bytes() for file in files)
    assert len(files) == 5


def test_none_is_what_was_exported(export: Export) -> None:
    pipe = QuantizedVideoPipeline.from_pretrained(export({"asked": ("odd",), "steps": 3, "guidance": 2.0}))
    plain = pipe()
    assert len(plain.codes) == 1
    assert torch.equal(plain.codes, pipe("odd", steps=3, guidance=2.0).codes)
    for other in (pipe("even"), pipe(steps=1), pipe(guidance=1.0), pipe(seed=1)):
        assert not torch.equal(plain.codes, other.codes)


def test_captions_are_asked_for_in_words(export: Export) -> None:
    pipe = QuantizedVideoPipeline.from_pretrained(
        export({"asked": ("a dot",)}, vocabulary=("a", "dot", "red"), caption_length=3)
    )
    assert len(pipe(["A red dot", "a dot"]).videos) == 2
    with pytest.raises(InputError, match="unknown words .'blue'.; this model knows a, dot, red"):
        pipe(["a blue dot"])


def test_a_teacher_is_exported_with_its_sampler(export: Export) -> None:
    many = {"sampler": "ddim", "steps": 4, "path": "continuous"}
    directory = export(many)
    config = directory / "predictor/config.json"
    stored = json.loads(config.read_text())
    for name in ("sampler", "times", "path"):  # which a teacher has not
        del stored[name]
    config.write_text(json.dumps(stored))
    assert len(QuantizedVideoPipeline.from_pretrained(directory)(["odd"]).videos) == 1


def test_errors_say_what_is_wrong(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nowhere/pipeline.json: no such file; the directory must be one"):
        QuantizedVideoPipeline.from_pretrained(tmp_path / "nowhere")
    directory = export()
    pipe = QuantizedVideoPipeline.from_pretrained(directory)
    with pytest.raises(InputError, match="unknown classes .'seven'.; this model knows .'even', 'odd'."):
        pipe(["even", "seven"])
    with pytest.raises(ValueError, match="count: found 0, must be at least 1"):
        pipe(count=0)
    with pytest.raises(
        ValueError, match="weights: found 'int4', allowed are full, int8_weight, int8_dynamic"
    ):
        QuantizedVideoPipeline.from_pretrained(directory, weights="int4")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(InputError, match=r"weights: int8_weight needs torchao: pip install .*\[int8\]"):
        QuantizedVideoPipeline.from_pretrained(directory, weights="int8_weight")
    description = directory / "pipeline.json"
    description.write_text(description.read_text().replace('"format": 2', '"format": 9'))
    with pytest.raises(InputError, match="format is 9, this version reads 2"):
        QuantizedVideoPipeline.from_pretrained(directory)


@pytest.mark.parametrize("weights", ["int8_weight", "int8_dynamic"])
def test_weights_of_8_bits(export: Export, weights: str, tmp_path: Path) -> None:
    full = QuantizedVideoPipeline.from_pretrained(export())
    directory = export({"weights": weights})
    rounded = QuantizedVideoPipeline.from_pretrained(directory)
    inside = [name for name, p in rounded.predictor.named_parameters() if type(p).__name__ == "Int8Tensor"]
    linear = [
        name
        for name, p in full.predictor.named_parameters()
        if name.startswith("blocks.") and name.endswith(".weight")
    ]
    assert inside == linear and len(inside) == 3 * 4
    blocks = [weight_bytes(pipe.predictor.blocks) for pipe in (rounded, full)]
    assert blocks[0] < 0.3 * blocks[1]
    assert weight_bytes(rounded.predictor) < 0.6 * weight_bytes(full.predictor)
    state = full.predictor.state_dict()
    for name, tensor in rounded.predictor.state_dict().items():
        if name not in inside:
            assert torch.equal(tensor, state[name]), name
    made, expected = rounded(count=8), full(count=8)
    error = (made.latents - expected.latents).norm() / expected.latents.norm()
    assert error < 0.3
    assert torch.equal(rounded.decode_codes(made.codes), made.videos)
    with pytest.raises(InputError, match="rounded weights are not saved; load with weights='full' and save"):
        rounded.save_pretrained(tmp_path / "copy")
    QuantizedVideoPipeline.from_pretrained(directory, weights="full").save_pretrained(tmp_path / "copy")


def test_blocks_are_compiled_if_asked(export: Export) -> None:
    for asked, exported in ((None, True), (True, False), (False, False)):
        pipe = QuantizedVideoPipeline.from_pretrained(export({"compile": exported}), compile=asked)
        compiled = {block._compiled_call_impl is not None for block in pipe.predictor.blocks}
        assert compiled == {asked is not False}


def test_all_networks_move(export: Export) -> None:
    pipe = QuantizedVideoPipeline.from_pretrained(export())
    assert pipe.to("meta") is pipe
    tensors = [*pipe.predictor.state_dict().values(), *pipe.autoencoder.state_dict().values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_bytes_of_weights_are_counted() -> None:
    layer = torch.nn.Linear(10, 4, dtype=torch.bfloat16)
    layer.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
    assert weight_bytes(layer) == 2 * (40 + 4) + 24


BARE = """
import sys
from importlib.machinery import PathFinder

class Without:  # looks for modules as Python does, and does not find these
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in {blocked} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import qdm_pipeline
assert "torch" not in sys.modules
from qdm_pipeline import QuantizedVideoPipeline
made = QuantizedVideoPipeline.from_pretrained({directory!r})(["odd"], seed=5)
print(made.codes.flatten().tolist(), int(made.videos.long().sum()))
"""


def test_torch_einops_numpy_and_safetensors_are_enough(export: Export) -> None:
    directory = export()
    blocked = {
        "kedro", "kedro_datasets", "mlflow", "av", "pydantic", "PIL", "sklearn", "matplotlib", "tqdm",
        "omegaconf", "yaml", "jinja2", "pandas", "scipy", "diffusers", "torchao", "click",
    }  # fmt: skip
    program = BARE.format(blocked=blocked, directory=str(directory))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = QuantizedVideoPipeline.from_pretrained(directory)(["odd"], seed=5)
    assert done.stdout.split("]")[0] + "]" == str(made.codes.flatten().tolist())
    assert int(done.stdout.split("]")[1]) == int(made.videos.long().sum())
