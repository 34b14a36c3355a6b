"""Tornado handlers: sockets, pages, the AsyncAPI document."""
