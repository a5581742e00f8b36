"""Signatures against the vectors that AWS has published: its test suite, and the examples of the S3 API reference."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from etl.transfer.s3 import signing

pytestmark = pytest.mark.unit

SUITE = signing.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE_TIME = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
GUIDE = signing.Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
GUIDE_TIME = datetime(2013, 5, 24, tzinfo=UTC)
UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Vector(NamedTuple):
    """One request, and its signature."""

    name: str
    signature: str
    method: str = "GET"
    key: str = ""
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


# aws-sig-v4-test-suite: host example.amazonaws.com, service `service`; host and x-amz-date are always signed.
OF_THE_SUITE = [
    Vector("get-vanilla", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    Vector("post-vanilla", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b", "POST"),
    Vector("get-utf8", "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85", key="ሴ"),
    Vector("get-unreserved", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f", key=UNRESERVED),
    Vector(
        "get-vanilla-query-order-key-case",
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        query=(("Param2", "value2"), ("Param1", "value1")),
    ),
    Vector(
        "get-vanilla-query-unreserved",
        "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
        query=((UNRESERVED, UNRESERVED),),
    ),
    Vector(
        "get-header-value-trim",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        headers=(("my-header1", " value1"), ("my-header2", ' "a   b   c"')),
    ),
]
# "Authenticating Requests: Using the Authorization Header": bucket examplebucket, service `s3`.
OF_THE_GUIDE = [
    Vector(
        "GET object",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        key="test.txt",
        headers=(("range", "bytes=0-9"),),
    ),
    Vector(
        "PUT object",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        "PUT",
        key="test$file.text",
        headers=(("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")),
        body=b"Welcome to Amazon S3.",
    ),
    Vector(
        "GET bucket lifecycle",
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        query=(("lifecycle", ""),),
    ),
    Vector(
        "GET bucket (list objects)",
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        query=(("max-keys", "2"), ("prefix", "J")),
    ),
]


def path_of(vector: Vector) -> str:
    return f"/{signing.quoted(vector.key, '/')}"


@pytest.mark.parametrize("vector", OF_THE_SUITE, ids=lambda vector: vector.name)
def test_the_suite_is_signed_as_published(vector: Vector) -> None:
    """Sorting, blanks, names beyond ASCII, an empty body."""
    headers = dict(vector.headers) | {
        "host": "example.amazonaws.com",
        "x-amz-date": signing.stamp_of(SUITE_TIME),
    }
    query = signing.query_string(vector.query)
    request = signing.canonical(vector.method, path_of(vector), query, headers, hashlib.sha256(b"").hexdigest())
    header = signing.authorization(SUITE, "us-east-1", "service", SUITE_TIME, request)
    scope = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request"
    names = ";".join(sorted(headers))
    expected = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={vector.signature}"
    assert header == expected


@pytest.mark.parametrize("vector", OF_THE_GUIDE, ids=lambda vector: vector.name)
def test_the_examples_of_s3_are_signed_as_published(vector: Vector) -> None:
    """The payload is a header of its own there."""
    payload = hashlib.sha256(vector.body).hexdigest()
    headers = dict(vector.headers) | {
        "host": "examplebucket.s3.amazonaws.com",
        "x-amz-content-sha256": payload,
        "x-amz-date": signing.stamp_of(GUIDE_TIME),
    }
    query = signing.query_string(vector.query)
    request = signing.canonical(vector.method, path_of(vector), query, headers, payload)
    header = signing.authorization(GUIDE, "us-east-1", "s3", GUIDE_TIME, request)
    assert header.rpartition("=")[2] == vector.signature


def test_a_key_stays_as_it_is() -> None:
    """Slashes and dots are not normalised; all that is not unreserved is escaped, byte by byte."""
    assert signing.quoted("a//b/./c d+é", "/") == "a//b/./c%20d%2B%C3%A9"
    assert signing.query_string([("uploadId", "a/+="), ("partNumber", "1")]) == "partNumber=1&uploadId=a%2F%2B%3D"
