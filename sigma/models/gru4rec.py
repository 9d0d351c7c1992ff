"""GRU4Rec: Session-based Recommendations with Recurrent Neural Networks.

Hidasi et al., ICLR 2016, in the form of Tan et al., "Improved Recurrent Neural Networks for
Session-based Recommendations", 2016, which RecBole has and the SIGMA authors ran.

Symbols: G size of the GRU.

    X = dropout(E[items])                                         (T, D)                        (1)
    F = GRU(X), num_layers stacked, no bias                       (T, G)                        (2)
    r, z = sigmoid(W x_t + U f_{t-1}),  n = tanh(W x_t + r ⊙ (U f_{t-1}))
    f_t  = (1 - z) ⊙ n + z ⊙ f_{t-1}
    Y = F W + b                                                   (T, D)                        (3)
    score of item k = Y[n_u] · E[k]

Departures from the paper: an item table tied to the output instead of one-hot vectors, cross
entropy over all items instead of TOP1 over the batch's items, no session-parallel batches.
Weights start as RecBole's: the table Xavier normal, the GRU Xavier uniform, the rest as PyTorch.
"""

from typing import Any

from torch import Tensor, nn

from sigma.models.layers import GRU, TiedItems, clear_padding
from sigma.ops import Rows, places_of, take


class GRU4Rec(TiedItems):
    """Packed items (T,) -> states (M, D) at places; ``gru_size`` is G."""

    causal = True

    def __init__(
        self, num_items: int, gru_size: int = 128, num_layers: int = 1, **options: Any
    ) -> None:
        super().__init__(num_items, **options)
        hidden_size = self.items.embedding_dim
        self.gru = GRU(hidden_size, gru_size, num_layers=num_layers, bias=False)
        self.out = nn.Linear(gru_size, hidden_size)
        nn.init.xavier_normal_(self.items.weight)
        clear_padding(self.items)
        for key, weight in self.gru.named_parameters():
            if key.endswith("l0"):  # RecBole's first layer only
                nn.init.xavier_uniform_(weight)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        states = self.gru(self.dropout(self.items(items)), rows)  # eq. 1, 2: (T, G)
        return self.out(take(states, places_of(places, items.shape[0])))  # eq. 3: (M, D)
