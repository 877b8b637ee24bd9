"""The verb that shows the whole way: quickstart."""

import typer

from luthier import flow
from luthier.cli.output import people, progress

NEXT = """\
Ask it: luthier chat quickstart, or luthier serve quickstart for OpenAI's clients (docs/guide/serve.md)
Next, with your own rows and a real model:
  write recipe.yaml:        name: mine
                            model: {base: Qwen/Qwen3-0.6B}
                            data: {sources: [{path: my-rows.jsonl}]}
                            evaluation: {tasks: [{name: answers, scorer: exact}]}
  luthier plan recipe.yaml            steps, memory, time, mistakes, before the run; luthier init writes a recipe
  luthier prepare recipe.yaml         what is kept, dropped and cut; steps
  luthier inspect recipe.yaml         the tokens of a row, and which are trained on
  luthier train recipe.yaml           training.epochs=1 on the line changes a value; the same command resumes
  luthier decide mine                 deploy, iterate, abort or not enough data\
"""


def quickstart() -> None:
    """Prepare, plan, train, evaluate and judge the demo, here and now. Its exit code is the verdict's."""
    from luthier.cli.page import print_plan
    from luthier.cli.show import print_answers, print_data, print_verdict

    bars, console = progress(), people(False)
    console.print("1/5 prepare: a log of five agents' answers becomes training rows", style="bold")
    loaded = flow.demo()
    prepared = flow.prepare(loaded.recipe, bars)
    print_data(console, prepared.summary)
    console.print("2/5 plan: what the run will take, and what is wrong with it", style="bold")
    print_plan(console, flow.plan(loaded, progress=bars))
    console.print("3/5 train: LoRA on the demo base", style="bold")
    trained = flow.train(loaded, bars)
    console.print("4/5 evaluate base and tuned model on held-out rows", style="bold")
    verdict = flow.decide(trained.run.name, progress=bars)
    console.print("5/5 verdict", style="bold")
    base, tuned = (flow.kept_report(trained.run.evaluation(name)) for name in ("base", "tuned"))
    print_answers(console, base, tuned)
    print_verdict(console, verdict)
    console.print(NEXT, soft_wrap=True)
    raise typer.Exit(verdict.exit_code)
