"""Print what the product is made of as a CycloneDX document: `sbom.py [--installed] [VERSION]`.

It is told by the locks: docker/requirements.lock and kafka/libs.lock. With `--installed` only the Python packages that
are in the environment it runs in, which must be of the locked versions. Packages of the operating system, and the Java
runtime cut from one of them, are not told: the package manager of the image knows them.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
WHEELS, JARS = HOME / "docker" / "requirements.lock", HOME / "kafka" / "libs.lock"


@dataclass(frozen=True)
class Component:
    """A Python package or a jar; of a package the lock names many files, and no hash stands for it."""

    kind: str  # pypi or maven
    group: str
    name: str
    version: str
    sha256: str = ""

    @property
    def purl(self) -> str:
        """Its package URL."""
        return f"pkg:{self.kind}/{self.group + '/' if self.group else ''}{self.name}@{self.version}"

    def as_cyclonedx(self) -> dict[str, Any]:
        """Return it as the format has it."""
        told: dict[str, Any] = {"type": "library", "bom-ref": self.purl, "name": self.name, "version": self.version}
        if self.group:
            told["group"] = self.group
        if self.sha256:
            told["hashes"] = [{"alg": "SHA-256", "content": self.sha256}]
        return told | {"purl": self.purl}


def wheels(lock: Path = WHEELS) -> list[Component]:
    """Return the locked Python packages."""
    found = re.findall(r"^([a-z0-9._-]+)==([^ \\n]+)", lock.read_text(), re.MULTILINE)
    return [Component("pypi", "", re.sub(r"[._-]+", "-", name), version) for name, version in found]


def jars() -> list[Component]:
    """Return the locked jars."""
    rows = (line.split() for line in JARS.read_text().splitlines())
    return [Component("maven", *coordinates.split(":"), sha256) for sha256, coordinates in rows]


def installed(locked: list[Component]) -> list[Component]:
    """Return those that are in this environment. Raises ValueError when one is of another version."""
    present = {re.sub(r"[._-]+", "-", each.name).lower(): each.version for each in metadata.distributions()}
    if wrong := [each.purl for each in locked if present.get(each.name, each.version) != each.version]:
        raise ValueError(f"installed in another version: {', '.join(wrong)}")
    return [each for each in locked if each.name in present]


def document(components: list[Component], version: str) -> dict[str, Any]:
    """Return the document."""
    product = {"type": "application", "bom-ref": "etl-file-sync", "name": "etl-file-sync", "version": version}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": product},
        "components": [component.as_cyclonedx() for component in components],
    }


def main() -> None:
    """Print it."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--installed"]
    packages = installed(wheels()) if "--installed" in sys.argv else wheels()
    print(json.dumps(document(packages + jars(), arguments[0] if arguments else "unknown"), indent=1))


if __name__ == "__main__":
    main()
