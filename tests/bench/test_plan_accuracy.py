"""The bench of the plan's memory: which cells it measures, and what it says of them."""

from dataclasses import replace
from pathlib import Path

from bench.cells import Cell, Measured, replanned, row_lengths
from bench.grid import LARGE, MIDDLE, SMALL, drawn, grid
from bench.plan_accuracy import table

CELL = Cell(shape=SMALL, rank=16, length=512, rows=8, dtype="bfloat16", checkpointing=False, packing="bins")


def measured(planned: int, measured_bytes: int = 100) -> Measured:
    return Measured(cell=CELL, engine="fused", peak_at="loss", loaded=0, measured=measured_bytes, planned=planned, lines=())


def test_there_are_sixty_cells_or_more_and_none_twice() -> None:
    assert len(set(grid())) == len(grid()) >= 60


def test_cells_differ_in_all_that_memory_depends_on() -> None:
    every = grid()
    assert {cell.shape for cell in every} == {SMALL, MIDDLE, LARGE}
    assert {cell.packing for cell in every} == {"off", "bins", "tree"}
    assert {cell.dtype for cell in every} == {"bfloat16", "float32"}
    assert {cell.checkpointing for cell in every} == {True, False}
    assert len({cell.rank for cell in every}) >= 4
    assert 0 in {cell.rank for cell in every}  # full fine-tuning


def test_the_first_few_cells_are_of_all_sizes_and_kinds() -> None:
    first = grid()[:12]
    assert {cell.shape for cell in first} == {SMALL, MIDDLE, LARGE}
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


def test_a_seed_draws_the_same_cells_again_and_another_seed_others() -> None:
    assert drawn(1, 20) == drawn(1, 20)
    assert not set(drawn(1, 20)) & {*drawn(2, 20), *grid()}
    assert {cell.packing for cell in drawn(1, 20)} == {"off", "bins", "tree"}


def test_what_was_measured_survives_its_file() -> None:
    found = replace(measured(101), lines=(("libraries", "context", 7),))
    assert Measured.of_json(found.to_json()) == found


def test_a_cell_is_planned_again_without_being_measured(tmp_path: Path) -> None:
    again = replanned(measured(1, measured_bytes=10**8), tmp_path)
    assert again.measured == 10**8
    assert 10**7 < again.planned < 10**9
    assert again.planned == sum(size for _, _, size in again.lines)
