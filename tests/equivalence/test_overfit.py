"""Four rows learned by heart: the model says their answers, and stops (trap 7)."""

import torch

from luthier.model.adapt import load_adapter
from luthier.model.generate import LocalCompleter
from luthier.model.load import load_model
from luthier.train.run import train
from tests.train.workshop import CPU, Workshop


def test_a_model_that_learned_four_rows_answers_them_and_stops(workshop: Workshop) -> None:
    job = workshop.job(
        num_rows=4,
        lora={"r": 16, "alpha": 32, "dropout": 0.0},
        data={"split": {"train": 1.0, "validation": 0, "test": 0}},
        training={"max_steps": 60, "learning_rate": 1e-2, "micro_batch_size": 4},
    )
    train(job)
    model = load_adapter(load_model(job.recipe.model, torch.float32, CPU), job.folder.adapter)
    examples = job.prepared.examples("train")
    answers = LocalCompleter(model, job.tokenizer).complete([example.prompt for example in examples], max_new_tokens=24)
    assert [answer.text for answer in answers] == [example.answer.content for example in examples]
    assert all(answer.stopped for answer in answers)
