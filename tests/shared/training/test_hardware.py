"""A container's bounds count, not the machine's."""

import math

from medunifier.shared.training.hardware import cpu_share, memory_and_free, this_machine


def test_the_containers_bounds_are_taken(tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cpu_share(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert math.isinf(cpu_share(tmp_path)) and math.isinf(cpu_share(tmp_path / "none"))
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       8000 kB\nMemFree: 10 kB\nMemAvailable:   6000 kB\n")
    assert memory_and_free(info, tmp_path) == (8000 * 1024, 6000 * 1024)
    (tmp_path / "memory.max").write_text("4096000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    assert memory_and_free(info, tmp_path) == (4096000, 96000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_and_free(info, tmp_path) == (8000 * 1024, 6000 * 1024)
    assert memory_and_free(tmp_path / "none", tmp_path / "none") == (0, 0)


def test_this_machine_has_something(tmp_path):
    machine = this_machine(tmp_path / "not" / "there" / "yet")
    assert 0 < machine.cpu_share <= machine.cores and machine.threads >= 1
    assert 0 < machine.memory_free <= machine.memory and machine.disk == str(tmp_path) and machine.disk_free > 0
