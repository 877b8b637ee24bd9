"""Every backend, by the name that `launch.on` gives it."""

from collections.abc import Mapping

from luthier.launch.backend import Backend, On
from luthier.launch.local import Local
from luthier.launch.modal import Modal
from luthier.launch.slurm import Slurm

BACKENDS: Mapping[On, Backend] = {
    "local": Local("local"),
    "torchrun": Local("torchrun"),
    "slurm": Slurm(),
    "ray": Local("ray"),
    "modal": Modal(),
}
"""A node of `torchrun` and the driver of `ray` are processes in the background of the machine that they are started on: what makes them
several is who starts their ranks (`launch/torchrun.py`, `launch/ray.py`)."""
