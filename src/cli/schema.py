"""The inputs and outputs of train.py and predict.py, as the JSON schemas that Cog's server reads.

`cog build` writes them into an image. Here Cog's own reader of signatures gives them, and the
document holds what its server looks at: the four components, their choices, the streaming mark.
"""

import inspect
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from cog._adt import InputField, PredictorInfo, Repetition
from cog._inspector import create_predictor

from src.files.atomic import replacing_file

PREDICTOR = "predict.py:Predictor"
CONCURRENT_PREDICTOR = "predict.py:ConcurrentPredictor"


def build_schema(predictor: str = PREDICTOR) -> dict[str, Any]:
    """Return the OpenAPI document of `train` and of one predictor."""
    class_name = predictor.rpartition(":")[2]
    schemas = {
        **_components(create_predictor("predict", class_name), prefix=""),
        **_components(create_predictor("train", "train"), prefix="Training"),
    }
    run = getattr(import_module("predict"), class_name).run
    # Cog gathers what an asynchronous function yields, and sends it at the end.
    post = {"x-cog-streaming": True} if inspect.isgeneratorfunction(run) else {}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {"/predictions": {"post": post}, "/trainings": {"post": {}}},
        "components": {"schemas": schemas},
    }


def write_schema(root: Path) -> None:
    """Write the document where Cog's server looks for it, for the predictor it will run."""
    path = root / ".cog" / "openapi_schema.json"
    path.parent.mkdir(exist_ok=True)
    predictor = os.environ.get("COG_PREDICT_TYPE_STUB", PREDICTOR)
    # A server that is already running may be reading it.
    with replacing_file(path, is_durable=False) as partial:
        partial.write_text(json.dumps(build_schema(predictor)))


def _components(info: PredictorInfo, *, prefix: str) -> dict[str, Any]:
    fields = info.inputs.values()
    inputs = {
        "title": f"{prefix}Input",
        "type": "object",
        "properties": {field.name: _property(field) for field in fields},
        "required": [field.name for field in fields if _is_required(field)],
    }
    choices = {
        field.name: {"title": field.name, "enum": field.choices, **field.type.json_type()}
        for field in fields
        if field.choices
    }
    return {f"{prefix}Input": inputs, f"{prefix}Output": info.output.json_type(), **choices}


def _property(field: InputField) -> dict[str, Any]:
    schema: dict[str, Any] = {"x-order": field.order, "description": field.description}
    if field.choices:
        schema["allOf"] = [{"$ref": f"#/components/schemas/{field.name}"}]
    else:
        schema |= {"title": field.name.replace("_", " ").title(), **field.type.json_type()}
    if not _is_required(field):
        schema["default"] = field.default
    if field.type.repetition is Repetition.OPTIONAL:
        schema["nullable"] = True
    for name, limit in (("minimum", field.ge), ("maximum", field.le)):
        if limit is not None:
            # Cog has made a 1 into 1.0, which a refusal would quote.
            schema[name] = int(limit) if limit == int(limit) else limit
    return schema


def _is_required(field: InputField) -> bool:
    return field.default is None and field.type.repetition is Repetition.REQUIRED
