"""FEARec's contrastive and frequency terms, beside the loss of a step.

Du et al., SIGIR 2023; see ``sigma.models.fearec``.

States a, b (m samples each) are compared of: the step's own pass and a second one with other
dropout (``un``), the step's own and another sequence's with the same target (``su``), both
(``us``), or the second pass and the other sequence (``us_x``, the authors' choice). The terms are
    weight · mean over the 2 m states z of -log(exp(z · z' / τ) / Σ exp(z · z" / τ))            (1)
    frequency weight · mean |F(a) - F(b)| along the hidden axis                                 (2)
z' the partner of z, z" all but z itself. Rows of one target stay each other's negatives, as in the
authors' code; (2), 0.1 in their code, is off in their published command.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.errors import UserError
from sigma.models.base import Sequences
from sigma.models.layers import spectrum
from sigma.models.transformer import Transformer
from sigma.ops import Rows

PAIRS: dict[str | None, list[tuple[str, str]]] = {
    None: [],
    "un": [("step", "view")],
    "su": [("step", "twin")],
    "us": [("step", "view"), ("step", "twin")],
    "us_x": [("view", "twin")],
}


def info_nce(a: Tensor, b: Tensor, temperature: float, similarity: str) -> Tensor:
    """Each of the 2 M states of a and b, (M, D), picks its partner out of all others."""
    states = torch.cat([a, b])
    if similarity == "cos":
        states = F.normalize(states, dim=-1)
    index = torch.arange(len(states), device=states.device)
    scores = (states @ states.T / temperature).masked_fill(index[:, None] == index, -math.inf)
    return F.cross_entropy(scores, index.roll(len(a)))  # eq. 1


class Contrast(Transformer):
    """A transformer with these terms; other arguments as in ``sigma.models.base``.

    Args:
        contrast: ``un``, or with ``objective=next_item_twins`` ``su``, ``us``, ``us_x``; or None.
        similarity: ``dot`` or ``cos``, of contrasted states.
        temperature: τ.
        contrast_weight: of pairs of two passes (the authors' lmd).
        semantic_weight: of pairs with another sequence (lmd_sem).
        frequency_weight: of the frequency term.
    """

    def __init__(
        self,
        *args: Any,
        contrast: str | None = None,
        similarity: str = "dot",
        temperature: float = 1.0,
        contrast_weight: float = 0.1,
        semantic_weight: float = 0.1,
        frequency_weight: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if contrast not in PAIRS:
            raise ValueError(f"contrast='{contrast}' must be un, su, us, us_x or None.")
        if similarity not in ("dot", "cos"):
            raise ValueError(f"similarity='{similarity}' must be dot or cos.")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0.")
        if frequency_weight and contrast is None:
            raise ValueError(
                f"frequency_weight={frequency_weight} needs pairs to compare: contrast."
            )
        self.similarity = similarity
        self.temperature = temperature
        self.frequency_weight = frequency_weight
        weights = {"view": contrast_weight, "twin": semantic_weight}  # by the second of a pair
        pairs = [(a, b, weights[b]) for a, b in PAIRS[contrast]]
        self.pairs = [pair for pair in pairs if pair[2] or frequency_weight]

    def extra_loss(
        self, items: Tensor, rows: Rows, places: Tensor, states: Tensor, twins: Sequences | None
    ) -> Tensor | None:
        names = {name for a, b, _ in self.pairs for name in (a, b)}
        if not names:
            return None
        compared = {"step": states}
        # Each in a pass of its own, as in the authors' code: the rows of a pass share their delays.
        if "view" in names:
            compared["view"] = self(items, rows, places)
        if "twin" in names:
            if twins is None:
                raise UserError(
                    "The model's contrast compares sequences with the same target, which this "
                    "objective does not bring; take next_item_twins, or contrast=un or null."
                )
            compared["twin"] = self(*twins, twins[1].offsets[1:] - 1)
        loss = states.new_zeros(())
        for a, b, weight in self.pairs:
            first, second = compared[a], compared[b]
            if weight:
                loss = loss + weight * info_nce(first, second, self.temperature, self.similarity)
            if self.frequency_weight:
                gap = spectrum(first - second, norm="ortho").abs().mean()  # eq. 2
                loss = loss + self.frequency_weight * gap
        return loss
