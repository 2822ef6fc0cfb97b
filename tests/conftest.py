"""One thread for tests and the processes they start: tiny tensors only lose time to more, and bits depend on it."""

import os

import pytest

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TUNER_DEVICE": "cpu", "TOKENIZERS_PARALLELISM": "false"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--golden-write` accepts the losses of today."""
    parser.addoption("--golden-write", action="store_true", help="write tests/golden/ anew")
