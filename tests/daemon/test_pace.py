# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

from mtlshm.daemon.pace import Pace


def test_so_many_times_at_once_and_then_only_as_time_goes_by() -> None:
    pace = Pace(3, 60.0)
    assert [pace.wait(100.0), pace.wait(101.0), pace.wait(110.0)] == [0, 0, 0]
    assert pace.wait(120.0) == 40.0
    assert pace.wait(159.5) == 0.5
    assert pace.wait(160.0) == 0
    assert pace.wait(160.0) == 1.0
    assert [pace.wait(300.0), pace.wait(300.0), pace.wait(300.0)] == [0, 0, 0]
