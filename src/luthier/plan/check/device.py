"""Findings about the machine: whether the run fits its memory, disk and time, and what may kill or slow it there."""

import math
from collections.abc import Iterator
from dataclasses import replace

from luthier.core.finding import Change, Finding
from luthier.plan.check.case import Case, Check, seconds_of
from luthier.plan.check.words import count, duration, gigabytes, percent
from luthier.plan.setup import DTYPE_BYTES, Layout
from luthier.plan.speed import steps_saved
from luthier.plan.weights import optimizer_bytes, trained_numbers, undivided

LOW_USE = 0.4


def does_not_fit(case: Case) -> Iterator[Finding]:
    """The peak of the memory ledger is more than the device has.

    Severity: refuse; warn where the device has it, but other programs hold it now.

    The run would stop with an out-of-memory error: in the first step with the longest rows, or in a validation or save after hours.

    Arithmetic: the plan's ledger, line by line (`luthier plan R --json`, `memory`). 7.61 G parameters in float32 are 30.4 GB before
    anything is trained; in bf16 15.2 GB.

    What to do: one of the changes named, the cheapest first; each is enough by itself.

    Source: the ledger; `docs/plan-accuracy.md` says how far it was off where it was measured.
    """
    peak, free, there = case.memory.peak_bytes, case.memory.device_bytes, case.device.memory_bytes
    if case.memory.fits:
        return
    held = peak <= there
    ranks = case.setup.layout.devices
    who = f"Each of {ranks} ranks" if ranks > 1 and not case.on_gpu else "The run"
    of_it = f"its part of {case.device.name}" if ranks > 1 and not case.on_gpu else case.device.name
    yield Finding(
        code="does-not-fit",
        severity="warn" if held else "refuse",
        message=f"{who} needs {gigabytes(peak)} of {of_it} ({case.memory.peak_at}), and "
        + (f"only {gigabytes(free)} of its {gigabytes(there)} are free now" if held else f"it has {gigabytes(free)}"),
        evidence={"peak_bytes": peak, "device_bytes": free, "peak_at": case.memory.peak_at},
        changes=case.remedies,
    )


def memory_unused(case: Case) -> Iterator[Finding]:
    """Most of the GPU's memory stays unused, while the recipe saves it.

    Severity: note.

    A small micro batch and gradient checkpointing are for memory that is short. Where it is not, more rows at once use the GPU better,
    and nothing need be recomputed. The update stays the same: the global batch is what defines it.

    Arithmetic: 6.8 of 80 GB at 4 rows, 36 minutes; 25 GB at 16 rows, 10 minutes. Recomputing adds a forward
    pass: a third of the work if all is trained, half of LoRA's.

    What to do: `micro_batch_size: auto` and `gradient_checkpointing: auto`, which take what fits.

    Source: seed 003 (docs/notes/seeds.md): 15–30 % of the memory used, 3.6 × from a larger batch.
    """
    training = case.recipe.training
    share = case.memory.peak_bytes / case.memory.device_bytes
    few = training.micro_batch_size != "auto" and training.micro_batch_size < case.rows_per_rank
    recomputed = training.gradient_checkpointing is True
    if not case.on_gpu or share >= LOW_USE or not (few or recomputed):
        return
    changes = []
    if few:
        changes.append(Change(path="training.micro_batch_size", value="auto", why=f"as many of {case.rows_per_rank} rows as fit"))
    if recomputed:
        changes.append(Change(path="training.gradient_checkpointing", value="auto", why="a third less time where activations fit"))
    how = " and ".join(
        [*([f"{count(case.setup.micro_batch.rows, 'row')} at once"] if few else []), *(["recomputed activations"] if recomputed else [])]
    )
    yield Finding(
        code="memory-unused",
        severity="note",
        message=f"With {how}, the peak is {gigabytes(case.memory.peak_bytes)} of {gigabytes(case.memory.device_bytes)}, {percent(share)}",
        evidence={"peak_bytes": case.memory.peak_bytes, "device_bytes": case.memory.device_bytes, "share": round(share, 3)},
        changes=tuple(changes),
    )


def host_memory_too_small(case: Case) -> Iterator[Finding]:
    """The host has less free memory than the weights, which pass through it on their way to the GPU.

    Severity: warn.

    The kernel may kill the process while it loads, which looks like a crash without a message.

    Arithmetic: 30.5 G parameters in bf16 are 61 GB on the host, whatever they are quantised to on the GPU.

    What to do: a machine with more memory, or swap for the minute that loading takes.

    Source: `luthier.model.load`, which reads the whole model before it moves it.
    """
    if not case.on_gpu or case.host_free_bytes == "unknown":
        return
    needed = case.shape.parameters * (4 if case.recipe.lora == "none" else DTYPE_BYTES[case.setup.dtype])
    if needed <= case.host_free_bytes:
        return
    yield Finding(
        code="host-memory-too-small",
        severity="warn",
        message=f"Loading takes {gigabytes(needed)} of host memory, and {gigabytes(case.host_free_bytes)} are free",
        evidence={"needed_bytes": needed, "free_bytes": case.host_free_bytes},
    )


def disk_too_small(case: Case) -> Iterator[Finding]:
    """The disk has no room for the checkpoints that the recipe keeps.

    Severity: refuse where not even one fits, else warn.

    A checkpoint holds the trained weights in float32 and the optimizer's state. `keep` of them are kept, the best one besides, and the
    next is written before the oldest is removed. Of a run that goes on, those that are there need no room again; but one is tried before
    the first step, and the next is written beside them.

    Arithmetic: (4 + 8) bytes a trained parameter: an adapter of 20 M 0.24 GB; all of 7.61 G 91 GB, and with keep 3 five of them 457 GB.
    Of a run that has four of them, 91 GB.

    What to do: fewer checkpoints (`checkpoints.keep`), or `LUTHIER_RUNS` on a larger disk.

    Source: `luthier.train.checkpoint`.
    """
    if case.disk_free_bytes == "unknown":
        return
    free, alone = case.disk_free_bytes, replace(case.setup, layout=Layout())
    stage = undivided(case.shape)
    final = 4 * trained_numbers(case.shape, alone, stage)
    each = final + optimizer_bytes(case.shape, alone, stage)[0]
    there, keep = len(case.saved), case.recipe.checkpoints.keep
    left = sum(step > max(case.saved, default=0) for step in steps_saved(case.steps))
    most = max(there + 1, min(there + left, keep + 2))
    needed = max(most * each, min(there + left, keep + 1) * each + final) - there * each
    if needed <= free:
        return
    room = there + free // each
    change = Change(path="checkpoints.keep", value=room - 2, why=f"{count(room, 'checkpoint')} of {gigabytes(each)} fit")
    beside = f" besides the {there} that are there, and the result," if there else " and the result"
    none_fits = free < each + (0 if there else final)
    yield Finding(
        code="disk-too-small",
        severity="refuse" if none_fits else "warn",
        message=f"{count(most - there, 'checkpoint')} of {gigabytes(each)}{beside} need {gigabytes(needed)}: "
        f"the disk has {gigabytes(free)}",
        evidence={"checkpoint_bytes": each, "there": there, "needed_bytes": needed, "free_bytes": free},
        changes=(change,) if room >= 3 and not none_fits else (),
    )


def gpu_drives_display(case: Case) -> Iterator[Finding]:
    """A GPU of this machine drives a display.

    Severity: warn.

    The driver then stops kernels that run for more than some seconds, so that the screen does not freeze: `cudaErrorLaunchTimeout`, in
    the middle of a run. The desktop also takes memory, and takes more when it likes.

    Arithmetic: a kernel of more than 2 s under X11 is killed; one micro batch of a large model can have one.

    What to do: plug the monitor into the board's own graphics and make that primary in the firmware; or stop the desktop
    (`systemctl isolate multi-user.target`).

    Source: seed 000 (docs/notes/seeds.md): X11's watchdog killed its kernels; CUDA's documentation of cudaErrorLaunchTimeout and
    kernelExecTimeoutEnabled.
    """
    if not case.on_gpu or case.host == "elsewhere":
        return
    showing = [number for number, gpu in enumerate(case.host.gpus) if gpu.drives_display]
    if showing:
        yield Finding(
            code="gpu-drives-display",
            severity="warn",
            message=f"GPU {', '.join(map(str, showing))} drives a display: the driver may kill kernels of more than 2 s, and so the run",
            evidence={"gpus": ", ".join(f"{number}: {case.host.gpus[number].name}" for number in showing)},
        )


def persistence_off(case: Case) -> Iterator[Finding]:
    """Persistence mode is off: the driver lets go of the GPU whenever no program uses it.

    Severity: note.

    Every start then waits for the driver, and settings such as power limits are lost in between.

    Arithmetic: 1 to 3 s a GPU and start, for the scrubbing of its memory alone.

    What to do: `sudo nvidia-smi -pm 1`, or the nvidia-persistenced service, which stays after a reboot.

    Source: NVIDIA's "Driver Persistence" (docs.nvidia.com/deploy/driver-persistence); seed 000 (docs/notes/seeds.md).
    """
    if not case.on_gpu or case.host == "elsewhere":
        return
    off = [number for number, gpu in enumerate(case.host.gpus) if not gpu.persistent]
    if off:
        yield Finding(
            code="persistence-off",
            severity="note",
            message=f"Persistence mode of GPU {', '.join(map(str, off))} is off: each start waits 1 to 3 s, and settings are lost",
            evidence={"gpus": len(off)},
        )


def timeout_too_short(case: Case) -> Iterator[Finding]:
    """The host ends the run before it is done.

    Severity: warn.

    What comes after the last checkpoint is then lost, and the run must be started again to go on.

    Arithmetic: 1,686 steps of 35 s are 16.4 h; a timeout of 60,000 s is 16.7 h. The plan's high estimate must fit, not its middle.

    What to do: a longer `launch.timeout`; or save often (`save_steps`) and let restarts resume.

    Source: seed 002 (docs/notes/seeds.md).
    """
    if case.recipe.launch.timeout == "none":
        return
    allowed, total = seconds_of(case.recipe.launch.timeout), case.time.total
    if allowed >= total.high:
        return
    surely = "will not" if allowed < total.low else "may not"
    hours = math.ceil(total.high * 1.1 / 3600)
    yield Finding(
        code="timeout-too-short",
        severity="warn",
        message=f"The run takes {duration(total.low)} to {duration(total.high)}, and {surely} be done when the host ends it, "
        f"after {duration(allowed)}",
        evidence={"timeout": allowed, "low": round(total.low), "mid": round(total.mid), "high": round(total.high)},
        changes=(Change(path="launch.timeout", value=f"{hours} h", why="a tenth more than the highest estimate"),),
    )


CHECKS: tuple[Check, ...] = (
    does_not_fit,
    memory_unused,
    host_memory_too_small,
    disk_too_small,
    gpu_drives_display,
    persistence_off,
    timeout_too_short,
)
