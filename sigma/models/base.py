"""What a model is to the rest of the house: the whole contract, on one page.

Each model's file begins with its equations; ``# eq. 3`` at a line of code is number (3) there, the
paper's own number where the file says so. ⊙ is the product by element. Symbols of all files: B
rows, T places of packed rows, M places that are read, L columns of a padded row, n_u length of a
row, D hidden size, K items, E the (K + 1, D) item table with padding in row 0, P learned positions.

Constructor arguments of the same name mean the same everywhere, and files describe only others:
    num_items: K.
    max_length: the largest L.
    mamba: hidden size -> Mamba block.
    hidden_size, or a layer's size: D.
    num_heads: of the attention, H; divides D into heads of size d.
    inner_size: width of the feed-forward layers.
    dropout: probability, of embeddings and layer outputs.
    attention_dropout: of attention weights.
    activation: of the feed-forward layers, ``gelu`` or ``relu``.
    reinit_mamba: N(0, 0.02) within Mamba blocks, too; their own first step sizes then do nothing.
Impossible ones raise ValueError.

Models depart from RecBole in padding: its row of E is 0, gets no gradient and is no candidate.
RecBole draws it, too, and has it as a class of the softmax in training, which moves it every step.
To SASRec, GRU4Rec and Mamba4Rec that is a loss of another 1/K; those that read padding have
    padding_item: RecBole's padding; by default theirs is 0, but for the released SIGMA's.
"""

from typing import Literal

from torch import Tensor, nn

from sigma.ops.rows import Rows
from sigma.ops.scores import Logits

Sequences = tuple[Tensor, Rows]  # items (T,) and the rows they make


class Model(nn.Module):
    """Encodes packed rows: items (T,), rows, places (M,) -> states (M, D) at these places.

    Whatever works position by position (embedding, linear map, norm, dropout, gate) is written on
    (T, D) and sees no rows. What crosses positions is an operation of ``sigma.ops`` with ``rows``
    as an argument. A row's states depend on no other row.

    Attributes:
        name: what tables call the model.
        causal: a state sees no later item, so all positions may be trained at once.
        leaks_on_purpose: not causal, yet trained at all positions, as its authors did.
        reads_batch: training computes with the whole batch; several processes are another model.
        time: the times it reads, which its rows carry: of the ``history``, of the ``target``, too,
            or None. A model that reads the target's says so in every table.
        mask_token: the id that stands for an item to predict; None if the model has none.
        counted: ``count`` takes the place of training by gradients.
    """

    name: str = ""
    causal: bool = False
    leaks_on_purpose: bool = False
    reads_batch: bool = False
    time: Literal["history", "target"] | None = None
    mask_token: int | None = None
    counted: bool = False

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        """States (M, D) at places.

        Args:
            items: (T,) int64 ids from 1, the rows' items end to end; 0 behind the last row.
            rows: where they lie.
            places: (M,) int64, ascending.
        """
        raise NotImplementedError

    @property
    def logits(self) -> Logits:
        """To be called with states (M, D) -> scores (M, K), or (M, n) of some items."""
        raise NotImplementedError

    def extra_loss(
        self, items: Tensor, rows: Rows, places: Tensor, states: Tensor, twins: Sequences | None
    ) -> Tensor | None:
        """A scalar added to the loss in training; None for none.

        Args:
            items, rows, places: the batch's, as in ``forward``, places those of its targets.
            states: (M, D), what ``forward`` returned for them.
            twins: other sequences with the same targets, one a row, if the objective has them.
        """
        return None

    def item_rows(self) -> dict[str, int]:
        """Parameters that have a row an item, and the row of item 1; those after K are others'."""
        return {}

    def count(self, items: Tensor, offsets: Tensor) -> None:
        """Count the training data; of ``counted`` models alone.

        Args:
            items: (n,) item ids from 1, every user's oldest first.
            offsets: (users + 1,) int64; user u has ``items[offsets[u]:offsets[u + 1]]``.
        """
        raise NotImplementedError


def title(model: Model) -> str:
    """What messages call a model."""
    return model.name or type(model).__name__
