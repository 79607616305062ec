"""A run's directory: the same request meets it again, another one does not."""

from pathlib import Path

from qdm_pipeline.handle import Handle
from qdm_pipeline.run import Run


def test_settings_inputs_and_form_of_the_result_name_the_directory(tmp_path: Path) -> None:
    def directory(digest: str = "d", form: object = None, **settings: int) -> Path:
        return Run.create(
            "kind", settings, {"input": Handle("kind", tmp_path, digest)}, tmp_path, form
        ).directory

    requests = [
        dict(a=1),
        dict(a=2),
        dict(a=1, digest="e"),
        dict(a=1, form=["x"]),
        dict(a=1, form=["x", "y"]),
    ]
    directories = [directory(**request) for request in requests]
    assert len(set(directories)) == len(requests)
    assert directories == [directory(**request) for request in requests]
