"""The file of a secret that all ranks know and the network does not."""

from __future__ import annotations

from pathlib import Path

from dither.errors import ConfigError
from dither.reduce.protections.keys import ClusterSecret


def cluster_secret(path: Path | None) -> ClusterSecret | None:
    """Return the secret in a file, None for none.

    Raises:
        ConfigError: The file cannot be read, others may read it, or it is too short.
    """
    if path is None:
        return None
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(
            expected=f"a secret in {path}",
            got=(error.strerror or type(error).__name__).lower(),
            fix=f"make one: head -c 32 /dev/urandom > {path}; chmod 600 {path}; then copy it to "
            "all hosts",
        ) from error
    if mode & 0o077:
        raise ConfigError(
            expected=f"a secret in {path} that its owner alone can read",
            got=f"mode {mode & 0o777:o}",
            fix=f"chmod 600 {path}, and make a new secret if others may have read it",
        )
    return ClusterSecret(content)
