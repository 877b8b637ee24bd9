"""A contestant that trains nothing: it writes its name into a file at every epoch, or breaks down in the epoch it is told to."""

from pathlib import Path

from bench.protocol import Gate, account, read_rows


def main() -> None:
    gate = Gate(("torch",))
    for epoch in range(gate.task.epochs):
        if epoch == gate.task.options.get("breaks_in"):
            raise SystemExit("a spring broke")
        with Path(gate.task.options["diary"]).open("a") as file:
            file.write(gate.task.options["name"])
        gate.step()
        gate.epoch(lambda: account((row.ids, row.supervised) for row in read_rows(gate.task.files.rows)), [[0]], {"spring": "wound"})


if __name__ == "__main__":
    main()
