"""Silos in a store, without their processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fedplat_server.store import Store


def enrol_silos(store: Store, *names: str) -> None:
    """Enrol silos by name, as an invite and its use would."""
    now = datetime.now(UTC)
    for name in names:
        secret_hash = f"secret of {name}".ljust(64, "0")
        store.silos.invite(name=name, secret_hash=secret_hash, expires_at=now + timedelta(hours=24))
        store.silos.redeem(
            name=name,
            secret_hash=secret_hash,
            now=now,
            public_key_pem=f"key of {name}",
            fingerprint=f"print of {name}".ljust(64, "0"),
            node_id=2**64 - 1 - sum(map(ord, name)),
        )
