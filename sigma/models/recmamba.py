"""RecMamba: one bare Mamba block over item and position embeddings.

Yang et al., "Uncovering Selective State Space Model's Capabilities in Lifelong Sequential
Recommendation", 2024, and its public code. MambaRec* (Alokam Gnaneswara Sai, "State-Space Models
for Large Sequence Modeling in Sequential Recommendation", 2024) is the same class with a smaller D.

    X = dropout(sqrt(D) E[items] + P)                             (T, D)                        (1)
    H = Mamba(X)                                                  (T, D)                        (2)
    score of item k = H[n_u] · E[k]

No norm, no residual, no feed-forward. Trained at every position at once with binary cross entropy
and one uniform negative a position (``objective=all_positions``, ``loss=bce``).

As in the authors' code: every parameter of two or more dimensions starts Xavier normal, Mamba's
A_log included, so all N states start with A near -1, not mamba_ssm's -1 … -N.

Departures from the authors' code:
- Rows have no padding; theirs have it on the left: their Mamba reads L - n_u copies of one random
  vector, with positions, before the first item.
- Positions count from the first item kept; theirs count so that the last item is always L - 1.
- Their code fixes Mamba's size at 64, whatever the embeddings'; here both are D.
"""

from typing import Any

from torch import Tensor, nn

from sigma.models.layers import clear_padding
from sigma.models.mamba import MambaFactory
from sigma.models.transformer import PositionedItems
from sigma.ops import Rows, places_of


def init_xavier(model: nn.Module) -> None:
    """The authors' start of parameters of two or more dimensions; padding stays zero."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            clear_padding(module)


class RecMamba(PositionedItems):
    """Packed items (T,) -> states (M, D) at places; arguments as in ``sigma.models.base``."""

    causal = True

    def __init__(
        self, num_items: int, max_length: int, mamba: MambaFactory, **options: Any
    ) -> None:
        super().__init__(num_items, max_length, **options)
        self.mamba = mamba(self.items.embedding_dim)
        init_xavier(self)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        states = self.scaled_embedding(items, rows)  # eq. 1
        return self.mamba(states, rows, places_of(places, items.shape[0]))  # eq. 2
