"""What only this service can have written: secrets, tokens and signatures, all from one key."""

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
        return "whsec_" + base64.b64encode(self._digest("owner", owner)).decode()

    def token(self, purpose: str, id: str) -> str:
        """Return what nobody can guess, for a URL that works without an API token."""
        return base64.urlsafe_b64encode(self._digest(purpose, id)).decode().rstrip("=")

    def is_token(self, token: str, purpose: str, id: str) -> bool:
        """Return whether `token` is the one of this purpose and id."""
        return hmac.compare_digest(token.encode(), self.token(purpose, id).encode())

    def sign_download(self, owner: str, id: str, expiry: int) -> str:
        """Return the signature of a download that works until `expiry`, in Unix seconds."""
        return base64.b64encode(self._download_digest(owner, id, str(expiry))).decode()

    def is_download(self, owner: str, id: str, expiry: str, signature: str, now: float) -> bool:
        """Return whether a query's expiry and signature open a download."""
        try:
            # A plus sign that a client did not escape arrives as a blank.
            digest = base64.b64decode(signature.replace(" ", "+"), validate=True)
        except (binascii.Error, ValueError):
            return False
        is_signed = hmac.compare_digest(digest, self._download_digest(owner, id, expiry))
        return is_signed and expiry.isascii() and expiry.isdigit() and now < int(expiry[:20])

    def _download_digest(self, owner: str, id: str, expiry: str) -> bytes:
        key = base64.b64decode(self.owner_secret(owner).removeprefix("whsec_"))
        return hmac.digest(key, f"{owner} {id} {expiry}".encode(errors="replace"), hashlib.sha256)

    def _digest(self, purpose: str, id: str) -> bytes:
        return hmac.digest(self._key, f"{purpose}\0{id}".encode(errors="replace"), hashlib.sha256)
