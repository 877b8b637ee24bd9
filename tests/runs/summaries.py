"""A small DataSummary for tests that need one."""

from luthier.runs.summary import Cut, DataSummary, Lengths, RowCounts, SplitSummary, Template


def summary(*, hash: str = "0" * 16, rows: int = 10) -> DataSummary:
    lengths = Lengths(total=20 * rows, mean=20.0, p50=20, p95=20, max=20, histogram={32: rows}, coverage={32: 1.0})
    train = SplitSummary(
        examples=rows,
        rows=rows,
        tokens=20 * rows,
        supervised_tokens=5 * rows,
        answers=rows,
        wanted_share=1.0,
        obtained_share=1.0,
        groups={},
        lengths=lengths,
        cut=Cut(),
    )
    return DataSummary(
        hash=hash,
        sources=(),
        rows=RowCounts(read=rows, kept=rows, dropped={}, dropped_examples={}),
        groups={},
        splits={"train": train},
        max_length=32,
        template=Template(sha256="1" * 64, prefix_stable=True, end_of_turn="<|im_end|>", stop_ids=(2,)),
        overlap={},
    )
