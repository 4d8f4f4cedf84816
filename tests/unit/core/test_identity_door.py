from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fedplat.identity

DOOR = {
    "Certified",
    "ClockSkewError",
    "Invite",
    "Label",
    "NonceCache",
    "SignedRequest",
    "TlsFiles",
    "ca_fingerprint",
    "check_ca",
    "enc",
    "ensure_authority",
    "ensure_signing_key",
    "ensure_tls",
    "fingerprint",
    "issue_tls",
    "load_certified",
    "load_key",
    "load_public",
    "new_key",
    "new_nonce",
    "parse_fingerprint",
    "parse_headers",
    "public_pem",
    "read_invite",
    "save_key",
    "secret_hash",
    "show_fingerprint",
    "sign",
    "sign_request",
    "verify",
    "verify_request",
}


def test_the_public_door() -> None:
    assert set(fedplat.identity.__all__) == DOOR
    assert all(hasattr(fedplat.identity, name) for name in DOOR)


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, fedplat.identity, fedplat.home; "
        "print(*{'torch', 'flwr', 'sqlalchemy', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    repo = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
