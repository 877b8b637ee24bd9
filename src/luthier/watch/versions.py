"""The versions that Luthier was tested with, those that it allows, and those that are installed; nothing is imported for it.

What was tested is constraints.txt, to which tested.txt is a link (in the wheel, a copy). What is allowed is what pip was told: the
dependencies of pyproject.toml, as the installed package's metadata have them.
"""

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

TESTED = Path(__file__).with_name("tested.txt")
PYTHON = re.compile(r"Python (\d+\.\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A library that Luthier needs."""

    name: str
    allowed: str
    """`>=2.11,<=2.13.0`."""
    tested: str
    installed: str
    """Empty where it is missing."""

    @property
    def is_allowed(self) -> bool:
        """Whether it is there, in a version that pip would take too; `2.13.0+cpu` counts as 2.13.0."""
        return bool(self.installed) and SpecifierSet(self.allowed).contains(self.installed, prereleases=True)

    @property
    def is_tested(self) -> bool:
        """Whether it is the version that the tests ran with, whatever it was built for."""
        return bool(self.installed) and Version(self.installed).public == self.tested


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Python and the libraries."""

    python: str
    python_allowed: str
    python_tested: str
    packages: tuple[Package, ...]
    cuda: str = ""
    """Of the CUDA runtime that came with torch; empty for a build without."""

    def of(self, name: str) -> str:
        """The installed version of a library, empty where it is missing."""
        return next((package.installed for package in self.packages if package.name == name), "")


def look() -> Versions:
    """The versions in this environment."""
    installed: dict[str, str] = {canonicalize_name(found.metadata["Name"]): found.version for found in metadata.distributions()}
    package = metadata.metadata("luthier")
    text = TESTED.read_text(encoding="utf-8")
    tested_python = PYTHON.search(text)
    return Versions(
        python=platform.python_version(),
        python_allowed=package["Requires-Python"],
        python_tested=tested_python.group(1) if tested_python else "",
        packages=packages_of(package.get_all("Requires-Dist") or (), text, installed),
        cuda=next((installed[name] for name in sorted(installed, reverse=True) if name.startswith("nvidia-cuda-runtime")), ""),
    )


def packages_of(required: Iterable[str], tested: str, installed: Mapping[str, str]) -> tuple[Package, ...]:
    """What is required without any extra, with the version that `tested`, the text of constraints.txt, pins."""
    pins = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", tested, re.MULTILINE)}
    requirements = [Requirement(line) for line in required]
    return tuple(
        Package(
            name=(name := canonicalize_name(requirement.name)),
            allowed=str(requirement.specifier),
            tested=pins.get(name, ""),
            installed=installed.get(name, ""),
        )
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    )
