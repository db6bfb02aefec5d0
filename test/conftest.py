"""What every test shares: an isolated ROS, strict message fields, two threads, the shared data."""

import os
import random
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

sys.path.insert(0, str(ROOT))

os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
if os.environ.get("ROS_DISTRO") == "humble":  # knows only this one
    os.environ["ROS_LOCALHOST_ONLY"] = "1"
os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(1, 101))
os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"  # else a field of a wrong type is published as garbage

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The photos, videos and annotations beside the checkout; skips where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared data is not at {SHARED_DATA.relative_to(ROOT.parent)}")
    return SHARED_DATA
