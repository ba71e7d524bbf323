"""What clients ask about their account and about the service."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from src.service.http.problem import not_found
from src.service.replicate.objects import render_account
from src.service.service import Service

HARDWARE = {
    "cpu": "CPU",
    "gpu-t4": "Nvidia T4 GPU",
    "gpu-a40-small": "Nvidia A40 GPU",
    "gpu-a40-large": "Nvidia A40 (Large) GPU",
    "gpu-a100-large": "Nvidia A100 (80GB) GPU",
    "gpu-h100": "Nvidia H100 GPU",
}
"""Names that scripts send; whatever they say, the machine of the service does the work."""


async def get_account(request: Request, owner: str) -> Response:
    """GET /account."""
    return JSONResponse(render_account(owner))


async def list_hardware(request: Request, owner: str) -> Response:
    """GET /hardware: a bare list."""
    return JSONResponse([{"sku": sku, "name": name} for sku, name in HARDWARE.items()])


async def list_collections(request: Request, owner: str) -> Response:
    """GET /collections: there are none."""
    return JSONResponse({"previous": None, "next": None, "results": []})


async def get_collection(request: Request, owner: str) -> Response:
    """GET /collections/{slug}."""
    raise not_found("The collection")


async def get_webhook_secret(request: Request, owner: str) -> Response:
    """GET /webhooks/default/secret: each owner has one of their own."""
    service: Service = request.app.state.service
    return JSONResponse({"key": service.signer.owner_secret(owner)})
