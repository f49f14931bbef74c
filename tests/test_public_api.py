"""The SDK's public names: sorted, all there, all described, and free of side effects."""

from __future__ import annotations

import inspect

import pytest

import conserve_sdk

PUBLIC: list[str] = list(getattr(conserve_sdk, "__all__", []))


def test_the_list_of_public_names_is_sorted_and_without_doubles() -> None:
    assert PUBLIC, "conserve_sdk has no __all__"
    assert sorted(set(PUBLIC)) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_what_it_gives(name: str) -> None:
    value = getattr(conserve_sdk, name)
    if inspect.isclass(value) or callable(value):
        # A dataclass without a docstring gets its signature as one, which says nothing.
        docstring = inspect.getdoc(value) or ""
        assert docstring
        assert not docstring.startswith(f"{name}(")


def test_nothing_public_is_left_out_of_the_list() -> None:
    defined = {
        name
        for name, value in vars(conserve_sdk).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert defined <= set(PUBLIC)
