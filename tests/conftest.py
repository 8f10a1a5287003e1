"""Shape annotations are checked in internal modules only: in public functions bad input must reach our own errors."""

import atexit
import shutil
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

from tests import compilation

collect_ignore = (
    [] if find_spec("torch") else ["peers"]
)  # `make peers` names the folder, so that it fails without torch instead of passing with nothing run

SCHEME_FILES = [
    path.stem
    for path in sorted((Path(__file__).parent.parent / "gls_jax" / "schemes").glob("*.py"))
    if "\nSCHEME = " in path.read_text()
]
CHECKED = [
    "gls_jax.decoding.candidate_rules",
    "gls_jax.decoding.dynamic_tree",
    "gls_jax.decoding.drafting",
    "gls_jax.decoding.engine",
    "gls_jax.decoding.round_parts",
    "gls_jax.decoding.margin",
    "gls_jax.decoding.batch_sampling",
    "gls_jax.decoding.tree_shape",
    "gls_jax.models.layers",
    "gls_jax.models.layer_stack",
    "gls_jax.models.transformer",
    "gls_jax.models.vae",
    "gls_jax.exact.counting",
    "gls_jax.exact.inversion",
    "gls_jax.exact.quadrature",
    "gls_jax.exact.ratio_order",
    "gls_jax.rejection",
    "gls_jax.schemes.max_flow",
    *(f"gls_jax.schemes.{name}" for name in SCHEME_FILES),
]

install_import_hook(CHECKED, "beartype.beartype")


@cache
def compiled() -> str:
    """A folder of this run for compiled programs."""
    folder = tempfile.mkdtemp(prefix="gls_jax-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Workers of pytest-xdist compile many of the same programs: what one has compiled the others read."""
    node.workerinput["compiled"] = compiled()


def pytest_configure(config):
    jax.config.update(
        "jax_traceback_in_locations_limit", 0
    )  # Python's lines in compiled programs cost a fifteenth of the time
    if (
        jax.config.jax_compilation_cache_dir
    ):  # JAX_COMPILATION_CACHE_DIR, kept between runs, halves the next one's time
        return
    if hasattr(
        config, "workerinput"
    ):  # not through the environment: processes that tests start compile on their own
        jax.config.update("jax_compilation_cache_dir", config.workerinput["compiled"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """XLA:CPU maps several pieces of memory per program, and Linux ends a process at 65,530 (vm.max_map_count)."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules whose tests do not need what users run; see tests/compilation.py."""
    with compilation.quick():
        yield
