"""The Inception score's formula (Salimans et al. 2016, arXiv:1606.03498) on any classifier's logits."""

import torch
from torch import Tensor


def class_score(logits: Tensor, split_of: Tensor | None = None) -> float:
    """``exp(E[KL(p(y | x) ‖ p(y))])`` of ``logits`` [N, K]: from 1 to K, more is better.

    With ``split_of`` [N], the number of each sample's split, the mean over splits. Fewer samples a split
    mean a lower score, so scores with different splits are not comparable.
    """
    if split_of is not None:
        return float(
            torch.tensor([class_score(logits[split_of == part]) for part in split_of.unique()]).mean()
        )
    logarithms = logits.double().log_softmax(1)
    marginal = logarithms.logsumexp(0) - torch.tensor(len(logits), dtype=torch.float64).log()
    return float((logarithms.exp() * (logarithms - marginal)).sum(1).mean().exp())
