"""The step of a distillation as a picture, for its node in Kedro-Viz."""

from kedro.pipeline.preview_contract import MermaidPreview

# Labels are quoted: Mermaid reads brackets and parentheses in bare ones as shapes.
STEP = """flowchart LR
  noise(["noise, condition"]) --> student["student: steps 0 … k<br/>gradient at k only"]
  student --> answer(["answer x, as codes"])
  answer -->|"x_t = α x + σ ε"| look{{"noised answer x_t"}}
  look --> teacher["teacher R<br/>u + s (c − u)"]
  look --> fake["fake score F"]
  teacher & fake --> pull["g = (F − R) / mean |x − R|"]
  pull -->|"one update"| student
  answer -.->|"several updates"| learn["F learns to denoise x"]
  learn -.-> fake
  real(["real latents"]) -.->|"with a GAN"| judge["discriminator on F's features"]
  look -.-> judge
  judge -.->|"softplus(−D)"| student
"""


def distillation_step() -> MermaidPreview:
    """What happens in one step of `train_step`."""
    return MermaidPreview(content=STEP)
