"""The OpenAPI document of train.py and predict.py, in the form that `cog build` writes.

See https://cog.run/docs for the rules.
"""

import json
import os
from pathlib import Path
from typing import Any

from src.cli.envelope import PREDICT_DOOR, TRAIN_DOOR, Door, envelope_paths, envelope_schemas
from src.cli.signature import read_signature

PREDICTOR = "predict.py:Predictor"
CONCURRENT_PREDICTOR = "predict.py:ConcurrentPredictor"


def build_schema(
    train_source: Path, predict_source: Path, *, predictor: str = "Predictor"
) -> dict[str, Any]:
    """Return the document for both files; predict is the one of this class.

    Raises ValueError for a signature that Cog would read as something else than it says.
    """
    schema = _door_schema(predict_source, f"{predictor}.predict", PREDICT_DOOR)
    train = _door_schema(train_source, "train", TRAIN_DOOR)
    schema["paths"] = {**train["paths"], **schema["paths"]}
    for name, component in train["components"]["schemas"].items():
        known = schema["components"]["schemas"].setdefault(name, component)
        if known != component:
            raise ValueError(f"train and predict declare {name!r} differently; Cog keeps one")
    return schema


def write_schema(root: Path) -> Path:
    """Write the document where Cog's server looks for it, for the predictor it will run."""
    predictor = os.environ.get("COG_PREDICT_TYPE_STUB", PREDICTOR).rpartition(":")[2]
    path = root / ".cog" / "openapi_schema.json"
    path.parent.mkdir(exist_ok=True)
    schema = build_schema(root / "train.py", root / "predict.py", predictor=predictor)
    path.write_text(json.dumps(schema))
    return path


def _door_schema(source_path: Path, function_name: str, door: Door) -> dict[str, Any]:
    signature = read_signature(source_path, function_name)
    schemas = {
        f"{door.prefix}Input": {"title": f"{door.prefix}Input", **signature.inputs},
        f"{door.prefix}Output": signature.output,
        **signature.enums,
        **envelope_schemas(door),
    }
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.23.1"},
        "paths": envelope_paths(door, is_streaming=signature.is_streaming),
        "components": {"schemas": schemas},
    }
