"""What memory gives, by the processor's own time."""

from luthier.train.bandwidth import memory_bandwidth


def test_a_processor_reads_some_gigabytes_a_second() -> None:
    assert 1e9 < memory_bandwidth(1) < 1e12
