"""The bench of the plan's memory: which cells it measures, and what it says of them."""

from bench.cells import SIZES, Cell, Measured, row_lengths
from bench.plan_accuracy import cells, table

CELL = Cell(size="256x4", rank=16, length=512, rows=8, dtype="bfloat16", checkpointing=False, packing="bins")


def measured(planned: int, measured_bytes: int = 100) -> Measured:
    return Measured(cell=CELL, engine="fused", peak_at="loss", loaded=0, measured=measured_bytes, planned=planned, lines=())


def test_there_are_sixty_cells_or_more_and_none_twice() -> None:
    assert len(set(cells())) == len(cells()) >= 60


def test_cells_differ_in_all_that_memory_depends_on() -> None:
    every = cells()
    assert {cell.size for cell in every} == set(SIZES)
    assert {cell.packing for cell in every} == {"off", "bins", "tree"}
    assert {cell.dtype for cell in every} == {"bfloat16", "float32"}
    assert {cell.checkpointing for cell in every} == {True, False}
    assert len({cell.rank for cell in every}) >= 4
    assert 0 in {cell.rank for cell in every}  # full fine-tuning


def test_the_first_few_cells_are_of_all_sizes_and_kinds() -> None:
    first = cells()[:12]
    assert {cell.size for cell in first} == set(SIZES)
    assert len({(cell.packing, cell.rank == 0) for cell in first}) >= 4


def test_one_row_has_the_cell_s_length() -> None:
    assert max(row_lengths(CELL, 16, 1)) == 512


def test_the_table_says_which_promises_are_kept() -> None:
    good = table([measured(101), measured(104)], "here")
    assert "not kept" not in good
    bad = table([measured(101), measured(90)], "here")
    assert "| none below -3% | -10.0% | **not kept** |" in bad


def test_errors_are_relative_to_what_was_measured() -> None:
    assert measured(150).error == 0.5
    assert "| engine fused | 1 | +50.0% | +50.0% | +50.0% |" in table([measured(150)], "here")
