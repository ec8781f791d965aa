"""docker-compose.yml and the Dockerfile as data, and their containers as processes of this machine."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
# Within compose's grace, and what its user may do here: read what lies in a home that is not its own, write nothing.
_AS_ITS_USER = ("--clear-groups", *(f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps")))


class _OnceOnly(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys; compose refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(set(keys)) == len(keys), f"a key stands twice {node.start_mark}"
        return super().construct_mapping(node, deep)


def with_defaults(text: str) -> str:
    """Compose's `${NAME:-default}` as it reads where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


MODEL: dict[str, Any] = yaml.load(with_defaults(COMPOSE.read_text()), _OnceOnly)
SERVICES: dict[str, dict[str, Any]] = MODEL["services"]
BUILT = {name: spec for name, spec in SERVICES.items() if "build" in spec}


def secret_file(name: str) -> Path:
    return ROOT / str(MODEL["secrets"][name]["file"])


def instruction(name: str) -> list[str]:
    """The words of an instruction in its exec form."""
    (found,) = re.findall(rf"^(?:{name} |{name} .*\\\n +CMD )(\[.*\])$", DOCKERFILE, re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def image_environment() -> dict[str, str]:
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", last, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in block.replace("\\\n", " ").split())


IMAGE_PORT = image_environment()["SENDWHY_HTTP_PORT"]


def is_once(spec: Mapping[str, Any]) -> bool:
    return str(spec["restart"]).startswith("on-failure")


class Container:
    """A service of the file as it would run: the image's entrypoint and environment, the file's command, environment
    and secrets, as another user who can write temporary files only. `places`: what stands for hosts and paths."""

    def __init__(self, name: str, app: Path, places: Mapping[str, str]) -> None:
        self.name, self._app, self._places = name, app, places
        self._spec = SERVICES[name]
        self._process: subprocess.Popen[str] | None = None
        self._log = app.parent / f"{name}.log"

    def _placed(self, text: str) -> str:
        for written, here in self._places.items():
            text = text.replace(written, here)
        return text

    def _environment(self) -> dict[str, str]:
        told = image_environment() | {
            key: str(value) for key, value in self._spec.get("environment", {}).items() if value is not None
        }
        environment = {key: self._placed(value) for key, value in told.items()}
        environment["PATH"] = f"{self._app / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        # The image has its bytecode from the build; here the first start makes it, beside the tree.
        environment |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self._app.parent / "bytecode")}
        if port := self._places.get(f"port of {self.name}"):
            environment |= {"SENDWHY_HTTP_PORT": port, "SENDWHY_HTTP_HOST": "127.0.0.1"}
        return environment

    def _argv(self, words: list[str]) -> list[str]:
        argv = [self._placed(word) for word in words]
        setpriv = shutil.which("setpriv")
        if os.geteuid() != 0 or setpriv is None:
            return argv
        (user, group) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[0]
        return [setpriv, f"--reuid={user}", f"--regid={group}", *_AS_ITS_USER, "--no-new-privs", *argv]

    def start(self) -> None:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._argv([*instruction("ENTRYPOINT"), *self._spec["command"]]),
                cwd="/tmp",
                env=self._environment(),
                stdout=log,
                stderr=log,
                text=True,
            )

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def is_healthy(self) -> bool:
        """By its own check, the file's or the image's. Raises AssertionError if it has ended."""
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended with {self._process.returncode}:\n{self.log}"
        check = self._spec.get("healthcheck", {}).get("test", ["CMD", *instruction("HEALTHCHECK")])
        assert check[0] == "CMD"
        port = self._places.get(f"port of {self.name}")
        words = [word.replace(f":{IMAGE_PORT}/", f":{port}/") if port else word for word in check[1:]]
        return (
            subprocess.run(self._argv(words), env=self._environment(), check=False, capture_output=True).returncode == 0
        )

    def ask_to_end(self) -> None:
        assert self._process is not None
        self._process.terminate()

    def end(self) -> int:
        """The exit code; -9 after compose's grace."""
        assert self._process is not None
        try:
            return self._process.wait(float(self._spec.get("stop_grace_period", "10s").removesuffix("s")))
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
