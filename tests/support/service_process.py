"""Run the service in a separate process."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tests.support.paths import ROOT

HEAVY = {"matplotlib", "mlflow", "pandas", "scipy", "sklearn", "torch"}
"""Packages that the service must not import."""
IMAGING = {"PIL", "pydicom", "nibabel"}
"""Packages that only a service of image models may import."""


START = """
import sys
from serving.server import serve
if __name__ == "__main__":
    code = serve(**{options!r})
    loaded = {{module.partition(".")[0] for module in sys.modules}}
    sys.stderr.write("loaded: " + " ".join(loaded) + "\\n")
    sys.exit(code)
"""


class Running:
    """A service in a separate process, and the lines that it wrote to stderr."""

    def __init__(self, process):
        self.process, self.lines, self.url = process, [], None
        self.announced = threading.Event()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"on (http://\S+) \(", line)
            if found:
                self.url = found[1]
                self.announced.set()
        self.announced.set()

    def ask(self, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=10) as response:
            return response.read()

    def status(self, path):
        try:
            self.ask(path)
        except HTTPError as error:
            with error:
                return error.code
        except (URLError, ConnectionError):
            return None
        return 200

    def wait_for(self, path, status, seconds=15):
        deadline = time.monotonic() + seconds
        while self.status(path) != status:
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.02)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.reader.join(5)
        return code


@contextmanager
def running(tmp_path, models, *, environment=None, **options):
    """Start a service, yield it once it is ready, and kill all its processes at the end."""
    script = tmp_path / "start.py"
    script.write_text(START.format(options={"models": models, "port": 0, **options}))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        start_new_session=True,
    )
    service = Running(process)
    try:
        assert service.announced.wait(100)
        assert service.url, "".join(service.lines)
        service.wait_for("/health/ready", 200)
        yield service
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # including worker processes
        process.wait()
        service.reader.join(5)
        process.stderr.close()
