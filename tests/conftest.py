"""Eight virtual CPU devices and a persistent compilation cache for the whole test run."""

import gc
import os
import pathlib

from experiments.tools import compiling

# Read when jax is first imported, hence before anything else here. Most of the time goes into compiling
# small programs once.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {compiling.quick_flags()}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax._src.lru_cache import LRUCache

# Nine tenths of the suite's time is tracing and compiling: every program is kept, however small, for
# all workers and for the next run.
CACHE = pathlib.Path(
    os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", pathlib.Path(__file__).parent.parent / ".cache" / "jax"
    )
)
# Pieces of memory of this process, one a line; at so many it holds about 4 GB of programs.
MAPS, MOST_MAPS = pathlib.Path("/proc/self/maps"), 20_000
jax.config.update("jax_compilation_cache_dir", str(CACHE / "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def put_whole(cache: LRUCache, key: str, value: bytes) -> None:
    """Write a program beside its place and move it there.

    jax writes in place, and another worker that reads half a program dies of a segmentation fault.
    """
    place = pathlib.Path(cache.path) / f"{key}-cache"
    if not place.exists():
        draft = place.with_name(f"{key}-{os.getpid()}")
        draft.write_bytes(value)
        draft.replace(place)


LRUCache.put = put_whole


def pytest_configure() -> None:
    """Collect garbage seldom: what jax traces is millions of objects, nearly all of which stay."""
    gc.set_threshold(100_000, 50, 1_000)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked `some(k)` k variants, spread over all, are quick; the others are slow."""
    variants: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("some") is not None:
            variants.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for group in variants.values():
        marker = group[0].get_closest_marker("some")
        assert marker is not None
        (count,) = marker.args
        quick = {place * len(group) // count for place in range(count)}
        for place, item in enumerate(group):
            if place not in quick:
                item.add_marker(pytest.mark.slow)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a module leaves behind is not looked through again, and dropped before it is too much.

    Every compiled program maps memory, and a process that has more than 65,530 pieces of it (Linux)
    is killed by a segmentation fault in the middle of some innocent test.
    """
    if nextitem is not None and nextitem.path == item.path:
        return
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        # Programs hang on no circles, so that nothing need be looked through for them to go.
        jax.clear_caches()
    gc.freeze()
