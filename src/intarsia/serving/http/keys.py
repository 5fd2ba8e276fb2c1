"""API keys: who may ask (infer), and who may also change the tasks (admin).

A keys file has one key a line, `role:key`; empty lines and lines that begin with `#` are passed over. Only digests of the
keys are held in memory, and a key that comes is compared with all of them, each in constant time, so that the time of
an answer says nothing about a key.
"""

import hashlib
import hmac
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from intarsia.errors import ConfigError

SHORTEST = 16
"""Characters of the shortest key that is accepted."""


class Role(Enum):
    """What a key allows. An admin may do all that infer may."""

    INFER = "infer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that open a server, as digests."""

    digests: tuple[tuple[bytes, Role], ...]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """The keys of a file. ConfigError where others may read the file, where a line is not a key, or where none is."""
        if not path.is_file():
            raise ConfigError(f"no keys file at {path}; write one with lines `infer:KEY` and `admin:KEY`")
        if stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH:
            raise ConfigError(f"everybody on this machine may read the keys file {path}; run: chmod 600 {path}")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise ConfigError(
                f"the keys file {path} is not text in UTF-8; write lines `infer:KEY` and `admin:KEY`"
            ) from None
        found: dict[bytes, Role] = {}
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                digest, role = _parse(line.strip(), f"{path}, line {number}")
                if found.setdefault(digest, role) is not role:
                    raise ConfigError(
                        f"{path}, line {number}: this key has another role above; keep one of the two lines"
                    )
        if not found:
            raise ConfigError(f"the keys file {path} holds no key; write lines `infer:KEY` and `admin:KEY`")
        return cls(tuple(found.items()))

    def role(self, key: str) -> Role | None:
        """The role of a key; None for one that is not ours."""
        given, role = _digest(key), None
        for digest, its_role in self.digests:  # every one, whatever was found: the time must not tell
            if hmac.compare_digest(given, digest):
                role = its_role
        return role


def _parse(line: str, place: str) -> tuple[bytes, Role]:
    name, colon, key = line.partition(":")
    key = key.strip()
    if not colon or name.strip() not in {role.value for role in Role}:
        raise ConfigError(f"{place}: expected `infer:KEY` or `admin:KEY`")  # never the line: it may hold a key
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{place}: a key is at least {SHORTEST} ASCII characters without spaces; try: openssl rand -hex 24"
        )
    return _digest(key), Role(name.strip())


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def presented(headers: Mapping[str, str]) -> str | None:
    """The key of a request: of `Authorization: Bearer KEY`, else of `X-API-Key: KEY`. headers: by their names in small letters."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else headers.get("x-api-key")
