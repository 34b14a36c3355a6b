"""Bytes: frames, RFC 6455, writing."""
