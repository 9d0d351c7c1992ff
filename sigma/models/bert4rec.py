"""BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations.

Sun et al., CIKM 2019, in RecBole's form, which the SIGMA authors ran.

Symbols: c output bias.

    X = dropout(LayerNorm(E[items] + P))                          (T, D)                        (1)
    X = LayerNorm(X + dropout(attention(X) over the row))         num_layers times,             (2)
    X = LayerNorm(X + dropout(GELU(X W1 + b1) W2 + b2))           one after the other           (3)
    Y = LayerNorm(GELU(X W + b))                                  (T, D)                        (4)
    score of item k at a masked position t = Y[t] · E[k] + c[k]                                 (5)

"Time to Split" (Gusak et al., RecSys 2025) tuned a form on Hugging Face's ``BertModel``, here
``head_map=false padding_item=true``: Y = X and c = 0, and the softmax of the training has padding
and the mask token as classes. Its embedding of one token type is not here: P holds the same sum.

``objective=cloze`` puts mask tokens, id K + 1, into the items: in training in place of those to be
predicted, in evaluation one after the last item, so that a row then holds up to L + 1 positions.

Departures: the mask token is not scored (in the authors' code it is, and padding). An epoch masks
every training history five times (``objective.copies``), and what is masked is predicted; RecBole
leaves some of it out (``objective.recbole_masks``). Evaluation reads all L items before the mask,
so there are L + 1 positions; the authors' code keeps the last L - 1, RecBole all but the oldest of
every row, however short. N(0, 0.02) at the start as in RecBole; the authors cut it off at two
deviations.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.layers import encode, init_normal
from sigma.models.transformer import SelfAttention, Transformer
from sigma.ops import Rows, places_of
from sigma.ops.scores import TiedScores


class BERT4Rec(Transformer):
    """Packed items (T,) -> states (M, D) at places; arguments as in ``sigma.models.base``.

    There is a position more than ``max_length``, for the mask token, K + 1.

    Args:
        head_map: whether there are equation 4 and c; None is true.
        padding_item: padding and the mask token are classes of the softmax in training.
    """

    def __init__(
        self,
        num_items: int,
        max_length: int,
        head_map: bool | None = None,
        padding_item: bool | None = None,
        **options: Any,
    ) -> None:
        both_ways = functools.partial(SelfAttention, causal=False)
        super().__init__(num_items, max_length + 1, both_ways, extra=1, **options)
        self.mask_token = num_items + 1
        self.padding_item = bool(padding_item)
        self.head_map = head_map is None or head_map
        if self.head_map:
            hidden_size = self.items.embedding_dim
            self.out = nn.Linear(hidden_size, hidden_size)
            self.out_norm = nn.LayerNorm(hidden_size, eps=1e-12)
            self.bias = nn.Parameter(torch.zeros(num_items))
        self.apply(init_normal)

    def item_rows(self) -> dict[str, int]:
        return super().item_rows() | ({"bias": 0} if self.head_map else {})

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        states = self.embedding(items, rows)  # eq. 1
        states = encode(self.layers, states, rows, places_of(places, items.shape[0]))  # eq. 2, 3
        return self.out_norm(F.gelu(self.out(states))) if self.head_map else states  # eq. 4

    @property
    def tied(self) -> TiedScores:
        table = self.items.weight
        others = torch.cat([table[:1], table[-1:]]) if self.padding_item else None
        return TiedScores(table[1:-1], self.bias if self.head_map else None, others)  # eq. 5
