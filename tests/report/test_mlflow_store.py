"""Addresses of stores, as people write them into MLFLOW_TRACKING_URI."""

import pytest

from tests.report.mirrored import call
from timewalk.errors import UserError


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:hush@db.example/x", r"postgresql://db\.example/x, .* psycopg2-binary"),
        ("mysql+pymysql://me:hush@db.example/x", r"missing: pip install pymysql,"),
        ("ftp://me:hush@db.example/x", r"is ftp://db\.example/x, which MLflow does not take: name"),
        ("file:///runs", r"file:///runs, which MLflow does not take \(The filesystem"),
        ("http://me:hu/sh@[db", r"is http://…, which MLflow does not take: name a server"),
    ],
)
def test_an_address_that_cannot_be_is_one_sentence(results, monkeypatch, address, said):
    module = said.rpartition(" ")[2].removesuffix(",").removesuffix("-binary")
    if module in ("psycopg2", "pymysql"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match=said) as caught:
        call(results)
    text = str(caught.value)
    assert text.startswith("MLFLOW_TRACKING_URI is ")
    assert len(text.splitlines()) == 1
    assert not [word for word in ("hush", "hu/sh", "me:") if word in text]
    assert not (results / "mlflow.json").exists()
