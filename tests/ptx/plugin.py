"""A pytest plugin: the tests of the Triton kernels on compiled code, ``-p tests.ptx.plugin`` with TRITON_INTERPRET=0.

``ALT_KERNELS_PTX_PESSIMISM=1`` makes every approximate instruction as wrong as NVIDIA's documentation lets it be.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from . import arithmetic, launch


def pytest_configure(config: pytest.Config) -> None:
    arithmetic.PESSIMISM = float(os.environ.get("ALT_KERNELS_PTX_PESSIMISM", "0"))
    launch.install()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, count in sorted(launch.launches.items()):
        terminalreporter.write_line(
            f"emulated {name}: {count} launches, {launch.programs[name]} programs,"
            f" {len(launch.variants[name])} compilations, {launch.seconds[name]:.1f} s"
        )
