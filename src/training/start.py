"""Starting what takes the steps of a run."""

from src.model.recompute import decoder_layers
from src.training.deepspeed_config import build_deepspeed_config
from src.training.deepspeed_engine import build_engine
from src.training.gradients import AdapterModule, GradientSum
from src.training.loop import Run
from src.training.lora_model import LoraModel
from src.training.plan.plan import TrainingPlan
from src.training.trainers import ReplicatedTrainer, Trainer, Zero3Trainer


def start_trainer(plan: TrainingPlan, run: Run, adapted: LoraModel) -> Trainer:
    """Start the engine; without shared weights, the longest micro-batch is tried before."""
    config, learning_rate = build_deepspeed_config(plan), plan.settings.learning_rate
    parameters = adapted.parameters
    if adapted.is_sharded:
        engine = build_engine(adapted.loss, parameters, config, learning_rate)
        return Zero3Trainer(engine, run.batch)
    num_layers = len(decoder_layers(adapted.model))
    gradient_sum = GradientSum(
        adapted.loss,
        parameters,
        make_batch=run.batch,
        recomputed_layers=min(plan.num_recomputed, num_layers),
        max_tokens=plan.max_tokens,
        say=lambda line: print(f"rank {run.rank}: {line}", flush=True),
    )
    gradient_sum.add(run.step_plan.longest_micro_batch(run.rank), run.train_data)
    gradient_sum.clear()
    engine = build_engine(AdapterModule(parameters), parameters, config, learning_rate)
    return ReplicatedTrainer(engine, gradient_sum, adapted.loss)
