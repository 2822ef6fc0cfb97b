"""One thread for tests and the processes they start: tiny tensors only lose time to more, and bits depend on it."""

import os

import pytest

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TUNER_DEVICE": "cpu", "TOKENIZERS_PARALLELISM": "false"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--golden-write` accepts the losses of today."""
    parser.addoption("--golden-write", action="store_true", help="write tests/golden/ anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take whole families (one built model serves all proofs of a case) and else whole files."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        case = callspec.params.get("case", callspec.params.get("name")) if callspec else None
        by_case = "families" in item.path.parts and isinstance(case, str)
        item.add_marker(pytest.mark.xdist_group(case if by_case else item.path.name))
