"""Noise for the draw of a token, which depends on seed, position and token alone."""

import numpy as np
import torch

_MASK = 0xFFFFFFFF
_ODD = 0x9E3779B9


class Noise:
    """Gumbel noise for the tokens of a vocabulary; the best noisy score is a softmax draw.

    No state is carried along, so that neither neighbours nor their number change a draw.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._mixed_ids = _mix(torch.arange(1, vocab_size + 1, device=device) * _ODD & _MASK)

    def gumbel(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the noise of each row (rows, vocabulary) for keys and positions (rows,)."""
        counter = _mix((keys ^ _mix(positions * _ODD & _MASK)) & _MASK)
        bits = _mix(self._mixed_ids ^ counter[:, None])
        # 23 bits and a half: neither 0 nor 1, whose logarithms are no numbers.
        uniform = (bits >> 9).float().add_(0.5).mul_(2**-23)
        return uniform.log_().neg_().log_().neg_()


def noise_key(seed: int) -> int:
    """Return the key of a seed; every whole number is one."""
    return int(np.random.SeedSequence(seed % 2**64).generate_state(1)[0])


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Spread 32-bit numbers over all 32 bits (the lowbias32 hash), held in 64."""
    x = x ^ (x >> 16)
    x = x.mul_(0x7FEB352D).bitwise_and_(_MASK)
    x = x.bitwise_xor_(x >> 15)
    x = x.mul_(0x846CA68B).bitwise_and_(_MASK)
    return x.bitwise_xor_(x >> 16)
