"""A ComfyUI server under test: start it on a free port with folders of its own, post prompts, read its events. Standard library only."""
from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

TEXT = 3                      # kind of the binary events that carry a text for a node


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Host:
    """One server process. `base` gets models, custom_nodes, input, output, temp and user; the host's own folders stay as they are."""

    def __init__(self, path: Path, python: str, base: Path):
        self.path, self.python, self.base = path, python, base
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "host.log"
        self.client = uuid.uuid4().hex
        self.events: list[tuple[float, str, object]] = []
        self.process: subprocess.Popen | None = None

    def start(self, timeout: float = 300) -> None:
        for name in ("models", "custom_nodes", "input", "output", "temp", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        command = [self.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base),
                   "--preview-method", "latent2rgb", "--disable-api-nodes", *self._database(),
                   *(["--front-end-root", root] if (root := os.environ.get("COMFYUI_FRONTEND")) else [])]        # another than its own
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(command, cwd=self.path, stdout=self.log.open("w"), stderr=subprocess.STDOUT, env=environment)
        end = time.monotonic() + timeout
        while True:
            try:
                self.get("/system_stats")
                break
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError("the host did not start:\n" + self.log.read_text()[-3000:]) from None
                time.sleep(0.5)
        self._socket = self._connect()
        threading.Thread(target=self._listen, daemon=True).start()

    def _database(self) -> list[str]:
        known = (self.path / "comfy" / "cli_args.py").read_text()
        return ["--database-url", f"sqlite:///{self.base}/user/test.db"] if "--database-url" in known else []

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def version(self) -> tuple[int, ...]:
        text = self.get("/system_stats")["system"]["comfyui_version"]
        return tuple(int(part) for part in text.split(".")[:3])

    def raw(self, path: str, data: dict | None = None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> dict:
        return json.loads(self.raw(path))

    def post(self, prompt: dict) -> str:
        """Queue an API prompt; its id. Raises RuntimeError with the host's words when it is refused."""
        try:
            return json.loads(self.raw("/prompt", {"prompt": prompt, "client_id": self.client}))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:3000]) from None

    def wait(self, prompt_id: str, timeout: float = 300) -> dict:
        """The history entry of a finished prompt."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            if self.process.poll() is not None:
                raise RuntimeError("the host died:\n" + self.log.read_text()[-3000:])
            time.sleep(0.2)
        raise TimeoutError(f"prompt {prompt_id} did not end within {timeout} s")

    def run(self, prompt: dict, timeout: float = 300) -> dict:
        """Run a prompt; its outputs by node id. Raises RuntimeError with the message of the node that failed."""
        entry = self.wait(self.post(prompt), timeout)
        failed = error_of(entry)
        if failed:
            raise RuntimeError(failed)
        return entry["outputs"]

    def fail(self, prompt: dict, timeout: float = 300) -> str:
        """Run a prompt that must fail in a node; the message that the user sees."""
        entry = self.wait(self.post(prompt), timeout)
        message = error_of(entry)
        assert message, "the prompt ran through"
        return message

    def memory(self) -> int:
        """Resident bytes of the server."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def count(self, kind: str, since: float = 0.0) -> int:
        return sum(1 for at, name, _ in list(self.events) if name == kind and at >= since)

    def texts(self, node: str, since: float = 0.0) -> list[str]:
        """What was shown on a node, one after another."""
        return [data[1] for at, name, data in list(self.events) if name == "text" and data[0] == node and at >= since]

    def _connect(self) -> socket.socket:
        s = socket.create_connection(("127.0.0.1", self.port))
        key = base64.b64encode(os.urandom(16)).decode()
        s.sendall((f"GET /ws?clientId={self.client} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
                   "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                   f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        self._file = s.makefile("rb")
        while self._file.readline().strip():
            pass
        return s

    def _listen(self) -> None:
        """Read websocket frames: text ones are events by type, binary ones are previews and texts on nodes."""
        try:
            parts, binary = b"", False
            while True:
                head = self._file.read(2)
                if len(head) < 2:
                    return
                length = head[1] & 127
                if length == 126:
                    length = struct.unpack(">H", self._file.read(2))[0]
                elif length == 127:
                    length = struct.unpack(">Q", self._file.read(8))[0]
                data, kind = self._file.read(length), head[0] & 15
                if kind == 8:
                    return
                parts = data if kind else parts + data
                binary = kind == 2 if kind else binary
                if not head[0] & 128 or kind in (9, 10):
                    continue
                if binary and int.from_bytes(parts[:4], "big") == TEXT:
                    end = 8 + int.from_bytes(parts[4:8], "big")
                    self.events.append((time.monotonic(), "text", (parts[8:end].decode(), parts[end:].decode())))
                elif binary:
                    self.events.append((time.monotonic(), "preview", parts))
                else:
                    message = json.loads(parts)
                    self.events.append((time.monotonic(), message["type"], message.get("data")))
        except (OSError, ValueError):
            return


def error_of(entry: dict) -> str:
    """The exception message of a history entry, "" when the prompt succeeded."""
    status = entry.get("status") or {}
    if status.get("status_str") == "success":
        return ""
    for kind, data in status.get("messages", []):
        if kind == "execution_error":
            return f"{data['exception_type']}: {data['exception_message']}"
        if kind == "execution_interrupted":
            return "interrupted"
    return str(status)
