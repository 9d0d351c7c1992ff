"""SASRec: Self-Attentive Sequential Recommendation.

Kang & McAuley, ICDM 2018.

Symbols: B rows, L positions, D hidden size, H heads, K items, P learned positions.

    X = dropout(LayerNorm(E[items] + P))                          (B, L, D)
    X = LayerNorm(X + dropout(causal attention(X)))               num_layers times,
    X = LayerNorm(X + dropout(GELU(X W1 + b1) W2 + b2))           one after the other
    score of item k = X[n_u] · E[k]

Departures from the paper, all RecBole's, whose SASRec the SIGMA authors ran: the norm follows the
residual instead of preceding it, GELU instead of ReLU, two heads, N(0, 0.02) at the start, and
cross entropy over all items instead of one sampled negative (the paper's loss is ``loss=bce``, and
``objective=all_positions`` its one pass over a sequence).
"""

from torch import Tensor, nn

from sigma.models.layers import init_normal, item_table, tied_scores
from sigma.models.transformer import Positions, TransformerLayer


class SASRec(nn.Module):
    """Items (B, L), lengths (B,) -> hidden (B, L, D).

    Args:
        num_items: K.
        max_length: largest L.
        hidden_size: D.
        num_layers: stacked transformer layers.
        num_heads: H, divides D.
        inner_size: width of the feed-forward layers.
        dropout: of embeddings and layer outputs.
        attention_dropout: of attention weights.
        activation: ``gelu`` or ``relu``.
        name: what tables call the model.
    """

    padding_invariant = True
    causal = True

    def __init__(
        self,
        num_items: int,
        max_length: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        inner_size: int = 256,
        dropout: float = 0.5,
        attention_dropout: float = 0.5,
        activation: str = "gelu",
        name: str = "sasrec",
    ) -> None:
        super().__init__()
        self.name = name
        self.items = item_table(num_items, hidden_size)
        self.positions = Positions(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                hidden_size, num_heads, inner_size, dropout, attention_dropout, activation
            )
            for _ in range(num_layers)
        )
        self.apply(init_normal)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        states = self.dropout(self.norm(self.positions(self.items(items))))
        for layer in self.layers:
            states = layer(states)
        return states

    def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:
        """States (M, D) -> scores (M, K) of items 1 … K, or (M, n) of ``items`` (M, n)."""
        return tied_scores(states, self.items.weight[1:], items)
