"""What each engine hands on is what the contract names, no more and no less."""

from __future__ import annotations

import importlib
from dataclasses import fields

import pytest

from tracekit_ntk._derivatives import PRODUCTS, Backend, PerSample

ENGINES = [("torch", "_torch"), ("jax", "_jax")]


@pytest.mark.parametrize(("library", "engine"), ENGINES)
def test_engines_hand_on_exactly_the_contract(library: str, engine: str) -> None:
    pytest.importorskip(library)
    face = importlib.import_module(f"tracekit_ntk.{engine}")
    contract = {name for name in vars(Backend) if not name.startswith("_")}
    assert set(face.__all__) == contract
    assert all(callable(getattr(face, name)) for name in contract)


def test_products_of_samples_are_filled_by_name() -> None:
    assert set(PRODUCTS) < {field.name for field in fields(PerSample)}
