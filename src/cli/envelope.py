"""What Cog puts around the inputs and outputs of every model, in the words of OpenAPI."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Door:
    """One of the two functions that Cog serves."""

    path: str
    title: str
    noun: str
    id_name: str
    prefix: str


PREDICT_DOOR = Door("/predictions", "Predict", "prediction", "prediction_id", "")
TRAIN_DOOR = Door("/trainings", "Train", "training", "training_id", "Training")


def title(name: str) -> str:
    """Return the title that Cog makes of a name."""
    return " ".join(part[:1].upper() + part[1:] for part in name.split("_"))


def reference(name: str) -> dict[str, str]:
    """Return what stands for a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def envelope_schemas(door: Door) -> dict[str, Any]:
    """Return the schemas of a door's requests, answers and errors."""
    name = title(door.noun)

    def texts(**formats: str | None) -> dict[str, Any]:
        return {
            key: {"title": title(key), "type": "string", **({"format": kind} if kind else {})}
            for key, kind in formats.items()
        }

    times = texts(created_at="date-time", started_at="date-time", completed_at="date-time")
    location = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    return {
        f"{name}Request": {
            "title": f"{name}Request",
            "type": "object",
            "properties": {**texts(id=None), "input": reference(f"{door.prefix}Input")},
        },
        f"{name}Response": {
            "title": f"{name}Response",
            "type": "object",
            "properties": {
                "input": reference(f"{door.prefix}Input"),
                "output": reference(f"{door.prefix}Output"),
                **texts(id=None, version=None, status=None, error=None, logs=None),
                **times,
                "metrics": {"title": "Metrics", "type": "object"},
            },
        },
        "Status": {
            "title": "Status",
            "description": "An enumeration.",
            "enum": ["starting", "processing", "succeeded", "canceled", "failed"],
            "type": "string",
        },
        "HTTPValidationError": {
            "title": "HTTPValidationError",
            "type": "object",
            "properties": {
                "detail": {
                    "title": "Detail",
                    "type": "array",
                    "items": reference("ValidationError"),
                }
            },
        },
        "ValidationError": {
            "title": "ValidationError",
            "required": ["loc", "msg", "type"],
            "type": "object",
            "properties": {
                "loc": {"title": "Location", "type": "array", "items": location},
                "msg": {"title": "Message", "type": "string"},
                "type": {"title": "Error Type", "type": "string"},
            },
        },
    }


def _answer(schema: Mapping[str, Any], description: str = "Successful Response") -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def envelope_paths(door: Door, *, is_streaming: bool) -> dict[str, Any]:
    """Return the paths of a server that has this door."""
    name = title(door.noun)
    invalid = _answer(reference("HTTPValidationError"), "Validation Error")
    verb = door.title.lower()
    post: dict[str, Any] = {
        "summary": door.title,
        "description": f"Run a single {door.noun} on the model",
        "operationId": f"{verb}_{door.noun}s_post",
        "requestBody": {"content": {"application/json": {"schema": reference(f"{name}Request")}}},
        "responses": {"200": _answer(reference(f"{name}Response")), "422": invalid},
    }
    if is_streaming:
        post["x-cog-streaming"] = True
    parameter = {
        "required": True,
        "schema": {"title": title(door.id_name), "type": "string"},
        "name": door.id_name,
        "in": "path",
    }
    return {
        "/": {
            "get": {
                "summary": "Root",
                "operationId": "root__get",
                "responses": {"200": _answer({})},
            }
        },
        "/health-check": {
            "get": {
                "summary": "Healthcheck",
                "operationId": "healthcheck_health_check_get",
                "responses": {"200": _answer({})},
            }
        },
        door.path: {"post": post},
        f"{door.path}/{{{door.id_name}}}/cancel": {
            "post": {
                "summary": "Cancel",
                "operationId": f"cancel_{door.noun}s__{door.id_name}__cancel_post",
                "parameters": [parameter],
                "responses": {"200": _answer({}), "422": invalid},
            }
        },
    }
