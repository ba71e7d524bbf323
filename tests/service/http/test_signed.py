"""What the service signs opens exactly what it was signed for, until then, and nothing else."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.service.http.signed import Signer

signer = Signer(b"k" * 32)


def test_the_secret_of_an_owner_is_one_that_every_client_takes():
    for number in range(300):
        secret = signer.owner_secret(f"owner{number}")
        prefix, key = secret.split("_")  # replicate.Webhooks.validate does this
        assert prefix == "whsec"
        assert len(base64.b64decode(key, validate=True)) == 32
    assert signer.owner_secret("ann") == signer.owner_secret("ann")
    assert len({signer.owner_secret("ann"), signer.owner_secret("bob")}) == 2
    assert Signer(b"x" * 32).owner_secret("ann") != signer.owner_secret("ann")


def sign(owner: str, id: str, expiry: int) -> str:
    """Sign a download as the API describes it, with the secret that an owner can ask for."""
    key = base64.b64decode(signer.owner_secret(owner).removeprefix("whsec_"))
    digest = hmac.new(key, f"{owner} {id} {expiry}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def test_a_download_is_open_until_its_expiry():
    signature = sign("ann", "abc", 2000)
    assert signer.is_download("ann", "abc", "2000", signature, now=1999)
    assert signer.is_download("ann", "abc", "2000", signature.replace("+", " "), now=1999)
    assert not signer.is_download("ann", "abc", "2000", signature, now=2000)


@pytest.mark.parametrize(
    ("owner", "id", "expiry"),
    [
        ("bob", "abc", "2000"),
        ("ann", "abd", "2000"),
        ("ann", "abc", "2001"),
        ("ann", "abc", "02000"),
        ("ann", "abc", ""),
        ("ann", "abc", "２０００"),
        ("ann", "abc", "9" * 5000),
    ],
)
def test_a_signature_opens_nothing_else(owner: str, id: str, expiry: str):
    signature = sign("ann", "abc", 2000)
    assert not signer.is_download(owner, id, expiry, signature, now=0)


@given(st.text())
def test_no_text_opens_a_download(signature: str):
    assert not signer.is_download("ann", "abc", "2000", signature, now=0)
