"""Wiring of ``preprocess``."""

from kedro.pipeline import Pipeline, node, pipeline

from qdm_pipeline.pipelines.preprocess import nodes
from qdm_pipeline.pipelines.train.nodes import plot_curves


def create_pipeline() -> Pipeline:
    """Raw videos to clips, autoencoder, latents and the classifier that judges."""
    return pipeline(
        [
            node(
                nodes.cut_clips,
                ["params:clips", "raw_videos", "clip_runs", "params:world_size"],
                ["clips", "skipped_videos"],
                name="cut_clips",
            ),
            node(
                nodes.train_autoencoder,
                [
                    "params:autoencoder",
                    "clips",
                    "model_runs",
                    "params:world_size",
                    "params:launch",
                    "params:pretrained_autoencoder",
                ],
                "autoencoder",
                name="train_autoencoder",
            ),
            node(
                nodes.encode_clips,
                [
                    "params:encode",
                    "clips",
                    "autoencoder",
                    "latent_runs",
                    "params:world_size",
                    "params:launch",
                ],
                "latents",
                name="encode_clips",
            ),
            node(
                nodes.train_classifier,
                ["params:classifier", "clips", "model_runs", "params:world_size", "params:launch"],
                "classifier",
                name="train_classifier",
            ),
            node(plot_curves, "autoencoder", "autoencoder_curves", name="plot_autoencoder"),
            node(plot_curves, "classifier", "classifier_curves", name="plot_classifier"),
            node(
                nodes.show_reconstructions,
                ["clips", "autoencoder"],
                "reconstructions",
                name="show_reconstructions",
            ),
        ],
        namespace="preprocess",
        prefix_datasets_with_namespace=False,
    )
