"""The protocol `s3`: objects of a bucket, by requests that are signed and sent by ourselves."""

from etl.transfer.s3.session import S3Transfer

__all__ = ["S3Transfer"]
