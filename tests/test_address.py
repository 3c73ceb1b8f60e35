"""Addresses that pages are served at: checked in time, and printed so that a browser understands them."""

import socket

import pytest

from vggt_int8.address import check_address, free_port, page_address


def test_what_is_printed_can_be_typed_into_a_browser() -> None:
    assert page_address("127.0.0.1", 8080) == "http://127.0.0.1:8080"
    assert page_address("::1", 8080) == "http://[::1]:8080"
    assert page_address("0.0.0.0", 8080) == page_address("::", 8080) == f"http://{socket.gethostname()}:8080"


def test_a_taken_port_and_a_foreign_host_are_named() -> None:
    port = free_port("127.0.0.1")
    check_address("127.0.0.1", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ValueError, match=rf"127\.0\.0\.1:{port} cannot be listened on .*choose another port"):
            check_address("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"203\.0\.113\.1:0 cannot be listened on"):  # of no machine
        check_address("203.0.113.1", 0)
    with pytest.raises(ValueError, match="is no address of this machine"):
        check_address("a host that\tis none", 0)
