"""Measurement of a call: its time beside other calls, its peak memory, and the machine.

Used by the benchmarks, the demonstration and the trade-off, and open to other code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alt.lazy import attach

if TYPE_CHECKING:
    from .machine import describe_machine as describe_machine
    from .machine import is_busy as is_busy
    from .machine import machine_slug as machine_slug
    from .peak_memory import Peak as Peak
    from .peak_memory import call_fresh_process as call_fresh_process
    from .peak_memory import can_measure_peak as can_measure_peak
    from .peak_memory import keep_freed_memory as keep_freed_memory
    from .peak_memory import measure_peak as measure_peak
    from .peak_memory import return_freed_memory as return_freed_memory
    from .timing import Interval as Interval
    from .timing import Sample as Sample
    from .timing import interleave as interleave
    from .timing import median_interval as median_interval
    from .timing import median_ratio as median_ratio
    from .timing import paired_ratio as paired_ratio
    from .timing import saving_realised as saving_realised
    from .timing import time_call as time_call

__getattr__, __dir__, __all__ = attach(__name__)
