"""A folder from which vLLM serves a run: by systemd, or in a container by a compose file. Text alone: the commands are given.

No secret is in it: both ways read the token from a file outside, and do not start without one.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.recipe.load import written

IMAGE = "vllm/vllm-openai:v0.32.0"
"""The version whose words were looked up; `VLLM_IMAGE` names another."""
MOUNTED, BASE = "/run-files", "/base"
"""Where the container has the exported folder, and a base that is a folder of this machine."""
SECRETS = "/etc/luthier/{name}.env"
ENVIRONMENT = """\
# Copy this to {secrets}, mode 0600, and fill it in. The server does not start without VLLM_API_KEY, which its clients must send:
# openssl rand -hex 24
VLLM_API_KEY=
# For a gated base on the hub; else leave it empty.
HF_TOKEN=
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What starts a server of this folder."""

    name: str
    """The run's: of the container, and of the unit, `luthier-NAME`."""
    folder: Path
    """Where the exported folder will lie."""
    here: tuple[str, ...]
    """The command on this machine."""
    contained: tuple[str, ...]
    """The command in the container, with its paths."""
    base: Path | Literal["hub"]
    """Where the container gets it."""
    port: int
    devices: int

    @property
    def secrets(self) -> str:
        """The file that has the token."""
        return SECRETS.format(name=self.name)

    def texts(self) -> dict[str, str]:
        """Files by name."""
        return {
            "compose.yaml": _compose(self),
            f"luthier-{self.name}.service": _unit(self),
            "env.example": ENVIRONMENT.format(secrets=self.secrets),
        }

    def chapter(self) -> str:
        """How to start it, for README.md."""
        return f"""
## Serve it with vLLM

    sudo install -D -m 600 env.example {self.secrets}        # then fill it in
    docker compose --env-file {self.secrets} up -d           # in a container, or:
    sudo cp luthier-{self.name}.service /etc/systemd/system/ && sudo systemctl enable --now luthier-{self.name}

It answers on 127.0.0.1:{self.port}, as OpenAI's interface has it, to those who send the token. vLLM asks for it under /v1 alone: let
nobody else reach the port.
Compare what is served with what was trained before anybody relies on it:

    luthier verify {self.name} --url http://127.0.0.1:{self.port} --token-env VLLM_API_KEY
"""


def _compose(of: Deployment) -> str:
    volumes = [".:" + MOUNTED + ":ro", "${HOME}/.cache/huggingface:/root/.cache/huggingface"]
    if of.base != "hub":
        volumes.append(f"{of.base}:{BASE}:ro")
    probe = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{of.port}/health', timeout=5)"
    service = {
        "image": "${VLLM_IMAGE:-" + IMAGE + "}",
        "entrypoint": [_for_compose(word) for word in of.contained[:3]],
        "command": [_for_compose(word) for word in of.contained[3:]],
        "environment": {"VLLM_API_KEY": "${VLLM_API_KEY:?it is wanted: see env.example}", "HF_TOKEN": "${HF_TOKEN:-}"},
        "ports": [f"127.0.0.1:{of.port}:{of.port}"],
        "volumes": volumes,
        "ipc": "host",
        "restart": "unless-stopped",
        "healthcheck": {"test": ["CMD", "python3", "-c", probe], "interval": "10s", "timeout": "10s", "start_period": "1800s"},
        "deploy": {"resources": {"reservations": {"devices": [{"driver": "nvidia", "count": of.devices, "capabilities": ["gpu"]}]}}},
    }
    return written({"name": f"luthier-{of.name}".lower(), "services": {"vllm": service}})


def _unit(of: Deployment) -> str:
    return f"""\
# sudo cp this to /etc/systemd/system/, and env.example to {of.secrets}; then: sudo systemctl enable --now luthier-{of.name}
[Unit]
Description=vLLM, serving {of.name} on 127.0.0.1:{of.port}
Wants=network-online.target
After=network-online.target

[Service]
WorkingDirectory={_for_unit(str(of.folder), quotes=False)}
EnvironmentFile={of.secrets}
ExecStartPre=/usr/bin/test -n ${{VLLM_API_KEY}}
ExecStart={" ".join(_for_unit(word) for word in of.here)}
Restart=on-failure
RestartSec=10
KillMode=mixed
NoNewPrivileges=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def _for_compose(word: str) -> str:
    """As compose reads it: `$` would begin a variable."""
    return word.replace("$", "$$")


def _for_unit(word: str, *, quotes: bool = True) -> str:
    """As systemd reads it: `%` would begin a specifier, `$` a variable."""
    text = word.replace("%", "%%").replace("$", "$$") if quotes else word.replace("%", "%%")
    if not quotes or re.fullmatch(r"[\w@%+=:,./$-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
