"""How the global batch is split over devices and micro-batches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """train_batch_size = world_size x micro_batch_size x gradient_accumulation_steps, exactly."""

    world_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int

    @property
    def global_batch_size(self) -> int:
        return self.world_size * self.micro_batch_size * self.gradient_accumulation_steps


def plan_batches(*, train_batch_size: int, micro_batch_size: int, num_devices: int) -> BatchPlan:
    """Split the global batch over as many devices as divide it, in the largest micro-batches."""
    world_size = _largest_divisor(train_batch_size, num_devices)
    share = train_batch_size // world_size
    micro = _largest_divisor(share, micro_batch_size)
    return BatchPlan(world_size, micro, share // micro)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
