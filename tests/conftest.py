"""The same on every machine: one thread, no network, no example that another run would not draw.

`FOVEATE_TEST_THREADS` asks for more threads.

The tests' tensors are small, and the machine may be shared. Triton, where it is, interprets.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.shared_state import settings as settings_now

torch.set_num_threads(int(os.environ.get("FOVEATE_TEST_THREADS", "1")))
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, whoever does that first

# a proxy would answer for the closed ports that stand for servers here; what asks the Hub where it may would
# wait for it, or find what another machine does not
for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "hf_token", "hf_endpoint"):
    for spelled in (name, name.upper()):
        os.environ.pop(spelled, None)
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

# HYPOTHESIS_PROFILE=search draws other examples each time
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_before = settings_now()


@pytest.fixture(autouse=True)
def _nothing_shared_is_left_changed():
    """What a process shares is after each test, and after the fixtures made for it, as it was before all."""
    global _before
    yield
    now, before = settings_now(), _before
    _before = now
    changed = {name: (before.get(name), now.get(name)) for name in before.keys() | now.keys()}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    assert not changed, f"left changed: {changed}"
