"""Mamba4Rec: Towards Efficient Sequential Recommendation with Selective State Space Models.

Liu et al., RelKD at KDD 2024.

Symbols: T places of packed rows, D hidden size, K items, n_u length of a row.

    X = LayerNorm(dropout(E[items]))                                  (T, D)
    X = LayerNorm(dropout(Mamba(X)) + X)                              num_layers times,
    X = LayerNorm(X + dropout(dropout(GELU(X W1 + b1)) W2 + b2))      one after the other
    score of item k = X[n_u] · E[k]

With one layer the residual round Mamba is left out, as in the authors' code: LayerNorm(dropout(
Mamba(X))). No positions; W1 is (D, 4D).

Initialisation, as the authors' code really does it: every linear map starts at N(0, 0.02) with a
zero bias, those in the Mamba blocks included. mamba_ssm marks dt_proj's bias ``_no_reinit``, but
the authors' ``apply`` does not read the mark, so the first step sizes are softplus(about 0) = 0.69
instead of 0.001 … 0.1. Convolution, A and D keep mamba_ssm's draw; ``reinit_mamba=False`` keeps all
of the block's.

Departures: the padding row of E stays zero and outside the scores, where RecBole draws it, too, and
holds it in the softmax as an item that never comes.
"""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from sigma.models.layers import Dropout, TiedItems, at, init_normal, item_table
from sigma.models.mamba import Mamba
from sigma.models.transformer import FeedForward
from sigma.ops import Places, Rows, places_of


def init_around_mamba(module: nn.Module, reinit_mamba: bool) -> None:
    """``init_normal`` on the module and all below it, Mamba blocks only with ``reinit_mamba``."""
    if isinstance(module, Mamba) and not reinit_mamba:
        return
    for child in module.children():
        init_around_mamba(child, reinit_mamba)
    init_normal(module)


class MambaStack(TiedItems):
    """LayerNorm(dropout(E[items])), then layers one after the other; of Mamba4Rec and both ECHOs.

    Args:
        num_items: K.
        size: D.
        dropout: of the embeddings.
        layers: (T, D), rows, places -> (T, D), or at these places (M, D); drawn from only once the
            item table has been drawn.
        reinit_mamba: see ``init_around_mamba``.
        name: what tables call the model.
    """

    def __init__(
        self,
        num_items: int,
        size: int,
        dropout: float,
        layers: Iterator[nn.Module],
        reinit_mamba: bool,
        name: str,
    ) -> None:
        super().__init__()
        self.name = name
        self.items = item_table(num_items, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        init_around_mamba(self, reinit_mamba)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        states = self.norm(self.dropout(self.items(items)))
        for layer in self.layers[:-1]:
            states = layer(states, rows)
        return self.layers[-1](states, rows, places_of(places, items.shape[0]))


class Mamba4RecLayer(nn.Module):
    """A Mamba block and its feed-forward layer, (T, D) -> (T, D), or at places (M, D).

    Args:
        size: D.
        dropout: probability.
        residual: add the block's input to its output.
        mamba: hidden size -> Mamba block.
    """

    def __init__(
        self, size: int, dropout: float, residual: bool, mamba: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.residual = residual
        self.mamba = mamba(size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(size, 4 * size, dropout, inner_dropout=dropout)

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        mixed = self.dropout(self.mamba(states, rows, places))
        if self.residual:
            mixed = mixed + at(states, places)
        return self.feed_forward(self.norm(mixed))


class Mamba4Rec(MambaStack):
    """Packed items (T,) -> states (M, D) at places.

    Args:
        num_items: K.
        mamba: hidden size -> Mamba block.
        hidden_size: D.
        num_layers: stacked layers.
        dropout: probability.
        reinit_mamba: N(0, 0.02) within the Mamba blocks, too (authors' code); their own first step
            sizes then have no effect.
        name: what tables call the model.
    """

    causal = True

    def __init__(
        self,
        num_items: int,
        mamba: Callable[[int], nn.Module],
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.3,
        reinit_mamba: bool = True,
        name: str = "mamba4rec",
    ) -> None:
        layers = (
            Mamba4RecLayer(hidden_size, dropout, num_layers > 1, mamba) for _ in range(num_layers)
        )
        super().__init__(num_items, hidden_size, dropout, layers, reinit_mamba, name)
