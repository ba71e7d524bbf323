"""The decoder over packed rows, with the LoRA matrices that PEFT attached to the base model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from src.model.core.attention import Spans
from src.model.core.decoder import Decoder
from src.model.core.families.switches import Switches
from src.model.core.layers import Projection
from src.model.core.lora import TrainedLora, Updates
from src.model.head_loss import head_loss


class TrainedDecoder(Decoder):
    """Reads spans that do not see each other; gradients go to the LoRA matrices alone."""

    def __init__(self, model: Any, switches: Switches, projection: type[Projection]) -> None:
        super().__init__(model, switches, projection)
        self._model = model
        self._lora = [[TrainedLora(p) for p in layer.projections] for layer in self.layers]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the LoRA matrices."""
        return [matrix for layer in self._lora for part in layer for matrix in part.parameters]

    def sum_loss(
        self,
        ids: Tensor,  # (tokens,)
        positions: Tensor,  # (tokens,)
        spans: Spans,
        targets: Tensor,  # (target tokens,), their places in the row
        labels: Tensor,  # (target tokens,)
        loss_weights: Tensor,  # (target tokens,)
    ) -> Tensor:
        """Return the weighted sum of the negative log likelihoods, in float32."""
        self.grow(spans.longest)
        hidden = self.hidden(
            *(ids, positions, spans),
            self.updates(len(ids), with_dropout=self._model.training),
        )
        # Only target tokens go through the head, the widest layer.
        hidden = self.head_input(hidden.index_select(0, targets))
        return head_loss(
            hidden,
            self.head.modules[0].weight,
            labels,
            loss_weights,
            cap=self.switches.logit_cap,
        )

    def updates(self, num_tokens: int, *, with_dropout: bool = False) -> Callable[[int], Updates]:
        """Return what gives the updates of each layer in a pass."""

        def of_layer(number: int) -> Updates:
            parts = self._lora[number]
            return Updates(*(part.update(num_tokens, with_dropout=with_dropout) for part in parts))

        return of_layer
