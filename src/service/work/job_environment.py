"""The variables of the operator's environment that a job reads, to hand on to another machine."""

from collections.abc import Mapping

JOB_VARIABLES = (
    # train and serve
    *("BASE_MODEL", "BASE_MODEL_CACHE", "BASE_MODEL_URL", "DTYPE", "BASE_WEIGHTS", "COMPILE"),
    *("HF_TOKEN", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES"),
    # train
    *("NUM_PROCESSES", "ZERO_STAGE", "DEVICE_MEMORY_GB", "DETERMINISTIC", "CHECKPOINT_DIR"),
    *("FROZEN_SECONDS", "NUM_NODES", "RENDEZVOUS"),
    # serve
    *("COG_WEIGHTS", "WEIGHTS_DIR", "WEIGHTS_CACHE", "ALLOW_PRIVATE_URLS", "BASE_MODEL_IN_4BIT"),
    *("LOOK_AHEAD", "KV_CACHE_GB", "MAX_CONTEXT", "TENSOR_PARALLEL"),
)


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are set and that a job reads."""
    return {name: environ[name] for name in JOB_VARIABLES if name in environ}
