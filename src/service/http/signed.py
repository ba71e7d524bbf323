"""The secret of each owner, made from one key, and the downloads that are signed with it."""

import base64
import binascii
import hashlib
import hmac


class Signer:
    """Makes and checks them; the key never leaves it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def owner_secret(self, owner: str) -> str:
        """Return the secret that signs an owner's webhooks and downloads."""
        # Standard base64: replicate.Webhooks.validate takes no key with a second "_" in it.
        return "whsec_" + base64.b64encode(_digest(self._key, f"owner\0{owner}")).decode()

    def is_download(self, owner: str, id: str, expiry: str, signature: str, now: float) -> bool:
        """Return whether a query's expiry and signature open a download."""
        try:
            # A plus sign that a client did not escape arrives as a blank.
            digest = base64.b64decode(signature.replace(" ", "+"), validate=True)
        except (binascii.Error, ValueError):
            return False
        key = base64.b64decode(self.owner_secret(owner).removeprefix("whsec_"))
        is_signed = hmac.compare_digest(digest, _digest(key, f"{owner} {id} {expiry}"))
        return is_signed and expiry.isascii() and expiry.isdigit() and now < int(expiry[:20])


def _digest(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(errors="replace"), hashlib.sha256)
