"""What one key signs: the secret of each owner, their downloads, and sessions of the page."""

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

    def sign_session(self, session: str) -> str:
        """Return the signature of a session of the page, for its cookie."""
        return base64.urlsafe_b64encode(_digest(self._key, f"session\0{session}")).decode()

    def is_session(self, session: str, signature: str) -> bool:
        """Return whether a cookie's signature is the one of its session."""
        return hmac.compare_digest(signature.encode(), self.sign_session(session).encode())

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
