"""What the tables say, and that a cap does not look like a missed quota."""

from rich.console import Console

from luthier.cli.show import print_data
from tests.runs.summaries import summary


def test_the_group_table_shows_wanted_and_obtained_shares() -> None:
    whole = summary(rows=10)
    train = whole.splits["train"].model_copy(
        update={"wanted_share": 0.8, "groups": {"coder": 5, "tester": 5}, "group_shares": {"coder": 0.79, "tester": 0.81}}
    )
    console = Console(record=True, width=160)
    print_data(console, whole.model_copy(update={"groups": {"coder": 6, "tester": 5}, "splits": {"train": train}}))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["group", "kept", "train", "(wanted", "80%)"] in lines
    assert ["coder", "6", "5", "(79%)"] in lines and ["tester", "5", "5", "(81%)"] in lines
