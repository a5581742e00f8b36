"""Certificates of the tests' own: an authority, and what it signs; right ones, and all kinds of wrong ones."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, in one PEM file (`pem`)."""

    pem: Path
    fingerprint: str  # SHA-256, as the product shows it

    def with_passphrase(self, passphrase: str) -> Path:
        """Write it with its key encrypted."""
        both = self.pem.read_bytes()
        secret = serialization.BestAvailableEncryption(passphrase.encode())
        key = serialization.load_pem_private_key(both, None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret
        )
        certificate = x509.load_pem_x509_certificate(both).public_bytes(serialization.Encoding.PEM)
        path = self.pem.with_suffix(".secret.pem")
        path.write_bytes(key + certificate)
        return path

    def as_pkcs12(self, password: str) -> Path:
        """Write it as Java reads it."""
        both = self.pem.read_bytes()
        key = serialization.load_pem_private_key(both, None)
        assert isinstance(key, rsa.RSAPrivateKey)
        secret = serialization.BestAvailableEncryption(password.encode())
        store = pkcs12.serialize_key_and_certificates(
            b"server", key, x509.load_pem_x509_certificate(both), None, secret
        )
        path = self.pem.with_suffix(".p12")
        path.write_bytes(store)
        return path


class Authority:
    """Signs certificates; its own is in the file `ca`."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._name = _name(name)
        self._known: dict[str, Certificate] = {}
        builder = _builder(self._name, self._name, self._key, datetime.now(UTC) + DAY)
        own = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        certificate = own.sign(self._key, hashes.SHA256())
        self.ca = folder / f"{name.replace(' ', '-')}.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def known(self, name: str) -> Certificate:
        """Return the certificate of a host, which is made once: a key takes a while."""
        if name not in self._known:
            self._known[name] = self.sign(name, name)
        return self._known[name]

    def sign(self, name: str, *names: str, ends: timedelta = DAY, self_signed: bool = False) -> Certificate:
        """Make a certificate for host names or addresses (`names`) that ends so long from now."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        issuer, signer = (_name(name), key) if self_signed else (self._name, self._key)
        builder = _builder(_name(name), issuer, key, datetime.now(UTC) + ends)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), False)
        certificate = builder.sign(signer, hashes.SHA256())
        pem = self.folder / f"{name.replace(' ', '-')}.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        der = certificate.public_bytes(serialization.Encoding.DER)
        return Certificate(pem, hashlib.sha256(der).digest().hex(":").upper())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(subject: x509.Name, issuer: x509.Name, key: rsa.RSAPrivateKey, ends: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(datetime.now(UTC), ends) - 30 * DAY)
        .not_valid_after(ends)
    )
