"""What several stages' tests share: a vocabulary of bytes, Python's own documentation, read once, a Dask cluster."""

from collections.abc import Iterator

import pytest

from gpt.tokenizer import LETTERS, reserve
from gpt.tokenizer import Tokenizer as Loaded
from tasks import pydocs
from tasks.artifacts import Tokenizer


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Tokenizer:
    """Bytes as tokens: 256 ranks and five specials."""
    ranks = {bytes([byte]): rank for rank, byte in enumerate(LETTERS)}
    folder = tmp_path_factory.mktemp("tokenizer")
    Loaded(ranks, "gpt2", reserve(ranks)).save(folder)
    return Tokenizer(stage="tokenizer", key="k", digest="t", path=folder)


@pytest.fixture(scope="module")
def python_read_once():
    """The standard library is parsed once for all tests of a module: the functions are the real ones."""
    found = list(pydocs.functions())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.demo_chats.functions", lambda: iter(found))
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Dask cluster of two processes, as one would start it for several runs."""
    from distributed import LocalCluster

    pages = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, silence_logs=50, **pages) as found:
        yield found.scheduler_address
