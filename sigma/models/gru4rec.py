"""GRU4Rec: Session-based Recommendations with Recurrent Neural Networks.

Hidasi et al., ICLR 2016, in the form of Tan et al., "Improved Recurrent Neural Networks for
Session-based Recommendations", 2016, which RecBole has and the SIGMA authors ran.

Symbols: T places of packed rows, D embedding size, G size of the GRU, K items.

    X = dropout(E[items])                                         (T, D)
    F = GRU(X), num_layers stacked, no bias                       (T, G)
    r, z = sigmoid(W x_t + U f_{t-1}),  n = tanh(W x_t + r ⊙ (U f_{t-1}))
    f_t  = (1 - z) ⊙ n + z ⊙ f_{t-1}
    Y = F W + b                                                   (T, D)
    score of item k = Y[n_u] · E[k]

Departures from the paper: an item table tied to the output instead of one-hot vectors, cross
entropy over all items instead of TOP1 over the batch's items, no session-parallel batches.
Weights start as RecBole's: the table Xavier normal, the GRU Xavier uniform, the rest as PyTorch.
Departure from RecBole, here as in all models: the table's row of padding is zero and no candidate;
RecBole draws it too, and ranks it among the items in training.
"""

import torch
from torch import Tensor, nn

from sigma.models.layers import GRU, Dropout, TiedItems, item_table
from sigma.ops import Rows, places_of, take


class GRU4Rec(TiedItems):
    """Packed items (T,) -> states (M, D) at places.

    Args:
        num_items: K.
        hidden_size: D.
        gru_size: G.
        num_layers: stacked GRU layers.
        dropout: of the embeddings.
        name: what tables call the model.
    """

    causal = True

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        gru_size: int = 128,
        num_layers: int = 1,
        dropout: float = 0.3,
        name: str = "gru4rec",
    ) -> None:
        super().__init__()
        self.name = name
        self.items = item_table(num_items, hidden_size)
        self.dropout = Dropout(dropout)
        self.gru = GRU(hidden_size, gru_size, num_layers, bias=False)
        self.out = nn.Linear(gru_size, hidden_size)
        nn.init.xavier_normal_(self.items.weight)
        with torch.no_grad():
            self.items.weight[0] = 0
        for key, weight in self.gru.named_parameters():
            # RecBole's first layer only; a deeper one stays as PyTorch draws it.
            if key.endswith("l0"):
                nn.init.xavier_uniform_(weight)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        states = self.gru(self.dropout(self.items(items)), rows)
        return self.out(take(states, places_of(places, items.shape[0])))
