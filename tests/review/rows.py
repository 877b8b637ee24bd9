"""Small runs whose base and tuned model have answered, for people to rate."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier import flow
from luthier.evaluate.report import Prediction, Report, Scores
from luthier.evaluate.task import summarise
from luthier.review.asking import Review, Said, Side
from luthier.review.pair import Draw, Pair, Whose
from luthier.review.store import Ratings
from luthier.runs.store import RunFolder, open_or_create

RUBRIC = {"helpful": "Could a beginner act on it?", "true": "Is it so?"}


def answered(answers: Sequence[str], *, groups: Sequence[str] = (), right: Sequence[bool] = (), task: str = "coach") -> Report:
    """One model's answers to rows 0, 1, 2 …, each in a group and right or wrong where that is given."""
    rows = tuple(
        Prediction(
            task=task,
            origin=f"games.jsonl:{number + 1}",
            group=groups[number] if groups else "",
            messages=({"role": "system", "content": "You coach."}, {"role": "user", "content": f"Move {number}?"}),
            reference=f"Nf{number}",
            answer=answer,
            score=float(right[number]) if right else 0.0,
            tokens=3,
            stopped=True,
            seconds=0.1,
        )
        for number, answer in enumerate(answers)
    )
    return Report(scores=Scores(subject="a model", data_hash="", tasks={task: summarise("exact", rows)}), predictions={task: rows})


def pair(number: int = 0, *, group: str = "", key: str = "") -> Pair:
    """Row so and so, differently answered."""
    return Pair(
        task="coach",
        origin=f"games.jsonl:{number + 1}",
        group=group,
        messages=({"role": "user", "content": f"Move {number}?"},),
        reference="Nf3",
        tuned=f"Castle, as in game {number}.",
        base=f"Resign game {number}.",
        apart=False,
        key=key,
    )


def review_of(pairs: Sequence[Pair], folder: Path, rubric: Mapping[str, str] = RUBRIC) -> Review:
    """These rows, to be rated."""
    ratings = Ratings(folder / "ratings.sqlite")
    ratings.begin(pairs)
    draw = Draw(pairs=tuple(pairs), num_rows=len(pairs), num_same=0)
    return Review(run="games", draw=draw, rubric=rubric, seed=42, ratings=ratings)


def side(review: Review, reviewer: str, of: Pair, whose: Whose) -> Side:
    """Where a reviewer sees one's answer: by its text, as a reviewer would have to."""
    answers = review.card(reviewer, of.id).answers
    return next(at for at in ("a", "b") if answers[at] == (of.tuned if whose == "tuned" else of.base))


def prefer(review: Review, reviewer: str, of: Pair, whose: Whose) -> None:
    """Say that this one's answer is better."""
    review.rate(Said(reviewer=reviewer, pair=of.id, preferred=side(review, reviewer, of, whose)))


def run_with(folder: Path, tuned: Report, base: Report, more: str = "") -> RunFolder:
    """A run of a small recipe with both evaluations in it; LUTHIER_RUNS names the folder of runs."""
    rows = [f'{{"prompt": "Move {number}?", "completion": "Nf{number}"}}\n' for number in range(20)]
    (folder / "games.jsonl").write_text("".join(rows))
    recipe = folder / "recipe.yaml"
    tasks = "evaluation: {tasks: [{name: coach, scorer: exact}]}\n"
    recipe.write_text(f"name: games\nmodel: {{base: demo}}\ndata: {{sources: [{{path: games.jsonl}}]}}\n{tasks}{more}")
    loaded = flow.load(recipe)
    run = open_or_create(loaded.recipe.name, loaded.text, loaded.source)
    tuned.write(run.evaluation("tuned"))
    base.write(run.evaluation("base"))
    return run
