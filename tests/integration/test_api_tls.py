"""The API over TLS, with clients that show certificates."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from apiwork import TOKENS, V1, Api

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


class Authority:
    """An authority that signs certificates, as files in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key, is_authority=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool = False
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        addresses = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        return (
            x509.CertificateBuilder(issuer_name=self._name, subject_name=name, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(addresses, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return certificate and key of somebody."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        files = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


def client(authority: Authority, port: int, certificate: tuple[Path, Path] | None = None) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(authority.file))
    if certificate is not None:
        context.load_cert_chain(*map(str, certificate))
    return httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=20)


def test_a_client_certificate_is_an_identity(make_api: Callable[..., Api], tmp_path: Path) -> None:
    """Claim: a verified certificate has its role; an unknown name none; without one a token is needed as ever."""
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    certificate, key = ours.issue("localhost")
    roles = tmp_path / "roles"
    roles.write_text("operator:robot-7\n")
    api = make_api(
        ETL_API_TLS_CERT_FILE=str(certificate),
        ETL_API_TLS_KEY_FILE=str(key),
        ETL_API_TLS_CLIENT_CA_FILE=str(ours.file),
        ETL_API_CERTS_FILE=str(roles),
    )
    with client(ours, api.port, ours.issue("robot-7")) as robot:
        assert robot.get(f"{V1}/me").json() == {"name": "robot-7", "role": "operator", "via": "cert"}
        assert robot.get(f"{V1}/me").headers["strict-transport-security"]
    with client(ours, api.port, ours.issue("stranger")) as stranger:
        assert stranger.get(f"{V1}/me").status_code == 401
    with client(ours, api.port, others.issue("robot-7")) as forger, pytest.raises(httpx.TransportError):
        forger.get(f"{V1}/me")
    with client(ours, api.port) as browser:
        assert browser.get("/live").status_code == 200
        assert browser.get(f"{V1}/me").status_code == 401
        login = browser.post(f"{V1}/session", json={"token": TOKENS["viewer"]})
        assert login.headers["set-cookie"].startswith("__Host-etl_session=")
        assert "Secure" in login.headers["set-cookie"]
        assert browser.get(f"{V1}/me").json()["via"] == "session"
    with httpx.Client() as plain, pytest.raises(httpx.TransportError):
        plain.get(f"http://127.0.0.1:{api.port}/live")


def test_a_key_that_does_not_fit_stops_the_start(make_api: Callable[..., Api], tmp_path: Path) -> None:
    """Claim: exit code 2, and a message that names the settings."""
    ours = Authority(tmp_path, "ours")
    certificate, _ = ours.issue("localhost")
    _, key = ours.issue("another")
    with pytest.raises(RuntimeError, match="ETL_API_TLS_CERT_FILE"):
        make_api(ETL_API_TLS_CERT_FILE=str(certificate), ETL_API_TLS_KEY_FILE=str(key))
