"""Ask an OSV service for known vulnerabilities of all that is locked, and say what could not be asked.

The service is the user's to name (`--endpoint`, the address before `/v1/querybatch`): none is written here, and without
one nothing is asked. Exit code 0: all was asked, and nothing is known; 1: something is; 3: something was not asked.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections.abc import Sequence

from sbom import HOME, Component, jars, wheels

BATCH = 100  # packages in one question
LIMIT_SECONDS = 30
MAX_REPLY_BYTES = 16 << 20
EXIT_KNOWN, EXIT_NOT_ASKED = 1, 3
LOCKS = ("requirements", "requirements-build", "requirements-dev", "requirements-java")


def main() -> int:
    """Ask, and return the exit code."""
    parser = argparse.ArgumentParser(description="Known vulnerabilities of the locked wheels and jars.")
    parser.add_argument("--endpoint", help="address of an OSV service, as https://HOST")
    options = parser.parse_args()
    python = {each for name in LOCKS for each in wheels(HOME / "docker" / f"{name}.lock")}
    everything = [*sorted(python, key=lambda each: each.purl), *jars()]
    known = 0
    unasked: list[str] = []
    for start in range(0, len(everything), BATCH):
        some = everything[start : start + BATCH]
        if not options.endpoint:
            unasked += [f"{each.purl}: no --endpoint is given" for each in some]
            continue
        try:
            answers = ask(options.endpoint, some)
        except (OSError, ValueError) as error:
            unasked += [f"{each.purl}: {error}" for each in some]
            continue
        for each, (found, more) in zip(some, answers, strict=True):
            known += len(found)
            print(f"{each.purl}: {', '.join(found) or 'nothing known'}")
            if more:
                unasked.append(f"{each.purl}: the service has more than one page of answers; the first is above")
    for line in unasked:
        print(f"not asked: {line}")
    asked = len(everything) - len(unasked)
    print(f"{asked} of {len(everything)} packages were wholly asked about; known vulnerabilities: {known}")
    print("never asked here: packages of the operating system, the Java runtime, Maven and its plug-ins")
    return EXIT_KNOWN if known else EXIT_NOT_ASKED if unasked else 0


def ask(endpoint: str, some: Sequence[Component]) -> list[tuple[list[str], bool]]:
    """Return for each the ids of what is known, and whether there is more. Raises OSError, ValueError."""
    question = {"queries": [{"package": {"purl": each.purl}} for each in some]}
    request = urllib.request.Request(  # the user's own address
        endpoint.rstrip("/") + "/v1/querybatch",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as reply:
        text = reply.read(MAX_REPLY_BYTES + 1)
    try:
        results = json.loads(text)["results"]
        answers = [
            ([str(found["id"]) for found in result.get("vulns") or ()], bool(result.get("next_page_token")))
            for result in results
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("the service's answer is not that of an OSV service") from None
    if len(answers) != len(some):
        raise ValueError("the service answered for another number of packages")
    return answers


if __name__ == "__main__":
    sys.exit(main())
