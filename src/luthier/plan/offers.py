"""One recipe on every GPU of the hardware table: fits or not, hours, cost, and what serving its adapter takes there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from luthier.plan.hardware import Device, table
from luthier.plan.layout import rented
from luthier.plan.plan import Facts, Plan, make
from luthier.plan.serving import Serving, longest_served, serving_needs

SEQUENCES = 1
"""Answered at once, for the page's figures: one user waits for one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A GPU, the plan on it, and what it takes to serve the adapter there."""

    device: Device
    plan: Plan
    serving: Serving

    @property
    def hours(self) -> float:
        """Of training, mid."""
        return self.plan.time.total.mid / 3600

    @property
    def serves(self) -> bool:
        """Whether one of these GPUs could serve the model too."""
        return self.serving.fits(self.device.memory_bytes)

    def to_json(self) -> dict[str, Any]:
        """As `luthier plan --gpu all --json` has it."""
        memory, cost = self.plan.chosen.memory, self.plan.cost
        return {
            "gpu": self.device.id,
            "count": self.plan.facts.task.place.count,
            "fits": memory.fits,
            "peak_bytes": memory.peak_bytes,
            "device_bytes": memory.device_bytes,
            "time": asdict(self.plan.time.total),
            "cost": asdict(cost) if cost else None,
            "price_per_hour": self.device.price_per_hour,
            "price_source": self.device.price_source,
            "price_date": self.device.price_date,
            "serving": {**asdict(self.serving), "fits": self.serves},
            "resolved": [asdict(item) for item in self.plan.resolved],
        }


def offers(facts: Facts) -> list[Offer]:
    """An offer for each GPU of the table, as many of them as the recipe's, the cheapest that fits first, those that do not last."""
    made = (_offer(facts, device) for device in table().values())
    return sorted(made, key=lambda offer: (not offer.plan.chosen.memory.fits, offer.plan.cost is None, _dollars(offer)))


def cheapest(found: Sequence[Offer]) -> Offer | None:
    """Of those that fit and have a price."""
    return min((offer for offer in found if offer.plan.chosen.memory.fits and offer.plan.cost), key=_dollars, default=None)


def fastest(found: Sequence[Offer]) -> Offer | None:
    """Of those that fit."""
    return min((offer for offer in found if offer.plan.chosen.memory.fits), key=lambda offer: offer.hours, default=None)


def _offer(facts: Facts, device: Device) -> Offer:
    recipe, workload, nodes = facts.task.recipe, facts.task.workload, facts.task.recipe.parallel.nodes
    count = facts.task.place.count // nodes
    gpu = device.id if count == 1 else f"{device.id}x{count}"
    stated = recipe.launch.price_per_hour if gpu == recipe.launch.gpu else "auto"
    launch = recipe.launch.model_copy(update={"gpu": gpu, "price_per_hour": stated})
    moved = recipe.model_copy(update={"launch": launch})
    plan = make(replace(facts, task=replace(facts.task, recipe=moved, place=rented(gpu, nodes))))
    longest = longest_served(recipe, workload.longest)
    serving = serving_needs(facts.task.shape, "bfloat16" if device.bfloat16 else "float16", "none", longest, SEQUENCES)
    return Offer(device=device, plan=plan, serving=serving)


def _dollars(offer: Offer) -> float:
    return offer.plan.cost.mid if offer.plan.cost else 0.0
