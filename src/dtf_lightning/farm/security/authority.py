"""A small certificate authority for a lab: `dtf farm cert`.

Rules that this file guards:
- Keys are their owner's alone from the first byte on, in a folder that is.
- Nothing is overwritten unless that was asked for.
- The authority signs certificates of one kind each: for coordinators (servers) or for clients, and no further authorities.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dtf_lightning.errors import SettingsError
from dtf_lightning.whole_files import write_whole

AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650.0, 397.0
"""Of an authority, and of what it issues: browsers take no certificate that is good for longer than 398 days."""
EARLIER = dt.timedelta(minutes=5)
"""By which a certificate is good before it was made: clocks differ."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Issued:
    """Files that were written."""

    cert: Path
    key: Path
    until: dt.datetime
    hosts: tuple[str, ...] = ()


def make_authority(folder: Path, *, name: str, days: float, now: dt.datetime) -> Issued:
    """Make `ca.pem` and `ca.key` in a folder. Raises `SettingsError` if they are there.

    Args:
        folder: is made for its owner alone.
        name: of the authority, for people.
        days: for which it is good.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        raise SettingsError(f"others may look into {folder}, where a private key would lie: run `chmod 700 {folder}`")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    until = _until(now, days)
    certificate = (
        _builder(subject, subject, key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _write(folder, "ca", key, certificate, until, replace=False)


def issue(
    folder: Path,
    name: str,
    *,
    hosts: Sequence[str],
    client: bool,
    days: float,
    now: dt.datetime,
    replace: bool = False,
) -> Issued:
    """Make `NAME.pem` and `NAME.key`, signed by the folder's authority. Raises `SettingsError`.

    Args:
        folder: with `ca.pem` and `ca.key`.
        name: of the files, and of whom the certificate is for.
        hosts: names and IP addresses under which a coordinator is reached.
        client: for a client in place of a coordinator.
        days: for which it is good, within the authority's own time.
        replace: whether what is there may be replaced.
    """
    if not _NAME.fullmatch(name) or name == "ca":
        raise SettingsError(f"{name!r} cannot name a certificate: expected letters, digits, `.`, `_` and `-`, not `ca`")
    authority, authority_key = _read(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(_until(now, days), authority.not_valid_after_utc)
    builder = _builder(_subject(name), authority.subject, key.public_key(), now, until)
    if not client:
        names = x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys(hosts)])
        builder = builder.add_extension(names, critical=False)
    kind = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([kind]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return _write(folder, name, key, certificate, until, replace=replace, hosts=() if client else tuple(hosts))


def _read(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    cert, key = folder / "ca.pem", folder / "ca.key"
    try:
        authority = x509.load_pem_x509_certificate(cert.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except FileNotFoundError as error:
        raise SettingsError(
            f"there is no authority in {folder} ({error.filename} is missing): make one by `dtf farm cert init`, or say with "
            "--folder where it lies"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"the authority in {folder} cannot be read: {error}") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != authority.public_key():
        raise SettingsError(f"{key} is not the key of {cert}: expected those that `dtf farm cert init` has made")
    try:
        authority.verify_directly_issued_by(authority)
        authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise SettingsError(f"{cert} is no authority that `dtf farm cert init` has made: {error}") from error
    return authority, private


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if len(host) > 253 or not _HOST.fullmatch(host.lower()):
            raise SettingsError(f"{host!r} is neither a host's name nor an IP address") from None
        return x509.DNSName(host.lower())


def _subject(name: str) -> x509.Name:
    if not 0 < len(name) <= 64:
        raise SettingsError(f"{name!r} cannot be the name in a certificate: expected 1 to 64 letters")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _until(now: dt.datetime, days: float) -> dt.datetime:
    try:
        until = now + dt.timedelta(days=days)
    except (OverflowError, ValueError) as error:
        raise SettingsError(f"a certificate cannot be good for {days:g} days: {error}") from error
    if days <= 0:
        raise SettingsError(f"a certificate cannot be good for {days:g} days: expected a number above 0")
    return until


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, until: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(until)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    folder: Path,
    name: str,
    key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    until: dt.datetime,
    *,
    replace: bool,
    hosts: tuple[str, ...] = (),
) -> Issued:
    issued = Issued(cert=folder / f"{name}.pem", key=folder / f"{name}.key", until=until, hosts=hosts)
    contents = {
        issued.key: key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        issued.cert: certificate.public_bytes(serialization.Encoding.PEM),
    }
    if not replace:
        for path in contents:
            if path.exists():
                raise SettingsError(
                    f"{path} is there already, and is not overwritten: give another name or --folder"
                    + ("" if name == "ca" else ", or --replace")
                )
    for path, content in contents.items():
        _write_private(path, content, replace=replace)
    return issued


def _write_private(path: Path, content: bytes, *, replace: bool) -> None:
    if replace:
        write_whole(path, content, private=True)
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SettingsError(f"{path} is there already, and is not overwritten") from None
    with os.fdopen(file, "wb") as stream:
        stream.write(content)
