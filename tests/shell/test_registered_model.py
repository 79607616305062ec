"""The exported student as a model of MLflow, loaded in a process that has no other code of the project."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from qdm_pipeline.configuration import build
from qdm_pipeline.inference.pipeline import QuantizedVideoPipeline, write_pipeline
from qdm_pipeline.mlflow_runs import register
from qdm_pipeline.models.predictor import PredictorConfig, QuantizedDiffusionPredictor
from qdm_pipeline.training.generate import GenerationSettings
from qdm_pipeline.video.autoencoder import AutoencoderConfig, CausalVideoAutoencoder

ELSEWHERE = """
import json, sys
import mlflow
import pandas

mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny/1")
made = model.predict(pandas.DataFrame({"asked": ["odd", "even"]}), params={"seed": 7, "guidance": 2.0})
import qdm_pipeline
free = model.predict(pandas.DataFrame({"asked": ["", "", ""]}))
print(json.dumps([qdm_pipeline.__file__, made["codes"].tolist(), made["videos"].shape, len(free["codes"])]))
"""


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    quantizer = dict(kind="vq", codebook_size=16, codebook_dim=2, groups=2, decay=0.9, revival_threshold=0.1)
    size = dict(
        width=16, depth=1, heads=2, patch=(1, 1, 1), attention="full", embedding_dim=8, residual_dim=0,
        quantizer=quantizer,
    )  # fmt: skip
    config = dict(size=size, latent_channels=3, classes=("even", "odd"), vocabulary=(), caption_length=0)
    stored = {
        "predictor": config, "schedule": {"name": "flow", "shift": 1.0}, "latent_shape": [3, 1, 2, 2],
        "times": [1.0, 0.5], "sampler": "renoise", "path": "quantized",
    }  # fmt: skip
    predictor = QuantizedDiffusionPredictor(build(PredictorConfig, config))
    sizes = dict(
        channels=3, latent_channels=3, time_patch=4, space_patch=8, width=8, encoder_blocks=0,
        decoder_blocks=0,
    )  # fmt: skip
    autoencoder = CausalVideoAutoencoder(build(AutoencoderConfig, sizes))
    settings = dict(
        name="student", sampler=None, steps=None, times=None, low=0.0, high=1.0, eta=0.0, guidance=1.0,
        path=None, asked=None, size=None, count=10, batch=4, at_once=4, precision="fp32", weights="full",
        compile=False, keep=(),
        seed=0,
    )  # fmt: skip
    (tmp_path / "export").mkdir()
    write_pipeline(
        tmp_path / "export", predictor, stored, autoencoder, build(GenerationSettings, settings), 8
    )
    return tmp_path / "export"


def test_it_loads_elsewhere_and_samples(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment("tiny", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    register(client, experiment, run.info.run_id, "tiny", exported)
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    version = client.get_model_version("tiny", "1")
    assert (version.run_id, version.status) == (run.info.run_id, "READY")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, uri], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    file, codes, shape, free = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(tmp_path / "artifacts")
    expected = QuantizedVideoPipeline.from_pretrained(exported)(["odd", "even"], seed=7, guidance=2.0)
    assert torch.equal(torch.tensor(codes), expected.codes) and shape == [2, 3, 1, 16, 16] and free == 3
