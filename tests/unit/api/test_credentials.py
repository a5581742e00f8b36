"""Credentials from files: tokens, keys of JSON web tokens, certificates; and what of them is refused."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from apiworld import World
from etl.api.access import keys
from etl.api.access.identity import Identity, Role
from etl.api.access.limits import Bucket
from etl.api.access.vault import IDLE_SECONDS, LONGEST_SECONDS, Vault
from etl.errors import SettingsError
from pretend import Clock

pytestmark = pytest.mark.unit

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
SECRET = b"s" * 40
GOOD = {"iss": "https://sso.example", "aud": "etl-file-sync", "sub": "ann@example", "role": "operator"}


def key_set() -> dict[str, Any]:
    secret = base64.urlsafe_b64encode(SECRET).decode().rstrip("=")
    return {
        "keys": [
            {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key())), "kid": "r", "alg": "RS256"},
            {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key())), "kid": "e", "alg": "ES256"},
            {"kty": "oct", "k": secret, "kid": "h", "alg": "HS256"},
        ]
    }


@pytest.fixture
def web(tmp_path: Path) -> Any:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(key_set()))
    made = World(tmp_path, ETL_API_JWT_KEYS_FILE=str(path), ETL_API_JWT_ISSUER=GOOD["iss"])
    yield made
    made.close()


def signed(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", head: Any = None, **claims: Any) -> str:
    content = {**GOOD, "exp": time.time() + 600, **claims}
    headers = {**({} if kid is None else {"kid": kid}), **(head or {})}
    return jwt.encode({n: v for n, v in content.items() if v is not None}, key, algorithm, headers=headers)


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (SECRET, "HS256", "h")])
def test_a_good_web_token_lets_in(web: World, key: Any, algorithm: str, kid: str) -> None:
    """Claim: signed with a key of the file, for us, by the issuer, with a role: that is who it says."""
    client = web.client(None)
    client.headers["Authorization"] = f"Bearer {signed(key, algorithm, kid)}"
    assert client.get("/api/v1/me").json() == {"name": "ann@example", "role": "operator", "via": "jwt"}
    assert client.get("/api/v1/tokens").status_code == 403


def wrong_tokens() -> dict[str, str]:
    public = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    other = rsa.generate_private_key(65537, 2048)

    def forged(head: dict[str, Any], key: bytes) -> str:  # what the library itself would refuse to sign
        import hashlib
        import hmac

        def packed(raw: bytes) -> bytes:
            return base64.urlsafe_b64encode(raw).rstrip(b"=")

        text = packed(json.dumps(head).encode()) + b"." + packed(json.dumps({**GOOD, "exp": 9e9}).encode())
        return (text + b"." + packed(hmac.new(key, text, hashlib.sha256).digest())).decode()

    return {
        "end": signed(exp=time.time() - 60),
        "no end": signed(exp=None),
        "too long": signed(exp=time.time() + 90_000),
        "not yet": signed(nbf=time.time() + 600),
        "other audience": signed(aud="somebody-else"),
        "no audience": signed(aud=None),
        "other issuer": signed(iss="https://sso.example.evil"),
        "no issuer": signed(iss=None),
        "no subject": signed(sub=None),
        "no role": signed(role=None),
        "unknown role": signed(role="root"),
        "list of roles": signed(role=["admin"]),
        "other key": signed(other),
        "no key id, several keys": signed(kid=None),
        "unknown key id": signed(kid="x"),
        "key of another algorithm": signed(SECRET, "HS256", "r"),
        "other algorithm of the key": signed(RSA, "RS512", "r"),
        "public key as a secret": forged({"alg": "HS256", "kid": "r", "typ": "JWT"}, public),
        "no algorithm": forged({"alg": "none", "kid": "r"}, b""),
        "brings its key": signed(head={"jwk": key_set()["keys"][0]}),
        "names its key": signed(head={"jku": "https://evil.example/keys"}),
        "critical": signed(head={"crit": ["b64"], "b64": True}),
    }


@pytest.mark.parametrize("what", list(wrong_tokens()))
def test_a_wrong_web_token_does_not(web: World, what: str) -> None:
    """Claim: whatever is wrong with it, the answer is the same 401."""
    answer = web.client(None).get("/api/v1/me", headers={"Authorization": f"Bearer {wrong_tokens()[what]}"})
    assert (answer.status_code, answer.json()["code"]) == (401, "login-failed")


@pytest.mark.parametrize(
    ("read", "text", "why"),
    [
        (keys.read_tokens, "", "no token"),
        (keys.read_tokens, "ann:admin", "line 1 is not NAME:ROLE:TOKEN"),
        (keys.read_tokens, "# x\nann:root:0123456789012345678901", "line 2: the role"),
        (keys.read_tokens, "ann:admin:short-secret", "fewer than 20"),
        (keys.read_tokens, "a:admin:01234567890123456789\na:viewer:01234567890123456780", "line 2: there is another"),
        (keys.read_certificates, "admin", "line 1 is not"),
        (keys.read_certificates, "king:ann", "role"),
        (keys.read_keys, "[]", "keys"),
        (keys.read_keys, "{", "not JSON (line 1)"),
        (keys.read_keys, '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "key 1 has no alg"),
        (keys.read_keys, '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}]}', "shorter"),
        (keys.read_keys, '{"keys": [{"kty": "RSA", "n": "secret-part", "alg": "RS256"}]}', "key 1 cannot be used"),
        (keys.read_keys, '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "none"}]}', "key 1 has no alg"),
    ],
)
def test_a_wrong_file_is_refused_by_its_line(tmp_path: Path, read: Any, text: str, why: str) -> None:
    """Claim: the message names the setting and the line, and quotes nothing of the file."""
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(SettingsError, match="ETL_API_X") as error:
        keys.File("ETL_API_X", str(path), read)
    assert why in str(error.value)
    assert "secret" not in str(error.value)


def test_a_changed_file_is_read_again_and_a_wrong_one_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claim: tokens can be changed without a restart; a mistake locks nobody out."""
    clock = Clock()
    monkeypatch.setattr("etl.api.access.keys.time.monotonic", clock)
    path = tmp_path / "tokens"
    path.write_text("ann:admin:01234567890123456789\n")
    file = keys.File("ETL_API_TOKENS_FILE", str(path), keys.read_tokens)
    for text, names in (
        ("bob:viewer:01234567890123456789x\n", ["bob"]),
        ("broken\n", ["bob"]),
        ("eve:operator:01234567890123456789yz\n", ["eve"]),
    ):
        path.write_text(text)
        clock.pass_(10)
        assert [who.name for _, who in file.get()] == names


def test_a_session_ends_when_it_is_not_used_and_in_any_case(tmp_path: Path) -> None:
    """Claim: renewed while used, ended after half an hour without, and after twelve hours whatever happens."""
    clock = Clock(1_772_434_800.0)
    vault = Vault(tmp_path / "access.db", wall=clock)
    who = Identity("ann", Role.OPERATOR, "token")
    used, left = vault.open_session(who, "127.0.0.1"), vault.open_session(who, "127.0.0.1")
    for _ in range(int(LONGEST_SECONDS // (IDLE_SECONDS / 2)) - 1):
        clock.pass_(IDLE_SECONDS / 2)
        assert vault.resume(used) is not None
    assert vault.resume(left) is None
    clock.pass_(IDLE_SECONDS)
    assert vault.resume(used) is None
    assert vault.sessions() == []
    assert b"cookie" not in (tmp_path / "access.db").read_bytes()
    assert (tmp_path / "access.db").stat().st_mode & 0o077 == 0
    vault.close()


def test_a_bucket_fills_up_again() -> None:
    """Claim: so many at once, then one each sixth of a second; other addresses are not touched, nor memory."""
    clock = Clock()
    bucket = Bucket(10, clock)
    assert [bucket.take("a") > 0 for _ in range(12)] == [False] * 10 + [True] * 2
    assert bucket.take("b") == 0
    clock.pass_(6.1)
    assert [bucket.take("a") > 0 for _ in range(2)] == [False, True]
    for number in range(20_000):
        bucket.take(str(number))
    assert len(bucket._buckets) <= 10_000


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"ETL_API_TLS_CERT_FILE": "/x"}, "ETL_API_TLS_KEY_FILE"),
        ({"ETL_API_TLS_KEY_FILE": "/x"}, "ETL_API_TLS_CERT_FILE"),
        ({"ETL_API_CERTS_FILE": "/x"}, "ETL_API_TLS_CLIENT_CA_FILE"),
        ({"ETL_API_JWT_KEYS_FILE": "/x"}, "ETL_API_JWT_ISSUER"),
        ({"ETL_API_TOKENS_FILE": "/no/such/file"}, "ETL_API_TOKENS_FILE"),
        ({"ETL_API_DATA_DIR": "/proc/x"}, "ETL_API_DATA_DIR"),
    ],
)
def test_wrong_settings_stop_the_start(tmp_path: Path, settings: dict[str, str], names: str) -> None:
    """Claim: with a message that names the setting."""
    with pytest.raises(SettingsError, match=names):
        World(tmp_path, **settings)


def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """Claim: who may write there decides who is let in."""
    (tmp_path / "data").mkdir(mode=0o755)
    with pytest.raises(SettingsError, match="mode 0700"):
        World(tmp_path)
